"""Accuracy, macro-F1 and expected calibration error of label probabilities; numpy only."""

import numpy as np


def _checked(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, targets = np.asarray(probabilities_NC, dtype=float), np.asarray(targets_N)
    if probabilities.ndim != 2 or len(probabilities) != len(targets) or len(targets) == 0:
        raise ValueError(f"expected probabilities (N, C) and N > 0 targets, got {probabilities.shape} and {targets.shape}")
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(1), 1, atol=1e-4):
        raise ValueError("expected probabilities: every row non-negative and summing to 1 (within 1e-4)")
    return probabilities, targets


def accuracy(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Share of predictions (argmax) that equal the target."""
    probabilities, targets = _checked(probabilities_NC, targets_N)
    return float((probabilities.argmax(1) == targets).mean())


def macro_f1(probabilities_NC: np.ndarray, targets_N: np.ndarray) -> float:
    """Mean over all C classes of 2 TP / (2 TP + FP + FN); a class with neither targets nor predictions counts 0."""
    probabilities, targets = _checked(probabilities_NC, targets_N)
    predictions = probabilities.argmax(1)
    scores = []
    for c in range(probabilities.shape[1]):
        hits = np.sum((predictions == c) & (targets == c))
        involved = np.sum(predictions == c) + np.sum(targets == c)
        scores.append(2 * hits / involved if involved else 0.0)
    return float(np.mean(scores))


def expected_calibration_error(probabilities_NC: np.ndarray, targets_N: np.ndarray, bins: int = 10) -> float:
    """ECE with equal-width confidence bins, the last one closed (confidence 1 counts); in [0, 1].

    Unlike StaICC 0.1.1 no softmax is taken of what is a probability already.
    """
    probabilities, targets = _checked(probabilities_NC, targets_N)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == targets
    bin_N = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = (abs(np.sum(correct[bin_N == b]) - np.sum(confidence[bin_N == b])) for b in range(bins))
    return float(sum(gaps) / len(targets))
