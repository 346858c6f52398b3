"""Measure how much W_Q and W_K changed by layer (Fig. 17-19), and in how many directions."""

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
    """Return norms and effective ranks of the changes of W_Q and W_K.

    An E2E run's changes of other weights are not counted.
    """
    runs = {"after": RUN} | ({"e2e": E2E} if "e2e" in study.models else {})
    index = {layer: i for i, layer in enumerate(study.layers)}

    # Squares are summed over the modules of a layer: the norm is that of all of them together.
    study.space.move({})
    base_squares = np.zeros((len(study.layers), 2))
    for qk in study.space.modules:
        weight = study.space.weight(qk)
        for role in (Q, K):
            rows = qk.roles == role
            if rows.any():
                square = float("nan") if weight is None else weight[rows].square().sum().item()
                base_squares[index[qk.layer], role] += square

    squares = np.zeros((len(runs), len(study.layers), 2))
    ranks = np.zeros_like(squares)
    for r, run in enumerate(runs.values()):
        spectra: dict[tuple[int, int], list[Tensor]] = {}
        matrices = tqdm(
            study.space.changes(run), desc="changes of weights", unit="matrix", file=sys.stderr
        )
        for qk, change in matrices:
            for role in (Q, K):
                rows = qk.roles == role
                if not rows.any():
                    continue
                place = index[qk.layer], role
                singular_values = change.singular_values(rows)
                squares[(r, *place)] += singular_values.square().sum().item()
                spectra.setdefault(place, []).append(singular_values)

        # Several modules of a layer (MLA) act side by side: together they are a direct sum.
        for place, spectrum in spectra.items():
            ranks[(r, *place)] = effective_rank(torch.cat(spectrum))

    return {
        "models_R": np.array(list(runs)),
        "layers_L": np.array(study.layers),
        "norm_RLP": np.sqrt(squares),
        "base_norm_LP": np.sqrt(base_squares),
        "effective_rank_RLP": ranks,
    }


def effective_rank(singular_values: Tensor) -> float:
    """Return exp(entropy of sigma / sum sigma): n for n equal singular values, 0 if all are 0."""
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = (singular_values / total).double()
    shares = shares[shares > 0]  # the limit of p log p at 0 is 0
    entropy = -(shares * shares.log()).sum()
    return float(torch.exp(entropy))
