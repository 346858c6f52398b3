"""Results -> the paper's tables, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from abft.bench.grid import Cell, Grid
from abft.bench.methods import METHODS
from abft.bench.scenarios import PAPER_TASKS, SCENARIOS
from abft.bench.statistics import mean_and_deviation, paired_bootstrap
from abft.bench.store import Store
from abft.folder import write_text

Value = float | str | None


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under column names; numbers are in the unit that `caption` gives."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """A GitHub table under a heading."""
        lines = [f"### {self.title}", "", self.caption, ""] if self.caption else [f"### {self.title}", ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(_shown(value).replace("|", "\\|") for value in row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Comma-separated, with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        return text.getvalue()


def _shown(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


class Results:
    """The finished cells of a grid."""

    def __init__(self, grid: Grid, store: Store) -> None:
        self.grid = grid
        self.finished: list[tuple[Cell, dict[str, Any]]] = [
            (cell, record) for cell in grid.cells() if (record := store.read(cell)) is not None
        ]

    def records(self, model: str, task: str | None, method: str, scenario: str, **variant: Any) -> list[dict[str, Any]]:
        """One record a seed; of all variants where none is named."""
        return [
            record
            for cell, record in self.finished
            if (cell.model, cell.method, cell.scenario) == (model, method, scenario)
            and task in (None, cell.task)
            and all(cell.variant.get(key) == value for key, value in variant.items())
        ]

    def values(self, model: str, task: str | None, method: str, scenario: str, metric: str, **variant: Any) -> list[float]:
        """A metric, one value a seed."""
        records = self.records(model, task, method, scenario, **variant)
        return [r["metrics"][metric] for r in records if r["metrics"].get(metric) is not None]

    def has(self, scenario: str) -> bool:
        return any(cell.scenario == scenario for cell, _ in self.finished)


def percent(values: Sequence[float]) -> str | None:
    """Mean in %, with the standard deviation over seeds where there are several."""
    return spread([100 * value for value in values])


def spread(values: Sequence[float]) -> str | None:
    """Mean, with the standard deviation over seeds where there are several."""
    if not values:
        return None
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def tables(results: Results) -> list[Table]:
    """Every table for which there are results, model after model."""
    found = []
    for model in (entry.name for entry in results.grid.models):
        for make in _TABLES:
            table = make(results, model)
            if table is not None and table.rows and any(any(value is not None for value in row[1:]) for row in table.rows):
                found.append(table)
    return found


def write_tables(results: Results, folder: Path) -> list[Table]:
    """Write every table as Markdown, CSV and JSON, and all numbers as one long CSV; returns the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tables(results)
    write_text(folder / "tables.md", "\n".join(table.markdown() for table in made))
    for table in made:
        write_text(folder / f"{table.name}.csv", table.csv())
    shown = [{"name": t.name, "title": t.title, "caption": t.caption, "columns": t.columns, "rows": t.rows} for t in made]
    write_text(folder / "tables.json", json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "results.csv", _long(results).csv())
    return made


def _long(results: Results) -> Table:
    """One row a number."""
    columns = ("model", "task", "method", "scenario", "variant", "seed", "metric", "value")
    table = Table("results", "All results", "", columns)
    for cell, record in results.finished:
        variant = " ".join(f"{key}={value}" for key, value in cell.variant.items())
        numbers = {**record["metrics"], "heads": record.get("heads"), **(record["training"] or {})}
        for metric, value in numbers.items():
            if value is not None:
                table.rows.append((cell.model, cell.task, cell.method, cell.scenario, variant, str(cell.seed), metric, value))
    return table


def _title(results: Results, method: str) -> str:
    named, kind = next((m, kind) for m, kind in results.grid.methods if m.name == method)
    return METHODS[kind].title if named.name == kind else named.name


def _methods(results: Results) -> list[str]:
    return [method.name for method, _ in results.grid.methods]


def _tasks(results: Results) -> list[str]:
    return [task.name for task in results.grid.tasks]


