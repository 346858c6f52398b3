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


def batch_prior(probabilities_NC: np.ndarray, content_free_NC: np.ndarray) -> np.ndarray:
    """Return the mean prediction of a batch and of content-free texts, which count as a few."""
    weighted_C = CONTENT_FREE_WEIGHT * prior(content_free_NC)
    count = len(probabilities_NC) + CONTENT_FREE_WEIGHT
    return (np.asarray(probabilities_NC).sum(0) + weighted_C) / count


def calibrated(probabilities_NC: np.ndarray, prior_C: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return p / prior, normalised, (N, C): a prediction that equals the prior becomes uniform."""
    # A prior of 0 would divide by zero; labels of many tokens have small ones, but none of 0.
    smallest = np.finfo(float).tiny
    ratios_NC = np.asarray(probabilities_NC) / np.maximum(np.asarray(prior_C, float), smallest)
    return ratios_NC / ratios_NC.sum(1, keepdims=True)
