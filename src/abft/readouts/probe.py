"""A linear probe: logistic regressions on the hidden states of the query (arXiv 2405.10738)."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

# C of a logistic regression on standardised hidden states. Chosen on training pools, as was the
# mean over views: one regression on all of them together is worse (results/readouts/pilot.txt).
STRENGTHS = (0.003, 0.03, 0.3)


@dataclass(frozen=True)
class Probe:
    """One logistic regression per view (hidden state); their log-probabilities are averaged.

    Attributes:
        centre, scale: mean and standard deviation of each view's entries, (V, D).
        weight: (V, C, D); bias: (V, C).
    """

    centre: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls,
        views_NVD: np.ndarray,
        labels_N: np.ndarray,
        classes: int,
        strength: float,
        weights_N: np.ndarray | None = None,
    ) -> "Probe":
        """Fit on N texts. A class that none of them has gets a small probability.

        With no text at all, all classes are equally probable.

        Args:
            strength: C, the inverse of the regularisation.
            weights_N: weights of the texts; None = equal.
        """
        N, V, D = views_NVD.shape
        if N == 0:
            centre_VD, bias_VC = np.zeros((V, D), np.float32), np.zeros((V, classes), np.float32)
            weight_VCD = np.zeros((V, classes, D), np.float32)
            return cls(centre_VD, np.ones_like(centre_VD), weight_VCD, bias_VC)

        centre_VD = views_NVD.mean(0)
        scale_VD = views_NVD.std(0)
        # An entry that never varies says nothing.
        scale_VD = np.where(scale_VD > 1e-6, scale_VD, 1.0)

        weight_VCD = np.zeros((V, classes, D), np.float32)
        bias_VC = np.full((V, classes), _UNSEEN, np.float32)
        seen = np.unique(labels_N)
        if len(seen) == 1:
            bias_VC[:, seen] = 0
            return cls(centre_VD, scale_VD, weight_VCD, bias_VC)

        for v in range(V):
            inputs_ND = (views_NVD[:, v] - centre_VD[v]) / scale_VD[v]
            regression = LogisticRegression(C=strength, max_iter=100, tol=1e-3)
            with warnings.catch_warnings():
                # A few more iterations would change no prediction.
                warnings.simplefilter("ignore", ConvergenceWarning)
                regression.fit(inputs_ND, labels_N, weights_N)

            # For two classes, scikit-learn has one row: the second's log-odds.
            rows, biases = regression.coef_, regression.intercept_
            if len(seen) == 2:
                rows, biases = (
                    np.stack([-rows[0], rows[0]]) / 2,
                    np.stack([-biases, biases])[:, 0] / 2,
                )
            weight_VCD[v, seen], bias_VC[v, seen] = rows, biases
        return cls(centre_VD, scale_VD, weight_VCD, bias_VC)

    def log_probabilities(self, views_NVD: np.ndarray) -> np.ndarray:
        """Return the mean over views of the log-probabilities, (N, C), normalised."""
        inputs_NVD = (views_NVD - self.centre) / self.scale
        logits_NVC = np.einsum("nvd,vcd->nvc", inputs_NVD, self.weight) + self.bias
        return log_softmax(log_softmax(logits_NVC).mean(1))


_UNSEEN = -6.0  # bias of a class without texts


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis, float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_loss(log_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the mean of -log p of the correct class."""
    return float(-log_NC[np.arange(len(labels_N)), labels_N].mean())
