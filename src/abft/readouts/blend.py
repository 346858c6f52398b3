"""A regularised logistic regression over log-probabilities: calibrates one, or blends several."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from abft.readouts.probe import log_softmax


@dataclass(frozen=True)
class Blend:
    """Adds log-probabilities of R sources with one weight each, and a bias for every class.

    Attributes:
        weights: (R,).
        bias: (C,).
    """

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, log_NRC: np.ndarray, labels_N: np.ndarray, weights_N: np.ndarray | None = None
    ) -> "Blend":
        """Minimise the sum of log losses, plus half the squared distance from the sources' mean.

        That mean has weights of 1 / R and no bias; with few texts, the fit stays close to it.
        `weights_N`: weights of the texts' log losses; None = 1 each.
        """
        N, R, C = log_NRC.shape
        start = np.concatenate([np.full(R, 1 / R), np.zeros(C)])
        rows = np.arange(N)
        by_text_N = np.ones(N) if weights_N is None else weights_N

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            weights_R, bias_C = values[:R], values[R:]
            log_NC = log_softmax(np.einsum("nrc,r->nc", log_NRC, weights_R) + bias_C)
            error_NC = np.exp(log_NC)
            error_NC[rows, labels_N] -= 1
            error_NC *= by_text_N[:, None]
            slopes = np.concatenate([np.einsum("nrc,nc->r", log_NRC, error_NC), error_NC.sum(0)])
            distance = values - start
            loss = -by_text_N @ log_NC[rows, labels_N] + distance @ distance / 2
            return loss, slopes + distance

        values = minimize(objective, start, jac=True, method="L-BFGS-B").x
        return cls(values[:R], values[R:])

    def log_probabilities(self, log_NRC: np.ndarray) -> np.ndarray:
        """Return blended log-probabilities, (N, C)."""
        return log_softmax(np.einsum("nrc,r->nc", log_NRC, self.weights) + self.bias)
