import contextlib
import io

import numpy as np
import pytest
from sklearn.metrics import f1_score

from abft.scoring.metrics import accuracy, expected_calibration_error, macro_f1


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
