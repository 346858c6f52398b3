import contextlib
import io
import math
from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from abft.scoring.metrics import (
    accuracy,
    accuracy_interval,
    consistency,
    expected_calibration_error,
    gler,
    macro_f1,
    posterior_bias,
    prior_bias,
    prior_entropy,
    scores,
)


def sample(n=1000, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(classes), n)
    return probabilities, generator.integers(0, classes, n)


def test_macro_f1_equals_sklearn():
    probabilities, targets = sample()
    expected = f1_score(targets, probabilities.argmax(1), average="macro")
    assert macro_f1(probabilities, targets) == pytest.approx(expected, abs=1e-12)


def test_equal_staicc_where_staicc_is_right():
    functional = pytest.importorskip("StaICC.util.functional")
    probabilities, targets = sample()
    listed = probabilities.tolist(), targets.tolist()
    assert accuracy(probabilities, targets) == pytest.approx(
        functional.accuracy(listed[1], listed[0])
    )
    assert macro_f1(probabilities, targets) == pytest.approx(
        functional.macro_F1(listed[1], listed[0])
    )
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = functional.expected_calibration_error_1(listed[1], listed[0])
    # StaICC takes a second softmax of probabilities, because a float sum is not exactly 1.
    assert abs(theirs - expected_calibration_error(probabilities, targets)) > 0.05


def test_oracles():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(certain, [0, 1, 2, 0]) == 0
    assert expected_calibration_error(certain, [1, 2, 0, 1]) == 1  # all confident, all wrong
    assert accuracy(certain, [0, 1, 2, 1]) == 0.75
    even = np.full((100, 2), 0.5)
    assert expected_calibration_error(even, [0, 1] * 50) == pytest.approx(0)


def test_ece_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.91, 0.09], [0.4, 0.6]])
    gap = abs((0.95 + 0.91) - 1) + abs(0.6 - 1)
    assert expected_calibration_error(probabilities, [0, 1, 1]) == pytest.approx(gap / 3)


@pytest.mark.parametrize("bad", [[[2.0, -1.0]], [[0.5, 0.4]], [[3.0, 1.0]]])
def test_refuses_what_is_no_probability(bad):
    with pytest.raises(ValueError, match="probabilities"):
        accuracy(np.array(bad), [0])


def test_classes_without_targets_or_predictions_count_as_in_sklearn():
    # Of five classes, 2 has targets only, 3 predictions only, 4 neither.
    predicted, targets = [0, 0, 1, 3, 0, 1], [0, 1, 1, 2, 2, 0]
    probabilities = np.eye(5)[predicted]
    expected = f1_score(targets, predicted, average="macro", labels=range(5), zero_division=0)
    assert macro_f1(probabilities, np.array(targets)) == pytest.approx(expected, abs=1e-12)
    assert scores(probabilities, np.array(targets)) == {
        "accuracy": accuracy_score(targets, predicted),
        "macro_f1": pytest.approx(expected, abs=1e-12),
        "ece": expected_calibration_error(probabilities, targets),
    }


def test_equal_probabilities_predict_the_first_class():
    even = np.array([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]])
    assert accuracy(even, [0, 1]) == 1
    assert accuracy(even, [3, 3]) == 0


def brute_force_ece(probabilities, targets, bins):
    """Prompt by prompt, in exact arithmetic: bins [b / B, (b + 1) / B), the last one closed."""
    total = Fraction(0)
    for b in range(bins):
        low, high = Fraction(b, bins), Fraction(b + 1, bins)
        members = [
            (Fraction(max(row)), list(row).index(max(row)) == target)
            for row, target in zip(probabilities.tolist(), targets, strict=True)
            if low <= Fraction(max(row)) < high or max(row) == high == 1
        ]
        if members:
            correct = Fraction(sum(hit for _, hit in members), len(members))
            confidence = sum(value for value, _ in members) / len(members)
            total += abs(correct - confidence) * Fraction(len(members), len(targets))
    return float(total)


