"""Results -> the paper's tables, as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from abft.bench.grid import Cell, Grid
from abft.bench.methods import METHODS
from abft.bench.scenarios import PAPER_TASKS, SCENARIOS
from abft.bench.statistics import interval, mean_and_deviation, paired_bootstrap
from abft.bench.store import Store
from abft.folder import write_text

Value = float | str | None
BySeed = dict[int, float]


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

    def records(self, model: str, task: str, method: str, scenario: str, **variant: Any) -> list[dict[str, Any]]:
        """One record a seed; of all variants where none is named."""
        return [
            record
            for cell, record in self.finished
            if (cell.model, cell.task, cell.method, cell.scenario) == (model, task, method, scenario)
            and all(cell.variant.get(key) == value for key, value in variant.items())
        ]

    def values(self, model: str, task: str, method: str, scenario: str, metric: str, **variant: Any) -> BySeed:
        """A metric, by seed."""
        found = self.records(model, task, method, scenario, **variant)
        return {r["seed"]: r["metrics"][metric] for r in found if r["metrics"].get(metric) is not None}

    def has(self, scenario: str) -> bool:
        return any(cell.scenario == scenario for cell, _ in self.finished)


def percent(values: BySeed, seeds: int = 0) -> str | None:
    """Mean in %, with the standard deviation over seeds where there are several; n where fewer than `seeds` are done."""
    return spread({seed: 100 * value for seed, value in values.items()}, seeds)


def spread(values: BySeed, seeds: int = 0, digits: int = 1) -> str | None:
    """Mean, with the standard deviation over seeds where there are several; n where fewer than `seeds` are done."""
    if not values:
        return None
    mean, deviation = mean_and_deviation(list(values.values()))
    text = f"{mean:.{digits}f}" if deviation is None else f"{mean:.{digits}f} ± {deviation:.{digits}f}"
    return f"{text} (n = {len(values)})" if len(values) < seeds else text


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
    shown = [{"name": t.name, "title": t.title, "caption": t.caption, "columns": t.columns, "rows": t.rows} for t in made]
    files = {
        "tables.md": "\n".join(table.markdown() for table in made),
        "tables.json": json.dumps(shown, indent=1, ensure_ascii=False) + "\n",
        "results.csv": _long(results).csv(),
        **{f"{table.name}.csv": table.csv() for table in made},
    }
    for name, text in files.items():
        write_text(folder / name, text)
    for path in folder.glob("*.csv"):  # tables of a model or scenario that the grid no longer has
        if path.name not in files:
            path.unlink()
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


def _with_mean(
    results: Results, name: str, cells: Sequence[BySeed], show: Callable[[BySeed, int], str | None]
) -> tuple[Value, ...]:
    """A row of one value a task and their mean, which needs all tasks."""
    seeds = len(results.grid.seeds)
    mean = (show(_mean_over_tasks(cells), seeds),) if len(cells) > 1 else ()
    return (name, *(show(values, seeds) for values in cells), *mean)


def _mean_over_tasks(cells: Sequence[BySeed]) -> BySeed:
    """The mean for every seed that all tasks have."""
    seeds = set.intersection(*(set(values) for values in cells)) if cells else set()
    return {seed: float(np.mean([values[seed] for values in cells])) for seed in sorted(seeds)}


def _task_columns(results: Results) -> tuple[str, ...]:
    return (*_tasks(results), "mean") if len(_tasks(results)) > 1 else tuple(_tasks(results))


def _accuracy(results: Results, model: str, metric: str = "accuracy") -> Table | None:
    shown = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "ece": "Expected calibration error"}[metric]
    table = Table(
        f"{metric}-{_file(model)}",
        f"{shown} in %, {model}",
        f"Table 1. Mean over {len(results.grid.seeds)} seed(s), ± standard deviation over seeds. Zero-shot: no demonstrations.",
        ("method", *_task_columns(results)),
    )
    for scenario, suffix in (("zero_shot", ", zero-shot"), ("standard", "")):
        for method in _methods(results):
            cells = [results.values(model, task, method, scenario, metric) for task in _tasks(results)]
            if any(cells):
                table.rows.append(_with_mean(results, _title(results, method) + suffix, cells, percent))
    return table


def _heads(results: Results, model: str) -> Table | None:
    table = Table(
        f"heads-{_file(model)}",
        f"Heads over the threshold, {model}",
        "Mean over the standard test prompts, after training where there is any.",
        ("method", *_task_columns(results)),
    )
    for method in _methods(results):
        cells = [
            {r["seed"]: r["heads"] for r in results.records(model, task, method, "standard") if r.get("heads") is not None}
            for task in _tasks(results)
        ]
        if any(cells):
            table.rows.append(_with_mean(results, _title(results, method), cells, spread))
    return table


def _differences(results: Results, model: str) -> Table | None:
    table = Table(
        f"differences-{_file(model)}",
        f"Difference in accuracy to {_title(results, results.grid.reference)}, in points, {model}",
        "95% interval of a paired bootstrap over test queries and seeds. In brackets: the interval holds 0.",
        ("method", *_task_columns(results)),
    )
    for method in _methods(results):
        if method != results.grid.reference:
            found = [difference(results, model, task, method) for task in _tasks(results)]
            mean = (_signed(_mean_difference(found)),) if len(found) > 1 else ()
            table.rows.append((_title(results, method), *map(_signed, found), *mean))
    return table


def _all_differences(results: Results, model: str) -> Table | None:
    table = Table(
        f"all_differences-{_file(model)}",
        f"Difference in accuracy to {_title(results, results.grid.reference)} in every other scenario, in points, {model}",
        "As above, on the prompts of one scenario.",
        ("scenario", "prompts", "task", "method", "difference"),
    )
    compared = [name for name in results.grid.scenarios if name not in _NO_RIGHT_ANSWER and name != "standard"]
    for scenario in (name for name in compared if SCENARIOS[name].variants == ({},)):
        for task in _tasks(results):
            for prompts in _prompt_sets(results, model, task, scenario):
                for method in _methods(results):
                    found = difference(results, model, task, method, scenario, prompts)
                    if method != results.grid.reference and found is not None:
                        shown = "" if prompts == scenario else prompts
                        table.rows.append((scenario, shown, task, _title(results, method), _signed(found)))
    return table


_NO_RIGHT_ANSWER = ("contextual_bias", "domain_bias", "posterior_bias", "perplexity", "random_query")


def _prompt_sets(results: Results, model: str, task: str, scenario: str) -> list[str]:
    found = [r for method in _methods(results) for r in results.records(model, task, method, scenario)]
    return list(dict.fromkeys(name for record in found for name in record["predictions"]))


def difference(
    results: Results, model: str, task: str, method: str, scenario: str = "standard", prompts: str = "standard"
) -> tuple[float, np.ndarray] | None:
    """Accuracy of a method less the reference's on one set of prompts, and bootstrap samples; None where one is missing."""
    pair = [results.records(model, task, name, scenario) for name in (method, results.grid.reference)]
    said = [[record["predictions"].get(prompts) for record in records] for records in pair]
    if not all(said) or any(one is None for records in said for one in records):
        return None
    first = said[0][0]
    if any(one["targets"] != first["targets"] for records in said for one in records):
        return None
    ours, theirs = ([np.array(one["predicted"]) == np.array(one["targets"]) for one in records] for records in said)
    return paired_bootstrap(ours, theirs, np.arange(len(first["targets"])) % first["queries"])


