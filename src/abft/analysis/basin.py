"""Accuracy on the plane theta0 + e (theta_E2E - theta0) + a (theta_ABFT - theta0), and beyond a = 1
(Fig. 7, 9).
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
    """Accuracy from the untouched model through the run's to twice the change, on the first `count`
    test prompts.
    """
    accuracy_EA = _accuracies(study, count, [0.0], EXTRAPOLATION.tolist(), "extrapolation")
    return {"a_A": EXTRAPOLATION, "accuracy_A": accuracy_EA[0], "prompts": _used(study, count)}


def plane(study: Study, count: int, resolution: int) -> dict[str, np.ndarray]:
    """Accuracy on a grid of `resolution` x `resolution` points, both factors from -0.5 to 1.5."""
    factors = np.linspace(-0.5, 1.5, resolution)
    accuracy_EA = _accuracies(study, count, factors.tolist(), factors.tolist(), "basin")
    return {
        "e_E": factors,
        "a_A": factors,
        "accuracy_EA": accuracy_EA,
        "prompts": _used(study, count),
    }


def _used(study: Study, count: int) -> np.ndarray:
    return np.array(min(count, len(study.session.written)))


def _accuracies(
    study: Study, count: int, es: list[float], as_: list[float], title: str
) -> np.ndarray:
    prompts = study.prompts[:count]
    accuracy = np.zeros((len(es), len(as_)))
    with progress_bar(title, len(prompts) * accuracy.size) as bar:
        for i, e in enumerate(es):
            for j, a in enumerate(as_):
                at = {RUN: a} | ({E2E: e} if e != 0 else {})
                said, _ = study.evaluate(at, prompts, bar)
                accuracy[i, j] = accuracy_of(said, prompts)
    return accuracy
