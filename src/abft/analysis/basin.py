"""Measure accuracy between and beyond the weights of runs (Fig. 7, 9).

The plane is theta0 + e (theta_E2E - theta0) + a (theta_ABFT - theta0); the line goes beyond a = 1.
"""

import numpy as np

from abft.analysis.study import E2E, RUN, Study, accuracy_of
from abft.runs.session import progress_bar

LINE = {
    "a_A": "factors of the run's change",
    "accuracy_A": "accuracy at theta0 + a (theta_run - theta0)",
    "prompts": "test prompts at every point",
}

PLANE = {
    "e_E": "factors of the E2E run's change",
    "a_A": "factors of the run's change",
    "accuracy_EA": "accuracy at theta0 + e (theta_E2E - theta0) + a (theta_run - theta0)",
    "prompts": "test prompts at every point",
}

EXTRAPOLATION = np.linspace(0, 2, 9)


def line(study: Study, count: int) -> dict[str, np.ndarray]:
    """Return the accuracy from the untouched model through the run's model to twice the change.

    It is measured on the first `count` test prompts.
    """
    accuracy_EA = _accuracies(study, count, [0.0], EXTRAPOLATION.tolist(), "extrapolation")
    return {"a_A": EXTRAPOLATION, "accuracy_A": accuracy_EA[0], "prompts": _prompts(study, count)}


def plane(study: Study, count: int, resolution: int) -> dict[str, np.ndarray]:
    """Return the accuracy on `resolution` x `resolution` points, both factors from -0.5 to 1.5.

    It is measured on the first `count` test prompts.
    """
    factors = np.linspace(-0.5, 1.5, resolution)
    accuracy_EA = _accuracies(study, count, factors.tolist(), factors.tolist(), "basin")
    return {
        "e_E": factors,
        "a_A": factors,
        "accuracy_EA": accuracy_EA,
        "prompts": _prompts(study, count),
    }


def _prompts(study: Study, count: int) -> np.ndarray:
    """Return how many test prompts are measured at every point."""
    return np.array(min(count, len(study.session.written)))


def _accuracies(
    study: Study, count: int, e_factors: list[float], a_factors: list[float], title: str
) -> np.ndarray:
    """Return the accuracy at every pair of factors, (E2E run's, run's)."""
    prompts = study.prompts[:count]
    accuracy_EA = np.zeros((len(e_factors), len(a_factors)))

    with progress_bar(title, len(prompts) * accuracy_EA.size) as bar:
        for i, e in enumerate(e_factors):
            for j, a in enumerate(a_factors):
                # The line is also drawn where there is no E2E run, which then cannot be named.
                factors = {RUN: a} | ({E2E: e} if e != 0 else {})
                probabilities, _ = study.evaluate(factors, prompts, bar)
                accuracy_EA[i, j] = accuracy_of(probabilities, prompts)
    return accuracy_EA