def _mean_difference(found: Sequence[tuple[float, np.ndarray] | None]) -> tuple[float, np.ndarray] | None:
    """The mean over tasks, whose queries are drawn apart."""
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    generator = np.random.default_rng(0)
    return float(np.mean([value for value, _ in known])), np.mean([generator.permutation(s) for _, s in known], axis=0)


def _signed(found: tuple[float, np.ndarray] | None) -> str | None:
    if found is None:
        return None
    value, (low, high) = found[0], interval(found[1])
    text = f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return text if low > 0 or high < 0 else f"({text})"


def _cost(results: Results, model: str) -> Table | None:
    columns = (
        "method",
        "steps",
        "training seconds",
        "trainable parameters (M)",
        "peak memory (GiB)",
        "in domain",
        "out of domain",
        "perplexity",
    )
    tasks = _tasks(results)
    outside = {m: {t for t in tasks if results.values(model, t, m, "out_of_domain", "mean")} for m in _methods(results)}
    common = [t for t in tasks if all(t in found for found in outside.values() if found)] if any(outside.values()) else []
    table = Table(
        f"cost-{_file(model)}",
        f"Cost and harm, {model}",
        f"Table 2. In domain: accuracy in % on the task of the training, mean over {', '.join(common or tasks)}. "
        "Out of domain: the same models on all other tasks of the paper. Perplexity: news texts, lower is better.",
        columns,
    )
    seeds = len(results.grid.seeds)
    for method in _methods(results):
        inside = _mean_over_tasks([results.values(model, t, method, "standard", "accuracy") for t in common or tasks])
        other = _mean_over_tasks([results.values(model, t, method, "out_of_domain", "mean") for t in common])
        trained = _trainings(results, model, method)
        texts = _mean_over_tasks([v for t in tasks if (v := results.values(model, t, method, "perplexity", "perplexity"))])
        anyone = [training for found in trained for training in found.values()]
        seconds = _mean_over_tasks([{seed: training["seconds"] for seed, training in found.items()} for found in trained])
        table.rows.append(
            (
                _title(results, method),
                ", ".join(sorted({str(training["steps"]) for training in anyone})) or None,
                spread(seconds, digits=0),
                f"{anyone[0]['trainable_parameters'] / 1e6:.2f}" if anyone else None,
                f"{max(training['peak_memory_bytes'] for training in anyone) / 2**30:.1f}" if anyone else None,
                percent(inside, seeds),
                percent(other, seeds),
                spread(texts, seeds, digits=2),
            )
        )
    return table


