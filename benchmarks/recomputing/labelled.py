"""Tables of RESULTS.md, section "With your own texts"."""

import base64
import functools
import json
from pathlib import Path

import numpy as np

from recomputing.bench import TASKS
from recomputing.pages import EMPTY, Cell, Expected, number, plain, write
from recomputing.statistics import bootstrap, mean_estimate, points

LABELLED = {
    "TF-IDF + LR": "tfidf",
    "MiniLM + LR": "minilm",
    "MiniLM, nearest neighbours": "minilm_knn",
    "SetFit, MiniLM": "setfit",
    "probe of the untouched model": "untrained_probe",
    "read-out: label words": "untrained/label_words",
    "read-out: attention": "untrained/attention",
    "read-out: probe": "untrained/probe",
    "read-out: blend": "untrained/blend",
    "**`ABFTClassifier`**": "untrained",
    "`ABFTClassifier(steps=16)`": "trained",
}
SIZES = (16, 64, 256, 512, 1024)


class Labelled:
    """Reads the kept cells of the scenario `labelled_texts`."""

    def __init__(self, results: Path) -> None:
        folder = results / "labelled_texts"
        targets = json.loads((folder / "targets.json").read_text(encoding="utf-8"))
        # By method, texts and draw, for each task: which queries were answered correctly.
        self.correct: dict[tuple[str, int, int], dict[str, np.ndarray]] = {}
        self.costs: dict[tuple[str, int, int], dict[str, dict]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                expected = np.array(targets[record["task"]])
                numbers = np.frombuffer(base64.b64decode(record["probabilities"]), "<u2")
                answers = {path.stem: numbers.reshape(len(expected), -1).argmax(axis=1)}
                # Kept predictions come first: rounded probabilities can be equal.
                kept = {path.stem: record} if "predicted" in record else {}
                for name, readout in record.get("readouts", {}).items():
                    kept[f"{path.stem}/{name}"] = readout
                for method, cell in kept.items():
                    answers[method] = np.array([int(c) for c in cell["predicted"]])
                for method, answer in answers.items():
                    place = method, record["texts"], record["seed"]
                    self.correct.setdefault(place, {})[record["task"]] = answer == expected
                    self.costs.setdefault(place, {})[record["task"]] = record["training"]

    def draws(self, method: str, texts: int) -> list[int]:
        """Return the draws of which every task was measured."""
        places = (place for place, by_task in self.correct.items() if len(by_task) == len(TASKS))
        return sorted(seed for name, count, seed in places if (name, count) == (method, texts))

    def sizes(self) -> list[int]:
        """Return the numbers of texts that any method was measured with."""
        return [n for n in SIZES if any(self.draws(method, n) for method in LABELLED.values())]

    def of_task(self, method: str, texts: int, task: str) -> np.ndarray:
        """Return whether the queries were answered correctly, (draws, queries)."""
        seeds = self.draws(method, texts)
        return np.array([self.correct[method, texts, seed][task] for seed in seeds], float)

    def mean(self, method: str, texts: int) -> Cell:
        """Return the number of draws, the mean accuracy over tasks and its interval."""
        seeds = self.draws(method, texts)
        if not seeds:
            return EMPTY
        estimates = []
        for task in TASKS:
            correct = self.of_task(method, texts, task)
            nothing = np.zeros((1, correct.shape[1]))
            queries = range(correct.shape[1])
            estimates.append(bootstrap(correct, nothing, queries, f"{method} {texts} {task}"))
        return write("{}: {} [{}, {}]", number(len(seeds), 0), *points(mean_estimate(estimates)))


_read = functools.cache(Labelled)  # all tables are of the same cells


def labelled_means(results: Path) -> Expected:
    """Recompute mean accuracies with so many labelled texts."""
    labelled = _read(results)
    sizes = labelled.sizes()
    rows = {
        (title,): [labelled.mean(method, texts) for texts in sizes]
        for title, method in LABELLED.items()
        if any(labelled.draws(method, texts) for texts in sizes)
    }
    return Expected(("method", *(f"N = {texts}" for texts in sizes)), rows, ("method",))


def labelled_tasks(results: Path, texts: int) -> Expected:
    """Recompute accuracy by task and CPU seconds with so many labelled texts."""
    labelled = _read(results)
    rows = {}
    for title, method in LABELLED.items():
        seeds = labelled.draws(method, texts)
        if not seeds:
            continue
        values = [100 * labelled.of_task(method, texts, task).mean() for task in TASKS]
        costs = [EMPTY, EMPTY]
        if "/" not in method:
            costs = [
                plain(
                    np.mean(
                        [labelled.costs[method, texts, s][t][name] for s in seeds for t in TASKS]
                    )
                )
                for name in ("cpu_seconds", "cpu_seconds_512")
            ]
        rows[(title,)] = [*(plain(value) for value in (*values, np.mean(values))), *costs]
    columns = ("method", *TASKS, "mean", "fitting", "512 predictions")
    return Expected(columns, rows, ("method",))
