"""The paper's tables, and ours: each function makes a `Table` of one model, or None."""

from collections.abc import Callable, Sequence
from typing import Any

from abft.bench.methods import METHODS
from abft.bench.results import Results, difference, mean_difference, mean_over_tasks
from abft.bench.scenarios import PAPER_TASKS, SCENARIOS
from abft.bench.table import BySeed, Table, Value, percent, signed, spread


def _with_mean(
    results: Results, name: str, cells: Sequence[BySeed], show: Callable[[BySeed, int], str | None]
) -> tuple[Value, ...]:
    """A row of one value a task and their mean, which needs all tasks."""
    seeds = len(results.grid.seeds)
    mean = (show(mean_over_tasks(cells), seeds),) if len(cells) > 1 else ()
    return (name, *(show(values, seeds) for values in cells), *mean)


def _task_columns(results: Results) -> tuple[str, ...]:
    return (*results.tasks, "mean") if len(results.tasks) > 1 else tuple(results.tasks)


def _accuracy(results: Results, model: str, metric: str = "accuracy") -> Table | None:
    shown = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "ece": "Expected calibration error"}[
        metric
    ]
    table = Table(
        f"{metric}-{_file(model)}",
        f"{shown} in %, {model}",
        f"Table 1. Mean over {len(results.grid.seeds)} seed(s), ± standard deviation over "
        f"seeds. Zero-shot: no demonstrations.",
        ("method", *_task_columns(results)),
    )
    for scenario, suffix in (("zero_shot", ", zero-shot"), ("standard", "")):
        for method in results.methods:
            cells = [
                results.values(model, task, method, scenario, metric) for task in results.tasks
            ]
            if any(cells):
                table.rows.append(
                    _with_mean(results, results.title(method) + suffix, cells, percent)
                )
    return table


def _heads(results: Results, model: str) -> Table | None:
    table = Table(
        f"heads-{_file(model)}",
        f"Heads over the threshold, {model}",
        "Mean over the standard test prompts, after training where there is any.",
        ("method", *_task_columns(results)),
    )
    for method in results.methods:
        cells = [
            {
                r["seed"]: r["heads"]
                for r in results.records(model, task, method, "standard")
                if r.get("heads") is not None
            }
            for task in results.tasks
        ]
        if any(cells):
            table.rows.append(_with_mean(results, results.title(method), cells, spread))
    return table


def _differences(results: Results, model: str) -> Table | None:
    reference = results.title(results.grid.reference_method)
    table = Table(
        f"differences-{_file(model)}",
        f"Difference in accuracy to {reference}, in points, {model}",
        "95% interval of a paired bootstrap over test queries and seeds. In parentheses: the "
        "interval contains 0.",
        ("method", *_task_columns(results)),
    )
    for method in results.methods:
        if method != results.grid.reference_method:
            by_task = [difference(results, model, task, method) for task in results.tasks]
            mean = (signed(mean_difference(by_task)),) if len(by_task) > 1 else ()
            table.rows.append((results.title(method), *map(signed, by_task), *mean))
    return table


def _all_differences(results: Results, model: str) -> Table | None:
    table = Table(
        f"all_differences-{_file(model)}",
        f"Difference in accuracy to {results.title(results.grid.reference_method)} in every other "
        f"scenario, in points, {model}",
        "As above, on the prompts of one scenario.",
        ("scenario", "prompts", "task", "method", "difference"),
    )
    compared = [
        name
        for name in results.grid.scenarios
        if name not in _NO_RIGHT_ANSWER and name != "standard"
    ]
    for scenario in (name for name in compared if SCENARIOS[name].variants == ({},)):
        for task in results.tasks:
            for prompts in _prompt_sets(results, model, task, scenario):
                for method in results.methods:
                    found = difference(results, model, task, method, scenario, prompts)
                    if method != results.grid.reference_method and found is not None:
                        shown = "" if prompts == scenario else prompts
                        table.rows.append(
                            (scenario, shown, task, results.title(method), signed(found))
                        )
    return table


