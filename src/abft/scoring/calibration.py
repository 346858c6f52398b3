"""Calibrate label probabilities: divide by a prior, so that no label is favoured in advance.

The prior is what the model predicts after the same demonstrations where there is nothing to
classify (Zhao et al. 2021, arXiv 2102.09690), or on average for the texts that are predicted
(batch calibration, Zhou et al. 2023, arXiv 2309.17249).
"""

from collections.abc import Sequence

import numpy as np

CONTENT_FREE = ("N/A", "[MASK]", "")  # the queries of the paper by Zhao et al.

# In batch calibration, texts without content count as this many texts of the batch, which matters
# in small batches. Chosen on AGNews (docs/reader-results.md).
CONTENT_FREE_WEIGHT = 4


def prior(probabilities_NC: np.ndarray) -> np.ndarray:
    """Return the mean prediction, (C,)."""
    return np.asarray(probabilities_NC).mean(0)


class BatchPrior:
    """Computes the mean prediction of a batch, which may come in parts, and of content-free texts.

    Args:
        content_free_NC: predictions for texts without content, which count as a few of the batch.
    """

    def __init__(self, content_free_NC: np.ndarray) -> None:
        self._sum_C = CONTENT_FREE_WEIGHT * prior(content_free_NC)
        self._count = CONTENT_FREE_WEIGHT

    def add(self, probabilities_NC: np.ndarray) -> None:
        """Count a part of the batch; rows of NaN, which are no predictions, are left out."""
        predictions_NC = np.asarray(probabilities_NC)
        predictions_NC = predictions_NC[~np.isnan(predictions_NC).any(1)]
        self._sum_C = self._sum_C + predictions_NC.sum(0)
        self._count += len(predictions_NC)

    @property
    def mean(self) -> np.ndarray:
        """Return the mean over all parts, (C,)."""
        return self._sum_C / self._count


def batch_prior(probabilities_NC: np.ndarray, content_free_NC: np.ndarray) -> np.ndarray:
    """Return the mean prediction of a whole batch and of content-free texts, (C,)."""
    batch = BatchPrior(content_free_NC)
    batch.add(probabilities_NC)
    return batch.mean


def calibrated(probabilities_NC: np.ndarray, prior_C: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return p / prior, normalised, (N, C): a prediction that equals the prior becomes uniform."""
    # A prior of 0 would divide by zero; labels of many tokens have small ones, but none of 0.
    smallest = np.finfo(float).tiny
    ratios_NC = np.asarray(probabilities_NC) / np.maximum(np.asarray(prior_C, float), smallest)
    return ratios_NC / ratios_NC.sum(1, keepdims=True)
