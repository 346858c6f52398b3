"""Metrics of label probabilities and predictions; numpy only."""

from collections.abc import Sequence

import numpy as np


def _checked(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, targets = np.asarray(probabilities_NC, dtype=float), np.asarray(targets_N)
    if probabilities.ndim != 2 or len(probabilities) != len(targets) or len(targets) == 0:
        raise ValueError(
            f"expected probabilities (N, C) and N > 0 targets, got {probabilities.shape} and "
            f"{targets.shape}"
        )
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise ValueError(
            "expected probabilities: every row non-negative and summing to 1 (within 1e-4)"
        )
    return probabilities, targets


def accuracy(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Share of predictions (argmax) that equal the target."""
    probabilities, targets = _checked(probabilities_NC, targets_N)
    return float((probabilities.argmax(1) == targets).mean())


def macro_f1(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Mean over all C classes of 2 TP / (2 TP + FP + FN); a class with neither targets nor
    predictions counts 0.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    predictions = probabilities.argmax(1)
    scores = []
    for c in range(probabilities.shape[1]):
        hits = np.sum((predictions == c) & (targets == c))
        involved = np.sum(predictions == c) + np.sum(targets == c)
        scores.append(2 * hits / involved if involved else 0.0)
    return float(np.mean(scores))


def expected_calibration_error(
    probabilities_NC: np.ndarray, targets_N: np.ndarray, bins: int = 10
) -> float:
    """ECE with equal-width confidence bins, the last one closed (confidence 1 counts); in [0, 1].

    Unlike StaICC 0.1.1 no softmax is taken of what is a probability already.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == targets
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
    """Share of equal predictions for one query: its largest group over the V variants of a prompt,
    mean over N queries.
    """
    predictions = np.asarray(predictions_VN)
    if predictions.ndim != 2 or predictions.size == 0:
        raise ValueError(f"expected predictions (V, N), got {predictions.shape}")
    groups = [np.unique(column, return_counts=True)[1].max() for column in predictions.T]
    return float(np.mean(groups) / len(predictions))


def gler(error_rates_R: Sequence[float], values_R: Sequence[float]) -> float:
    """Slope of a metric against the share of correct labels in the demonstrations; 0 = labels are not
    read.

    x is 1 - rate here; for rates of 0, 0.25, 0.5, 0.75, 1 StaICC 0.1.1 fits the line to x = 1,
    0.75, 0.25, -0.5, -1.5.
    """
    return float(np.polyfit(1 - np.asarray(error_rates_R), np.asarray(values_R), 1)[0])


def prior_entropy(probabilities_NC: np.ndarray) -> float:
    """Entropy of the mean prediction, in nats; ln C = no bias.

    Unlike StaICC 0.1.1 no softmax is taken of a mean whose floats do not sum to exactly 1.
    """
    mean_C = np.asarray(probabilities_NC).mean(0)
    return float(-(mean_C[mean_C > 0] * np.log(mean_C[mean_C > 0])).sum())


def prior_bias(probabilities_NC: np.ndarray) -> float:
    """1 - entropy / ln C of the mean prediction: 0 = no bias, 1 = one class always; comparable
    between tasks.
    """
    return 1 - prior_entropy(probabilities_NC) / float(
        np.log(np.asarray(probabilities_NC).shape[1])
    )


def posterior_bias(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """KL divergence, in nats, of the mean prediction from the distribution of the targets; infinite
    if a class has none.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    mean_C = probabilities.mean(0)
    shares_C = np.bincount(targets, minlength=probabilities.shape[1]) / len(targets)
    present = mean_C > 0
    with np.errstate(divide="ignore"):
        return float((mean_C[present] * np.log(mean_C[present] / shares_C[present])).sum())