_NO_RIGHT_ANSWER = (
    "contextual_bias",
    "domain_bias",
    "posterior_bias",
    "perplexity",
    "random_query",
)


def _prompt_sets(results: Results, model: str, task: str, scenario: str) -> list[str]:
    found = [
        r for method in results.methods for r in results.records(model, task, method, scenario)
    ]
    return list(dict.fromkeys(name for record in found for name in record["predictions"]))


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
    tasks = results.tasks
    outside = {
        m: {t for t in tasks if results.values(model, t, m, "out_of_domain", "mean")}
        for m in results.methods
    }
    common = (
        [t for t in tasks if all(t in found for found in outside.values() if found)]
        if any(outside.values())
        else []
    )
    table = Table(
        f"cost-{_file(model)}",
        f"Cost and harm, {model}",
        f"Table 2. In domain: accuracy in % on the task of the training, mean over "
        f"{', '.join(common or tasks)}. "
        "Out of domain: the same models on all other tasks of the paper. Perplexity: news "
        "texts, lower is better.",
        columns,
    )
    seeds = len(results.grid.seeds)
    for method in results.methods:
        inside = mean_over_tasks(
            [results.values(model, t, method, "standard", "accuracy") for t in common or tasks]
        )
        other = mean_over_tasks(
            [results.values(model, t, method, "out_of_domain", "mean") for t in common]
        )
        trained = results.trainings(model, method)
        texts = mean_over_tasks(
            [
                v
                for t in tasks
                if (v := results.values(model, t, method, "perplexity", "perplexity"))
            ]
        )
        anyone = [training for found in trained for training in found.values()]
        seconds = mean_over_tasks(
            [{seed: training["seconds"] for seed, training in found.items()} for found in trained]
        )
        table.rows.append(
            (
                results.title(method),
                ", ".join(sorted({str(training["steps"]) for training in anyone})) or None,
                spread(seconds, digits=0),
                f"{anyone[0]['trainable_parameters'] / 1e6:.2f}" if anyone else None,
                f"{max(training['peak_memory_bytes'] for training in anyone) / 2**30:.1f}"
                if anyone
                else None,
                percent(inside, seeds),
                percent(other, seeds),
                spread(texts, seeds, digits=2),
            )
        )
    return table


def _each_task(
    scenario: str,
    title: str,
    caption: str,
    columns: Sequence[tuple[str, str]],
    scale: str = "percent",
) -> Any:
    """A table with one row for each task and method, and some metrics of a scenario as columns."""

    def make(results: Results, model: str) -> Table | None:
        if not results.has(scenario):
            return None
        head = ("task", "method", *(shown for _, shown in columns))
        table = Table(f"{scenario}-{_file(model)}", f"{title}, {model}", caption, head)
        for task in results.tasks:
            for method in results.methods:
                cells = [
                    results.values(model, task, method, scenario, metric) for metric, _ in columns
                ]
                if any(cells):
                    table.rows.append(
                        (
                            task,
                            results.title(method),
                            *(_scaled(results, values, scale) for values in cells),
                        )
                    )
        return table

    return make


def _scaled(results: Results, values: BySeed, scale: str) -> str | None:
    seeds = len(results.grid.seeds)
    return percent(values, seeds) if scale == "percent" else spread(values, seeds, digits=3)


