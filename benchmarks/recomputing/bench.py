"""The cells of `abft bench`."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recomputing.pages import Cell, plain
from recomputing.statistics import Estimate, bootstrap, macro_f1

MODEL = "SmolLM2-135M-Instruct"
CLASSES = {"SST2": 2, "MR": 2, "FP": 3, "SST5": 5, "TREC": 6, "SUBJ": 2, "TEE": 4, "TEH": 2}
TASKS = tuple(CLASSES)
SEEDS = (0, 1, 2)  # of the training prompts, section "Accuracy"
TITLES = {
    "vanilla": "vanilla",
    "contextual_calibration": "contextual calibration",
    "e2e": "E2E, W_Q and W_K",
    "abft": "ABFT",
    "vote_and_cross_entropy": "ABFT, vote and cross-entropy",
    "abft_no_pid": "ABFT, no PID",
    "abft_no_pid_no_filter": "ABFT, no PID, no filter",
    "abft_no_punishment": "ABFT, A = 0",
    "abft_no_reward": "ABFT, B = 0",
}
COMPARED = ("vanilla", "contextual_calibration", "e2e", "abft", "vote_and_cross_entropy")
TRAINED = ("e2e", "abft", "vote_and_cross_entropy")
SHORT = {**TITLES, "e2e": "E2E"}
KEPT_METRIC = "read from the cells: no probabilities or attention are kept"


class Bench:
    """Reads the cells of `abft bench`."""

    def __init__(self, results: Path) -> None:
        self.cells = results / "bench" / "cells"

    @functools.cache  # noqa: B019 - one object for the whole run
    def record(self, task: str, method: str, scenario: str, seed: int = 0) -> dict:
        """Return the record of a cell."""
        path = self.cells / f"{MODEL}__{task}__{method}__{scenario}__seed{seed}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def has(self, task: str, method: str, scenario: str) -> bool:
        """Return whether a cell was measured."""
        return (self.cells / f"{MODEL}__{task}__{method}__{scenario}__seed0.json").is_file()

    def predictions(
        self,
        task: str,
        method: str,
        scenario: str = "standard",
        prompts: str | None = None,
        seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return targets and predictions of a set of prompts, by default of the only one."""
        sets = self.record(task, method, scenario, seed)["predictions"]
        chosen = sets[prompts] if prompts else next(iter(sets.values()))
        assert prompts or len(sets) == 1, f"{task}, {method}, {scenario}: several sets of prompts"
        return np.array(chosen["targets"]), np.array(chosen["predicted"])

    def accuracy(
        self,
        task: str,
        method: str,
        scenario: str = "standard",
        prompts: str | None = None,
        seed: int = 0,
    ) -> float:
        """Return the share of correct predictions."""
        targets, predicted = self.predictions(task, method, scenario, prompts, seed)
        return float((targets == predicted).mean())

    def metric(self, task: str, method: str, scenario: str, name: str) -> float:
        """Return a number that the raw results have as such."""
        if name == "accuracy":
            return self.accuracy(task, method, scenario)
        if name == "macro_f1":
            return macro_f1(*self.predictions(task, method, scenario), CLASSES[task])
        record = self.record(task, method, scenario)
        return record["heads"] if name == "heads" else record["metrics"][name]

    @functools.cache  # noqa: B019
    def difference(
        self,
        task: str,
        method: str,
        scenario: str = "standard",
        prompts: str | None = None,
        reference: str = "vanilla",
        seeds: tuple[int, ...] = (0,),
    ) -> Estimate:
        """Estimate how much more accurate a method is than another one."""
        correct: dict[str, list[np.ndarray]] = {method: [], reference: []}
        shown = []
        for name in (method, reference):
            for seed in seeds:
                targets, predicted = self.predictions(task, name, scenario, prompts, seed)
                shown.append(targets)
                correct[name].append(targets == predicted)
        assert (np.array(shown) == shown[0]).all(), f"{task}, {method}, {scenario}: prompts differ"

        sets = self.record(task, method, scenario)["predictions"]
        queries = sets[prompts or next(iter(sets))]["queries"]
        return bootstrap(
            correct[method],
            correct[reference],
            [i % queries for i in range(len(shown[0]))],
            f"{task} {method} {scenario} {prompts} {reference}",
        )

    def training(self, task: str, method: str) -> dict:
        """Return what the training of a method cost; empty for methods without training."""
        return self.record(task, method, "standard")["training"] or {}


def by_task(make: Callable[[str], float], scale: float = 1.0, digits: int = 1) -> list[Cell]:
    """Return a cell for each task and one for their mean."""
    values = [make(task) for task in TASKS]
    return [plain(scale * value, digits) for value in (*values, np.mean(values))]