def _trainings(results: Results, model: str, method: str) -> list[dict[int, dict[str, Any]]]:
    """Cost of the trainings behind the standard cells, a dict by seed for each task that has any."""
    found = [
        {
            record["seed"]: record["training"]
            for record in results.records(model, task, method, "standard")
            if record["training"]
        }
        for task in _tasks(results)
    ]
    return [trainings for trainings in found if trainings]


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
                    table.rows.append((task, _title(results, method), *(_scaled(results, values, scale) for values in cells)))
        return table

    return make


def _scaled(results: Results, values: BySeed, scale: str) -> str | None:
    seeds = len(results.grid.seeds)
    return percent(values, seeds) if scale == "percent" else spread(values, seeds, digits=3)


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
                percent(results.values(model, task, method, f"{what}_consistency", metric), len(results.grid.seeds))
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
        ("method", "training seconds", *_task_columns(results)),
    )
    for name, _ in kinds:
        cells = [results.values(model, task, name, "standard", "accuracy") for task in _tasks(results)]
        if any(cells):
            trained = _trainings(results, model, name)
            seconds = _mean_over_tasks([{seed: training["seconds"] for seed, training in found.items()} for found in trained])
            title, *values = _with_mean(results, _title(results, name), cells, percent)
            table.rows.append((title, spread(seconds, digits=0), *values))
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
                table.rows.append(
                    (task, _title(results, method), *(percent(values, len(results.grid.seeds)) for values in cells))
                )
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
                table.rows.append(
                    (task, _title(results, method), *(percent(values, len(results.grid.seeds)) for values in cells))
                )
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
                            (
                                task,
                                _title(results, method),
                                "on" if pid else "off",
                                f"{a:g}",
                                *(percent(values, len(results.grid.seeds)) for values in cells),
                            )
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
    _all_differences,
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