def _consistency(results: Results, model: str) -> Table | None:
    table = Table(
        f"consistency-{_file(model)}",
        f"Prediction consistency in %, {model}",
        "Table 3. Share of equal predictions for a query over 9 templates (100 queries) or 8 "
        "demonstration sets (128 queries).",
        (
            "task",
            "method",
            "templates",
            "accuracy over templates",
            "demonstrations",
            "accuracy over demonstrations",
        ),
    )
    for task in results.tasks:
        for method in results.methods:
            cells = [
                percent(
                    results.values(model, task, method, f"{what}_consistency", metric),
                    len(results.grid.seeds),
                )
                for what in ("template", "demonstration")
                for metric in ("consistency", "accuracy")
            ]
            if any(cells):
                table.rows.append((task, results.title(method), *cells))
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
        cells = [
            results.values(model, task, name, "standard", "accuracy") for task in results.tasks
        ]
        if any(cells):
            trained = results.trainings(model, name)
            seconds = mean_over_tasks(
                [
                    {seed: training["seconds"] for seed, training in found.items()}
                    for found in trained
                ]
            )
            title, *values = _with_mean(results, results.title(name), cells, percent)
            table.rows.append((title, spread(seconds, digits=0), *values))
    return table


def _unseen(results: Results, model: str) -> Table | None:
    if not results.has("unseen_label"):
        return None
    scenarios = ("zero_shot", "standard", "unseen_label", "random_query")
    table = Table(
        f"unseen_label-{_file(model)}",
        f"Unseen labels: accuracy in %, {model}",
        "Fig. 3. Unseen: no demonstration has the query's label. Random: the query is random "
        "tokens.",
        ("task", "method", "zero-shot", "standard", "unseen label", "random query"),
    )
    for task in results.tasks:
        for method in results.methods:
            cells = [
                results.values(model, task, method, scenario, "accuracy") for scenario in scenarios
            ]
            if cells[2]:
                table.rows.append(
                    (
                        task,
                        results.title(method),
                        *(percent(values, len(results.grid.seeds)) for values in cells),
                    )
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
    for task in results.tasks:
        for method in results.methods:
            cells = [
                results.values(model, task, method, "training_size", "accuracy", nd=size)
                for size in sizes
            ]
            if any(cells):
                table.rows.append(
                    (
                        task,
                        results.title(method),
                        *(percent(values, len(results.grid.seeds)) for values in cells),
                    )
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
    for task in results.tasks:
        for method in results.methods:
            for pid in (True, False):
                for a in sorted({variant["A0"] for variant in variants}):
                    cells = [
                        results.values(
                            model, task, method, "factors", "accuracy", A0=a, B0=b, pid=pid
                        )
                        for b in rewards
                    ]
                    if any(cells):
                        table.rows.append(
                            (
                                task,
                                results.title(method),
                                "on" if pid else "off",
                                f"{a:g}",
                                *(percent(values, len(results.grid.seeds)) for values in cells),
                            )
                        )
    return table


def _named_sets(scenario: str, title: str, caption: str) -> Any:
    """A table whose columns are the prompt sets that a scenario's results hold."""

    def make(results: Results, model: str) -> Table | None:
        found = [
            r["metrics"]
            for cell, r in results.finished
            if cell.scenario == scenario and cell.model == model
        ]
        names = sorted(
            dict.fromkeys(name for metrics in found for name in metrics), key=_column_order
        )
        return _each_task(scenario, title, caption, [(name, name) for name in names])(
            results, model
        )

    return make


def _column_order(name: str) -> tuple[bool, int]:
    """Return a sort key: the paper's order of tasks, then that of the results, the mean last."""
    return name == "mean", PAPER_TASKS.index(name) if name in PAPER_TASKS else 0


def _file(model: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in model)


def _macro_f1(results: Results, model: str) -> Table | None:
    return _accuracy(results, model, "macro_f1")


def _ece(results: Results, model: str) -> Table | None:
    return _accuracy(results, model, "ece")


TABLES: tuple[Callable[[Results, str], Table | None], ...] = (
    _accuracy,
    _differences,
    _all_differences,
    _heads,
    _macro_f1,
    _ece,
    _cost,
    _named_sets(
        "out_of_domain",
        "Out of domain: accuracy in %",
        "Trained on the task of the row, tested on those of the columns.",
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
        "Incorrect labels in the demonstrations: accuracy in %",
        "GLER: slope against the share of correct labels, in points; 0 = labels are not read.",
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
