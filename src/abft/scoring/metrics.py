"""Compute metrics of label probabilities and predictions; numpy only."""

from collections.abc import Sequence

import numpy as np


def _checked(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays. Raises ValueError for other shapes, or rows that do not sum to 1."""
    probabilities, targets = np.asarray(probabilities_NC, dtype=float), np.asarray(targets_N)
    if probabilities.ndim != 2 or len(probabilities) != len(targets) or len(targets) == 0:
        raise ValueError(
            f"expected probabilities (N, C) and N > 0 targets, got {probabilities.shape} and "
            f"{targets.shape}"
        )

    # Half precision and float32 sums are off by rounding.
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise ValueError(
            "expected probabilities: every row non-negative and summing to 1 (within 1e-4)"
        )
    return probabilities, targets


def accuracy(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Return the share of predictions (argmax) that equal the target."""
    probabilities, targets = _checked(probabilities_NC, targets_N)
    return float((probabilities.argmax(1) == targets).mean())


def accuracy_interval(accuracy: float, queries: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95% interval of an accuracy measured on a number of independent queries.

    Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953. Several prompts with the same
    query count once.
    """
    centre = accuracy + z * z / (2 * queries)
    margin = z * np.sqrt(accuracy * (1 - accuracy) / queries + (z / (2 * queries)) ** 2)
    scale = 1 + z * z / queries
    low, high = (centre - margin) / scale, (centre + margin) / scale
    return max(0.0, float(low)), min(1.0, float(high))


def macro_f1(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Return the mean over all C classes of F1 = 2 TP / (2 TP + FP + FN).

    A class with neither targets nor predictions counts 0.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    predictions = probabilities.argmax(1)

    scores = []
    for c in range(probabilities.shape[1]):
        hits = np.sum((predictions == c) & (targets == c))
        involved = np.sum(predictions == c) + np.sum(targets == c)
        scores.append(2 * hits / involved if involved else 0.0)
    return float(np.mean(scores))


def never_predicted(predictions_N: np.ndarray, targets_N: np.ndarray) -> list[int]:
    """Return the classes that are a target but no prediction, ascending."""
    return sorted(set(targets_N.tolist()) - set(predictions_N.tolist()))


def expected_calibration_error(
    probabilities_NC: np.ndarray, targets_N: np.ndarray, bins: int = 10
) -> float:
    """Return the ECE, in [0, 1], with confidence bins of equal width.

    The last bin is closed (confidence 1 counts). Unlike in StaICC 0.1.1, no softmax is taken of
    values that are probabilities already.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == targets

    # A bin's gap |accuracy - confidence|, weighted by its share of N, is a difference of sums.
    bin_N = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = (abs(np.sum(correct[bin_N == b]) - np.sum(confidence[bin_N == b])) for b in range(bins))
    return float(sum(gaps) / len(targets))


def scores(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> dict[str, float]:
    """Return accuracy, macro_f1 and ece."""
    return {
        "accuracy": accuracy(probabilities_NC, targets_N),
        "macro_f1": macro_f1(probabilities_NC, targets_N),
        "ece": expected_calibration_error(probabilities_NC, targets_N),
    }


def consistency(predictions_VN: np.ndarray) -> float:
    """Return the share of a query's V prompt variants that agree, mean over N queries.

    Those that agree are the largest group of variants with the same prediction.
    """
    predictions = np.asarray(predictions_VN)
    if predictions.ndim != 2 or predictions.size == 0:
        raise ValueError(f"expected predictions (V, N), got {predictions.shape}")

    groups = [np.unique(column, return_counts=True)[1].max() for column in predictions.T]
    return float(np.mean(groups) / len(predictions))


def gler(error_rates_R: Sequence[float], values_R: Sequence[float]) -> float:
    """Return the slope of a metric against the share of correct labels in the demonstrations.

    0 = the labels are not read. Here x = 1 - rate; for rates of 0, 0.25, 0.5, 0.75, 1, StaICC 0.1.1
    fits the line to x = 1, 0.75, 0.25, -0.5, -1.5.
    """
    # The line's first coefficient is its slope.
    return float(np.polyfit(1 - np.asarray(error_rates_R), np.asarray(values_R), 1)[0])


def prior_entropy(probabilities_NC: np.ndarray) -> float:
    """Return the entropy of the mean prediction, in nats; ln C = no bias.

    Unlike in StaICC 0.1.1, no softmax is taken of a mean whose floats do not sum to exactly 1.
    """
    mean_C = np.asarray(probabilities_NC).mean(0)
    # 0 log 0 = 0: such classes add nothing.
    positive = mean_C[mean_C > 0]
    return float(-(positive * np.log(positive)).sum())


def prior_bias(probabilities_NC: np.ndarray) -> float:
    """Return 1 - entropy / ln C of the mean prediction: 0 = no bias, 1 = one class always.

    It is comparable between tasks.
    """
    C = np.asarray(probabilities_NC).shape[1]
    return 1 - prior_entropy(probabilities_NC) / float(np.log(C))


def posterior_bias(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Return the KL divergence, in nats, of the mean prediction from the targets' distribution.

    It is infinite if a predicted class has no target.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    mean_C = probabilities.mean(0)
    shares_C = np.bincount(targets, minlength=probabilities.shape[1]) / len(targets)

    # 0 log 0 = 0: classes without a probability add nothing.
    support = mean_C > 0
    means, shares = mean_C[support], shares_C[support]
    with np.errstate(divide="ignore"):
        return float((means * np.log(means / shares)).sum())
