"""How much W_Q and W_K changed, layer by layer (Fig. 17-19), and in how many directions."""

import sys

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from abft.analysis.study import E2E, RUN, Study
from abft.model.qk_weights import K, Q

CHANGES = {
    "models_R": "after (the run), and e2e where one was given",
    "layers_L": "number in the model of every attention layer, from 0",
    "norm_RLP": "Frobenius norm of the change of W_Q (0) and of W_K (1)",
    "base_norm_LP": "Frobenius norm of the weight itself; NaN where it is quantised",
    "effective_rank_RLP": "exp of the entropy of the singular values' shares (Roy and Vetterli "
    "2007); 0 for no change",
}


def changes(study: Study) -> dict[str, np.ndarray]:
    """Norms and effective ranks of the changes of W_Q and W_K; E2E changes of other weights are not
    counted.
    """
    runs = {"after": RUN} | ({"e2e": E2E} if "e2e" in study.models else {})
    study.space.move({})
    index = {layer: i for i, layer in enumerate(study.layers)}
    shape = (len(runs), len(study.layers), 2)
    squares, ranks = np.zeros(shape), np.zeros(shape)
    base = np.zeros(shape[1:])
    for qk in study.space.modules:
        weight = study.space.weight(qk)
        for role in (Q, K):
            rows = qk.roles == role
            if rows.any():
                base[index[qk.layer], role] += (
                    float("nan") if weight is None else weight[rows].square().sum().item()
                )
    for r, run in enumerate(runs.values()):
        values: dict[tuple[int, int], list[Tensor]] = {}
        for qk, change in tqdm(
            study.space.changes(run), desc="changes of weights", unit="matrix", file=sys.stderr
        ):
            for role in (Q, K):
                rows = qk.roles == role
                if not rows.any():
                    continue
                at = index[qk.layer], role
                singular = torch.linalg.svdvals(change[rows])
                squares[(r, *at)] += singular.square().sum().item()
                values.setdefault(at, []).append(singular)
        for (
            at,
            singular_values,
        ) in values.items():  # several modules (MLA) act side by side: a direct sum
            ranks[(r, *at)] = effective_rank(torch.cat(singular_values))
    return {
        "models_R": np.array(list(runs)),
        "layers_L": np.array(study.layers),
        "norm_RLP": np.sqrt(squares),
        "base_norm_LP": np.sqrt(base),
        "effective_rank_RLP": ranks,
    }


def effective_rank(singular_values: Tensor) -> float:
    """exp(entropy of sigma / sum sigma); n for n equal singular values, 0 if all are 0."""
    total = singular_values.sum()
    if total == 0:
        return 0.0
    share = (singular_values / total).double()
    return float(torch.exp(-(share[share > 0] * share[share > 0].log()).sum()))
