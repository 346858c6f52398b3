"""The finished cells of a grid, as numbers by seed and as differences between methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from abft.bench.grid import Cell, Grid
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
        """One record a seed; of all variants where none is named."""
        return [
            record
            for cell, record in self.finished
            if (cell.model, cell.task, cell.method, cell.scenario)
            == (model, task, method, scenario)
            and all(cell.variant.get(key) == value for key, value in variant.items())
        ]

    def values(
        self, model: str, task: str, method: str, scenario: str, metric: str, **variant: Any
    ) -> BySeed:
        """A metric, by seed."""
        found = self.records(model, task, method, scenario, **variant)
        return {
            r["seed"]: r["metrics"][metric] for r in found if r["metrics"].get(metric) is not None
        }

    def has(self, scenario: str) -> bool:
        return any(cell.scenario == scenario for cell, _ in self.finished)

    def title(self, method: str) -> str:
        """A method's name in tables."""
        named, kind = next((m, kind) for m, kind in self.grid.methods if m.name == method)
        return METHODS[kind].title if named.name == kind else named.name

    @property
    def methods(self) -> list[str]:
        return [method.name for method, _ in self.grid.methods]

    @property
    def tasks(self) -> list[str]:
        return [task.name for task in self.grid.tasks]

    def trainings(self, model: str, method: str) -> list[dict[int, dict[str, Any]]]:
        """Cost of the trainings behind the standard cells, a dict by seed for each task that has
        any.
        """
        found = [
            {
                r["seed"]: r["training"]
                for r in self.records(model, task, method, "standard")
                if r["training"]
            }
            for task in self.tasks
        ]
        return [trainings for trainings in found if trainings]


def mean_over_tasks(cells: Sequence[BySeed]) -> BySeed:
    """The mean for every seed that all tasks have."""
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
    """Accuracy of a method less the reference's on one set of prompts, and bootstrap samples; None
    where one is missing.
    """
    pair = [
        results.records(model, task, name, scenario)
        for name in (method, results.grid.reference_method)
    ]
    said = [[record["predictions"].get(prompts) for record in records] for records in pair]
    if not all(said) or any(one is None for records in said for one in records):
        return None
    first = said[0][0]
    if any(one["targets"] != first["targets"] for records in said for one in records):
        return None
    ours, theirs = (
        [np.array(one["predicted"]) == np.array(one["targets"]) for one in records]
        for records in said
    )
    return paired_bootstrap(ours, theirs, np.arange(len(first["targets"])) % first["queries"])


def mean_difference(
    found: Sequence[tuple[float, np.ndarray] | None],
) -> tuple[float, np.ndarray] | None:
    """The mean over tasks, whose queries are drawn apart."""
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    generator = np.random.default_rng(0)
    return float(np.mean([value for value, _ in known])), np.mean(
        [generator.permutation(s) for _, s in known], axis=0
    )