def _with_mean(name: str, cells: Sequence[Sequence[float]], show: Callable[[Sequence[float]], str | None]) -> tuple[Value, ...]:
    """A row of one value a task and their mean, which needs all tasks."""
    return (name, *map(show, cells), show(_mean_over_tasks(cells)) if len(cells) > 1 else None)


def _mean_over_tasks(cells: Sequence[Sequence[float]]) -> list[float]:
    """One mean a seed; none unless every task has a value."""
    seeds = min(map(len, cells), default=0)
    return [float(np.mean([values[s] for values in cells])) for s in range(seeds)]


def _accuracy(results: Results, model: str, metric: str = "accuracy") -> Table | None:
    shown = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "ece": "Expected calibration error"}[metric]
    table = Table(
        f"{metric}-{_file(model)}",
        f"{shown} in %, {model}",
        f"Table 1. Mean over {len(results.grid.seeds)} seed(s), ± standard deviation over seeds. Zero-shot: no demonstrations.",
        ("method", *_tasks(results), "mean"),
    )
    for scenario, suffix in (("zero_shot", ", zero-shot"), ("standard", "")):
        for method in _methods(results):
            cells = [results.values(model, task, method, scenario, metric) for task in _tasks(results)]
            if any(cells):
                table.rows.append(_with_mean(_title(results, method) + suffix, cells, percent))
    return table


def _heads(results: Results, model: str) -> Table | None:
    table = Table(
        f"heads-{_file(model)}",
        f"Heads over the threshold, {model}",
        "Mean over the standard test prompts, after training where there is any.",
        ("method", *_tasks(results), "mean"),
    )
    for method in _methods(results):
        cells = [
            [r["heads"] for r in results.records(model, task, method, "standard") if r.get("heads") is not None]
            for task in _tasks(results)
        ]
        if any(cells):
            table.rows.append(_with_mean(_title(results, method), cells, spread))
    return table


def _differences(results: Results, model: str) -> Table | None:
    table = Table(
        f"differences-{_file(model)}",
        f"Difference in accuracy to {_title(results, results.grid.reference)}, in points, {model}",
        "95% interval of a paired bootstrap over test queries and seeds. In brackets: the interval holds 0.",
        ("method", *_tasks(results)),
    )
    for method in _methods(results):
        if method == results.grid.reference:
            continue
        row: list[Value] = []
        for task in _tasks(results):
            found = difference(results, model, task, method, results.grid.reference)
            if found is None:
                row.append(None)
            else:
                text = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found))
                row.append(text if found[1] > 0 or found[2] < 0 else f"({text})")
        table.rows.append((_title(results, method), *row))
    return table


def difference(results: Results, model: str, task: str, method: str, reference: str) -> tuple[float, float, float] | None:
    """Accuracy of one method less another's on the standard prompts, with its interval; None where one is missing."""
    ours, theirs = (_correct(results.records(model, task, name, "standard")) for name in (method, reference))
    if not ours or not theirs or len({len(row) for row in (*ours, *theirs)}) > 1:
        return None
    count = len(ours[0])
    queries = results.records(model, task, method, "standard")[0].get("queries") or count
    return paired_bootstrap(ours, theirs, np.arange(count) % queries)


def _correct(records: Iterable[dict[str, Any]]) -> list[np.ndarray]:
    predictions = [record["predictions"]["standard"] for record in records]
    return [np.array(p["predicted"]) == np.array(p["targets"]) for p in predictions]