@pytest.mark.parametrize("bins", [2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_ece_with_confidences_on_the_borders_of_bins(bins, seed):
    """Multiples of 1/16, which floats hold exactly; the first bin and the last are filled."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(16, generator.dirichlet(np.full(16, 0.3), 40))
    probabilities = np.concatenate([counts / 16, np.full((3, 16), 1 / 16), np.eye(16)[:2]])
    targets = [int(generator.choice(16, p=row)) for row in probabilities]
    assert 2 < (probabilities.max(1) * bins % 1 == 0).sum() < 45

    measured = expected_calibration_error(probabilities, targets, bins)
    assert measured == pytest.approx(brute_force_ece(probabilities, targets, bins), abs=1e-12)


def test_ece_has_ten_bins():
    probabilities, _ = sample()
    generator = np.random.default_rng(1)
    targets = [int(generator.choice(4, p=row)) for row in probabilities]
    tenths = brute_force_ece(probabilities, targets, 10)
    assert expected_calibration_error(probabilities, targets) == pytest.approx(tenths, abs=1e-12)
    for others in (9, 11, 15, 20):
        assert abs(tenths - brute_force_ece(probabilities, targets, others)) > 1e-4


def test_consistency_by_hand():
    # Four queries in the columns, three variants of each prompt in the rows.
    predictions = [[0, 0, 0, 2], [0, 1, 1, 2], [0, 0, 2, 1]]
    assert consistency(predictions) == pytest.approx((1 + 2 / 3 + 1 / 3 + 2 / 3) / 4)
    for bad in ([0, 1], np.zeros((2, 0))):
        with pytest.raises(ValueError, match="expected predictions"):
            consistency(bad)


def test_gler_by_hand():
    # x = 1, 0.5, 0: the slope is sum (x - 1/2) y / sum (x - 1/2)^2.
    assert gler([0, 0.5, 1], [0.9, 0.6, 0.1]) == pytest.approx((0.5 * 0.9 - 0.5 * 0.1) / 0.5)
    # Rates in unequal steps: x = 1, 0.75, 0 with the mean 7/12.
    x, y = np.array([1, 0.75, 0]) - 7 / 12, np.array([0.5, 0.5, 0.2])
    assert gler([0, 0.25, 1], y) == pytest.approx((x * y).sum() / (x * x).sum())


def test_biases_by_hand():
    # The mean prediction is (1/2, 1/4, 1/4, 0).
    probabilities = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0]])
    assert prior_entropy(probabilities) == pytest.approx(1.5 * math.log(2))
    assert prior_bias(probabilities) == pytest.approx(1 - 1.5 / 2)
    rare = 7 / 8 * math.log(8 / 7) + 1 / 8 * math.log(8)
    assert prior_entropy(np.array([[0.75, 0.25], [1, 0]])) == pytest.approx(rare)
    assert prior_bias(np.eye(4)) == pytest.approx(0)
    assert prior_bias(np.eye(4)[[2, 2]]) == 1

    # Targets (1/4, 1/4, 1/2, 0), (0, 1/4, 1/4, 1/2) and (1/2, 1/4, 0, 1/4).
    twice = np.repeat(probabilities, 2, axis=0)
    divergence = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert posterior_bias(twice, [0, 1, 2, 2]) == pytest.approx(divergence)
    assert posterior_bias(np.tile(twice, (3, 1)), [0, 1, 2, 2] * 3) == pytest.approx(divergence)
    assert posterior_bias(twice, [3, 1, 2, 3]) == math.inf
    # A class that is never predicted adds nothing, whatever its share of the targets.
    assert posterior_bias(twice, [0, 1, 2, 3]) == pytest.approx(0.5 * math.log(2))


@pytest.mark.parametrize("metric", [accuracy, macro_f1, expected_calibration_error, posterior_bias])
def test_sums_are_checked_within_rounding(metric):
    metric(np.array([[0.5, 0.50009], [1, 0]]), [0, 1])
    for off in (0.002, -0.002):
        with pytest.raises(ValueError, match="probabilities"):
            metric(np.array([[0.5, 0.5 + off], [1, 0]]), [0, 1])
    with pytest.raises(ValueError, match="non-negative"):
        metric(np.array([[0.5, 0.5], [1.5, -0.5]]), [0, 1])
    for shape, targets in (((2, 2), [0]), ((0, 2), []), ((2,), [0, 1])):
        with pytest.raises(ValueError, match="expected probabilities"):
            metric(np.full(shape, 0.5), targets)


def test_wilsons_interval_holds_the_accuracies_that_would_not_be_surprising():
    """Its ends are the accuracies p for which the measured one is 1.96 standard errors away."""
    for measured, n in ((0.8, 50), (0.05, 20), (0.5, 512)):
        for end in accuracy_interval(measured, n):
            assert abs(measured - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n))
    assert accuracy_interval(1.0, 5) == pytest.approx((5 / (5 + 1.96**2), 1.0))
    assert accuracy_interval(0.0, 5)[0] == 0
