"""Do the heads that ABFT trains carry the answer? Accuracy with induction heads switched off,
against random heads.
"""

import numpy as np
import torch
from torch import Tensor

from abft.analysis.study import Study, accuracy_of
from abft.runs.session import progress_bar

CAUSALITY = {
    "models_M": "before, after (the run), and e2e where one was given",
    "heads_off_MS": "heads switched off; the last: as many as pass the filter in half of the "
    "prompts (at most half of all)",
    "induction_accuracy_MS": "accuracy without the heads that pass the filter most often in "
    "this model",
    "random_accuracy_MSD": "accuracy without as many other heads, draw by draw",
    "prompts": "test prompts behind every accuracy",
}

SIZES = (0, 4, 8, 16, 32)
DRAWS = 3


def causality(study: Study, evaluation: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Accuracy on the first `count` test prompts with heads switched off (their output is 0)."""
    prompts = study.prompts[:count]
    rates = evaluation["induction_rate_MLH"]
    sizes = np.array(
        [
            [*(s for s in SIZES if s <= r.size // 2), min(int((r >= 0.5).sum()), r.size // 2)]
            for r in rates
        ]
    )
    induction, chance = np.zeros(sizes.shape), np.zeros((*sizes.shape, DRAWS))
    passes = sum(1 if size == 0 else 1 + DRAWS for row in sizes for size in {*row})
    with progress_bar("heads switched off", len(prompts) * passes) as bar:
        for m, at in enumerate(study.models.values()):
            order = np.argsort(-rates[m], axis=None, kind="stable")
            for size in {*sizes[m]}:
                draws = [order[:size]]
                if size > 0:
                    draws += [
                        np.random.default_rng(draw).permutation(order[size:])[:size]
                        for draw in range(DRAWS)
                    ]
                gates = [head_gates(study.layers, rates.shape[2], off) for off in draws]
                accuracies = [
                    accuracy_of(study.evaluate(at, prompts, bar, gate)[0], prompts)
                    for gate in gates
                ]
                induction[m, sizes[m] == size] = accuracies[0]
                chance[m, sizes[m] == size] = accuracies[1:] or accuracies[0]
    return {
        "models_M": np.array(list(study.models)),
        "heads_off_MS": sizes,
        "induction_accuracy_MS": induction,
        "random_accuracy_MSD": chance,
        "prompts": np.array(len(prompts)),
    }


def head_gates(layers: tuple[int, ...], heads: int, off: np.ndarray) -> dict[int, Tensor]:
    """Factors of every layer's heads: 0 for those in `off` (numbers layer * heads + head), 1 for
    the others.
    """
    gates = torch.ones(len(layers), heads)
    gates.view(-1)[torch.as_tensor(off, dtype=torch.long)] = 0
    return {layer: gates[i] for i, layer in enumerate(layers)}