def _cost(results: Results, model: str) -> Table | None:
    columns = (
        "method",
        "training seconds",
        "trainable parameters (M)",
        "peak memory (GiB)",
        "in domain",
        "out of domain",
        "perplexity",
    )
    table = Table(
        f"cost-{_file(model)}",
        f"Cost and harm, {model}",
        "Table 2. Accuracy in %: in domain over the same tasks as out of domain, where the model was trained on one task and "
        "tested on all others of the paper. Perplexity: news texts, lower is better.",
        columns,
    )
    for method in _methods(results):
        ood_tasks = [t for t in _tasks(results) if results.values(model, t, method, "out_of_domain", "mean")]
        inside = _mean_over_tasks(
            [results.values(model, t, method, "standard", "accuracy") for t in ood_tasks or _tasks(results)]
        )
        outside = _mean_over_tasks([results.values(model, t, method, "out_of_domain", "mean") for t in ood_tasks])
        texts = results.values(model, None, method, "perplexity", "perplexity")
        trainings = [
            r["training"] for t in _tasks(results) for r in results.records(model, t, method, "standard") if r["training"]
        ]
        seconds = [t["seconds"] for t in trainings]
        table.rows.append(
            (
                _title(results, method),
                spread(seconds),
                f"{trainings[0]['trainable_parameters'] / 1e6:.1f}" if trainings else None,
                f"{max(t['peak_memory_bytes'] for t in trainings) / 2**30:.1f}" if trainings else None,
                percent(inside),
                percent(outside),
                f"{np.mean(texts):.2f}" if texts else None,
            )
        )
    return table


def _each_task(scenario: str, title: str, caption: str, columns: Sequence[tuple[str, str]], scale: str = "percent") -> Any:
    """A table with one row for each task and method, and some metrics of a scenario as columns."""

    def make(results: Results, model: str) -> Table | None:
        if not results.has(scenario):
            return None
        head = ("task", "method", *(shown for _, shown in columns))
        table = Table(f"{scenario}-{_file(model)}", f"{title}, {model}", caption, head)
        for task in _tasks(results):
            for method in _methods(results):
                cells = [results.values(model, task, method, scenario, metric) for metric, _ in columns]
                if any(cells):
                    table.rows.append((task, _title(results, method), *(_scaled(values, scale) for values in cells)))
        return table

    return make


def _scaled(values: Sequence[float], scale: str) -> str | None:
    if scale == "percent":
        return percent(values)
    if not values:
        return None
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _consistency(results: Results, model: str) -> Table | None:
    table = Table(
        f"consistency-{_file(model)}",
        f"Prediction consistency in %, {model}",
        "Table 3. Share of equal predictions for a query over 9 templates (100 queries) or 8 demonstration sets (128 queries).",
        ("task", "method", "templates", "accuracy over templates", "demonstrations", "accuracy over demonstrations"),
    )
    for task in _tasks(results):
        for method in _methods(results):
            cells = [
                percent(results.values(model, task, method, f"{what}_consistency", metric))
                for what in ("template", "demonstration")
                for metric in ("consistency", "accuracy")
            ]
            if any(cells):
                table.rows.append((task, _title(results, method), *cells))
    return table


def _ablations(results: Results, model: str) -> Table | None:
    kinds = [(method.name, kind) for method, kind in results.grid.methods if METHODS[kind].ablation]
    if len(kinds) < 2:
        return None
    table = Table(
        f"ablations-{_file(model)}",
        f"Ablations, {model}",
        "Table 4. Accuracy in %.",
        ("method", "training seconds", *_tasks(results), "mean"),
    )
    for name, _ in kinds:
        cells = [results.values(model, task, name, "standard", "accuracy") for task in _tasks(results)]
        if any(cells):
            seconds = [r["training"]["seconds"] for r in results.records(model, None, name, "standard")]
            title, *values = _with_mean(_title(results, name), cells, percent)
            table.rows.append((title, spread(seconds), *values))
    return table


def _unseen(results: Results, model: str) -> Table | None:
    if not results.has("unseen_label"):
        return None
    scenarios = ("zero_shot", "standard", "unseen_label", "random_query")
    table = Table(
        f"unseen_label-{_file(model)}",
        f"Unseen labels: accuracy in %, {model}",
        "Fig. 3. Unseen: no demonstration has the query's label. Random: the query is random tokens.",
        ("task", "method", "zero-shot", "standard", "unseen label", "random query"),
    )
    for task in _tasks(results):
        for method in _methods(results):
            cells = [results.values(model, task, method, scenario, "accuracy") for scenario in scenarios]
            if cells[2]:
                table.rows.append((task, _title(results, method), *map(percent, cells)))
    return table


