"""Tables of RESULTS.md, section "Accuracy"."""

from collections.abc import Sequence

import numpy as np

from recomputing.bench import (
    COMPARED,
    KEPT_METRIC,
    SEEDS,
    TASKS,
    TITLES,
    TRAINED,
    Bench,
    by_task,
)
from recomputing.pages import Expected, number, plain, write
from recomputing.statistics import in_parentheses, mean_estimate


def table_1(bench: Bench, metric: str) -> Expected:
    """Recompute a table in the layout of the paper's Table 1."""
    rows = {}
    for scenario, suffix in (("zero_shot", ", zero-shot"), ("standard", "")):
        for method in COMPARED:
            rows[(TITLES[method] + suffix,)] = by_task(
                lambda task, m=method, s=scenario: bench.metric(task, m, s, metric), 100
            )
    note = KEPT_METRIC if metric == "ece" else ""
    return Expected(("method", *TASKS, "mean"), rows, ("method",), note)


def of_seeds(bench: Bench) -> Expected:
    """Recompute the mean and the standard deviation over seeds."""
    rows = {}
    for method in ("vanilla", *TRAINED):
        accuracies = np.array(
            [[bench.accuracy(task, method, seed=seed) for seed in SEEDS] for task in TASKS]
        )
        by_seed = 100 * np.vstack([accuracies, accuracies.mean(axis=0)])
        rows[(TITLES[method],)] = [
            write("{} ± {}", number(values.mean(), 1), number(values.std(ddof=1), 1))
            for values in by_seed
        ]
    return Expected(("method", *TASKS, "mean"), rows, ("method",))


def differences(
    bench: Bench, methods: Sequence[str] = COMPARED[1:], reference: str = "vanilla"
) -> Expected:
    """Recompute differences to a method, over all seeds of both."""
    rows = {}
    for method in methods:
        seeds = SEEDS if method in TRAINED else (0,)
        estimates = [
            bench.difference(task, method, reference=reference, seeds=seeds) for task in TASKS
        ]
        rows[(TITLES[method],)] = [
            in_parentheses(estimate) for estimate in (*estimates, mean_estimate(estimates))
        ]
    return Expected(("method", *TASKS, "mean"), rows, ("method",))


def differences_to_e2e(bench: Bench) -> Expected:
    """Recompute differences to end-to-end training of the same weights."""
    return differences(bench, ("abft", "vote_and_cross_entropy"), "e2e")


def heads(bench: Bench) -> Expected:
    """Read the numbers of heads over the threshold."""
    rows = {
        (TITLES[method],): by_task(
            lambda task, m=method: bench.metric(task, m, "standard", "heads")
        )
        for method in COMPARED
    }
    return Expected(("method", *TASKS, "mean"), rows, ("method",), KEPT_METRIC)


def training_seconds(bench: Bench) -> Expected:
    """Read the seconds of training."""
    titles = {"e2e": "E2E", "abft": "ABFT", "vote_and_cross_entropy": TITLES[TRAINED[2]]}
    rows = {}
    for method, title in titles.items():
        (steps,) = {bench.training(task, method)["steps"] for task in TASKS}
        cores = ", one core" if method == TRAINED[2] else ""
        rows[(f"{title}, {steps} steps{cores}",)] = [
            plain(bench.training(task, method)["seconds"], 0) for task in TASKS
        ]
    return Expected(("method", *TASKS), rows, ("method",))
