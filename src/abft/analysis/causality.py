"""Measure accuracy with heads switched off: do the heads that ABFT trains carry the answer?

Induction heads are compared with as many random heads.
"""

import numpy as np
import torch
from torch import Tensor

from abft.analysis.evaluation import by_passing
from abft.analysis.study import Study, accuracy_of
from abft.runs.session import progress_bar

CAUSALITY = {
    "models_M": "before, after (the run), and e2e where one was given",
    "heads_off_MS": "heads switched off; the last: as many as pass the filter in half of the "
    "prompts (at most half of all)",
    "induction_accuracy_MS": "accuracy without the heads that pass the filter most often in "
    "this model; where too few pass at all, without those that look at labels most too",
    "random_accuracy_MSD": "accuracy without as many other heads, draw by draw",
    "prompts": "test prompts behind every accuracy",
}

SIZES = (0, 4, 8, 16, 32)
DRAWS = 3


def causality(study: Study, evaluation: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return the accuracy on the first `count` test prompts with heads switched off (output 0)."""
    prompts = study.prompts[:count]
    rates_MLH = evaluation["induction_rate_MLH"]
    on_labels_MLH = evaluation["correct_mass_MLH"] + evaluation["incorrect_mass_MLH"]
    head_count = rates_MLH.shape[2]

    # The last size follows the model. Half of the heads is the most, so that as many others remain.
    half = rates_MLH[0].size // 2
    fixed_sizes = [size for size in SIZES if size <= half]
    passing = [min(int((rates_LH >= 0.5).sum()), half) for rates_LH in rates_MLH]
    sizes = np.array([[*fixed_sizes, last] for last in passing])

    induction_accuracy = np.zeros(sizes.shape)
    random_accuracy = np.zeros((*sizes.shape, DRAWS))
    passes = sum(1 if size == 0 else 1 + DRAWS for row in sizes for size in {*row})
    with progress_bar("heads switched off", len(prompts) * passes) as bar:
        for m, factors in enumerate(study.models.values()):
            order = by_passing(rates_MLH[m], on_labels_MLH[m])

            for size in {*sizes[m]}:
                # First the induction heads, then the random draws; without a head all are equal.
                head_sets = [order[:size]]
                if size > 0:
                    for draw in range(DRAWS):
                        others = np.random.default_rng(draw).permutation(order[size:])
                        head_sets.append(others[:size])

                accuracies = []
                for heads in head_sets:
                    gates = head_gates(study.layers, head_count, heads)
                    probabilities, _ = study.evaluate(factors, prompts, bar, gates)
                    accuracies.append(accuracy_of(probabilities, prompts))

                # The size that follows the model can equal a fixed one.
                columns = sizes[m] == size
                induction_accuracy[m, columns] = accuracies[0]
                random_accuracy[m, columns] = accuracies[1:] or accuracies[0]

    return {
        "models_M": np.array(list(study.models)),
        "heads_off_MS": sizes,
        "induction_accuracy_MS": induction_accuracy,
        "random_accuracy_MSD": random_accuracy,
        "prompts": np.array(len(prompts)),
    }


def head_gates(layers: tuple[int, ...], heads: int, off: np.ndarray) -> dict[int, Tensor]:
    """Return factors of every layer's heads, (H,): 0 for the heads in `off`, 1 for the others.

    `off` holds numbers i * heads + head, where i counts the attention layers from 0.
    """
    gates_LH = torch.ones(len(layers), heads)
    gates_LH.view(-1)[torch.as_tensor(off, dtype=torch.long)] = 0
    return {layer: gates_LH[i] for i, layer in enumerate(layers)}