def _variants(scenario: str) -> list[dict[str, Any]]:
    return [dict(variant) for variant in SCENARIOS[scenario].variants]


def _sizes(results: Results, model: str) -> Table | None:
    sizes = [variant["nd"] for variant in _variants("training_size")]
    table = Table(
        f"training_size-{_file(model)}",
        f"Accuracy in % against the number of training prompts, {model}",
        "Fig. 2. The same number of steps for every size.",
        ("task", "method", *map(str, sizes)),
    )
    for task in _tasks(results):
        for method in _methods(results):
            cells = [results.values(model, task, method, "training_size", "accuracy", nd=size) for size in sizes]
            if any(cells):
                table.rows.append((task, _title(results, method), *map(percent, cells)))
    return table


def _factors(results: Results, model: str) -> Table | None:
    variants = _variants("factors")
    rewards = sorted({variant["B0"] for variant in variants})
    table = Table(
        f"factors-{_file(model)}",
        f"Accuracy in % over A0 and B0, {model}",
        "Fig. 6.",
        ("task", "method", "PID", "A0", *(f"B0 = {b:g}" for b in rewards)),
    )
    for task in _tasks(results):
        for method in _methods(results):
            for pid in (True, False):
                for a in sorted({variant["A0"] for variant in variants}):
                    cells = [results.values(model, task, method, "factors", "accuracy", A0=a, B0=b, pid=pid) for b in rewards]
                    if any(cells):
                        table.rows.append(
                            (task, _title(results, method), "on" if pid else "off", f"{a:g}", *map(percent, cells))
                        )
    return table


def _named_sets(scenario: str, title: str, caption: str) -> Any:
    """A table whose columns are the prompt sets that a scenario's results hold."""

    def make(results: Results, model: str) -> Table | None:
        found = [r["metrics"] for cell, r in results.finished if cell.scenario == scenario and cell.model == model]
        names = sorted(dict.fromkeys(name for metrics in found for name in metrics), key=_column_order)
        return _each_task(scenario, title, caption, [(name, name) for name in names])(results, model)

    return make


def _column_order(name: str) -> tuple[bool, int]:
    """The paper's order of tasks, the mean last; everything else as it stands in the results."""
    return name == "mean", PAPER_TASKS.index(name) if name in PAPER_TASKS else 0


def _file(model: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in model)


def _macro_f1(results: Results, model: str) -> Table | None:
    return _accuracy(results, model, "macro_f1")


def _ece(results: Results, model: str) -> Table | None:
    return _accuracy(results, model, "ece")


_TABLES: tuple[Callable[[Results, str], Table | None], ...] = (
    _accuracy,
    _differences,
    _heads,
    _macro_f1,
    _ece,
    _cost,
    _named_sets(
        "out_of_domain", "Out of domain: accuracy in %", "Trained on the task of the row, tested on those of the columns."
    ),
    _consistency,
    _ablations,
    _sizes,
    _unseen,
    _named_sets(
        "renamed_labels",
        "Renamed labels: accuracy in %",
        "Other label words at test time only; swapped: each class has the next one's word.",
    ),
    _named_sets(
        "k_shot",
        "Accuracy in % against the number of demonstrations",
        "Trained with the number of the settings, tested with that of the column.",
    ),
    _named_sets(
        "label_noise",
        "Wrong labels in the demonstrations: accuracy in %",
        "GLER: slope against the share of right labels, in points; 0 = labels are not read.",
    ),
    _each_task(
        "contextual_bias",
        "Contextual bias",
        "Empty queries. Entropy in nats; bias = 1 - entropy / ln C.",
        [("entropy", "entropy"), ("bias", "bias")],
        "plain",
    ),
    _each_task(
        "domain_bias",
        "Domain bias",
        "Queries of random words of the task. Entropy in nats; bias = 1 - entropy / ln C.",
        [("entropy", "entropy"), ("bias", "bias")],
        "plain",
    ),
    _each_task(
        "posterior_bias",
        "Posterior bias",
        "KL divergence of the mean prediction from the labels, in nats.",
        [("kl", "KL")],
        "plain",
    ),
    _factors,
)
