"""The finished cells of a grid, as numbers by seed and as differences between methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from abft.bench.cell import Cell
from abft.bench.grid import Grid
from abft.bench.methods import METHODS
from abft.bench.statistics import paired_bootstrap
from abft.bench.store import Store
from abft.bench.table import BySeed


class Results:
    """The finished cells of a grid."""

    def __init__(self, grid: Grid, store: Store) -> None:
        self.grid = grid
        self.finished: list[tuple[Cell, dict[str, Any]]] = [
            (cell, record) for cell in grid.cells() if (record := store.read(cell)) is not None
        ]

    def records(
        self, model: str, task: str, method: str, scenario: str, **variant: Any
    ) -> list[dict[str, Any]]:
        """Return one record for each seed, and for each variant if none is named."""
        names = (model, task, method, scenario)
        return [
            record
            for cell, record in self.finished
            if (cell.model, cell.task, cell.method, cell.scenario) == names
            and all(cell.variant.get(key) == value for key, value in variant.items())
        ]

    def values(
        self, model: str, task: str, method: str, scenario: str, metric: str, **variant: Any
    ) -> BySeed:
        """Return a metric, by seed."""
        records = self.records(model, task, method, scenario, **variant)
        metrics = {record["seed"]: record["metrics"].get(metric) for record in records}
        return {seed: value for seed, value in metrics.items() if value is not None}

    def has(self, scenario: str) -> bool:
        """Return whether any cell of a scenario is finished."""
        return any(cell.scenario == scenario for cell, _ in self.finished)

    def title(self, method: str) -> str:
        """Return a method's name in tables."""
        named, kind = next((m, kind) for m, kind in self.grid.methods if m.name == method)
        return METHODS[kind].title if named.name == kind else named.name

    @property
    def methods(self) -> list[str]:
        """Return the grid's names of its methods."""
        return [method.name for method, _ in self.grid.methods]

    @property
    def tasks(self) -> list[str]:
        """Return the grid's names of its tasks."""
        return [task.name for task in self.grid.tasks]

    def trainings(
        self, model: str, tasks: Sequence[str], method: str
    ) -> list[dict[int, dict[str, Any]]]:
        """Return what the trainings of the standard cells cost: a dict by seed for each task."""
        by_task = []
        for task in tasks:
            records = self.records(model, task, method, "standard")
            by_task.append({r["seed"]: r["training"] for r in records if r["training"]})
        return by_task


def mean_over_tasks(cells: Sequence[BySeed]) -> BySeed:
    """Return the mean over tasks for every seed that all tasks have."""
    seeds = set.intersection(*(set(values) for values in cells)) if cells else set()
    return {seed: float(np.mean([values[seed] for values in cells])) for seed in sorted(seeds)}


def difference(
    results: Results,
    model: str,
    task: str,
    method: str,
    scenario: str = "standard",
    prompts: str = "standard",
) -> tuple[float, np.ndarray] | None:
    """Return a method's accuracy less the reference's on one set of prompts.

    Returns:
        The difference and bootstrap samples of it; None where either has no predictions, or their
        test prompts differ.
    """
    ours, theirs = (
        [
            record["predictions"].get(prompts)
            for record in results.records(model, task, name, scenario)
        ]
        for name in (method, results.grid.reference_method)
    )
    if not ours or not theirs or any(predictions is None for predictions in ours + theirs):
        return None

    # Paired: every prediction of the one answers the same prompt as the other's.
    first = ours[0]
    if any(predictions["targets"] != first["targets"] for predictions in ours + theirs):
        return None

    targets = np.array(first["targets"])
    correct, reference = (
        [np.array(predictions["predicted"]) == targets for predictions in by_seed]
        for by_seed in (ours, theirs)
    )
    # Prompts with the same query are one cluster: prompt i has query i modulo their number.
    return paired_bootstrap(correct, reference, np.arange(len(targets)) % first["queries"])


def mean_difference(
    differences: Sequence[tuple[float, np.ndarray] | None],
) -> tuple[float, np.ndarray] | None:
    """Return the mean over tasks of what `difference` returned; None where one is missing."""
    estimates = [estimate for estimate in differences if estimate is not None]
    if len(estimates) < len(differences):
        return None

    # Tasks have different queries: their samples are paired at random.
    generator = np.random.default_rng(0)
    samples = [generator.permutation(samples) for _, samples in estimates]
    return float(np.mean([value for value, _ in estimates])), np.mean(samples, axis=0)
