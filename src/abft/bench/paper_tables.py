"""Make the paper's tables and ours: each function returns a `Table` of one model, or None."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from abft.bench.methods import METHODS
from abft.bench.results import Results, difference, mean_difference, mean_over_tasks
from abft.bench.scenarios import EXTRAPOLATION, LABELLED_TEXTS, PAPER_TASKS, SCENARIOS
from abft.bench.table import BySeed, Table, Value, percent, signed, spread


def _with_mean(
    results: Results, name: str, cells: Sequence[BySeed], show: Callable[[BySeed, int], str | None]
) -> tuple[Value, ...]:
    """Return a row: its name, one value a task, and their mean, which needs all tasks."""
    seeds = len(results.grid.seeds)
    mean = (show(mean_over_tasks(cells), seeds),) if len(cells) > 1 else ()
    return (name, *(show(values, seeds) for values in cells), *mean)


def _task_columns(results: Results) -> tuple[str, ...]:
    return (*results.tasks, "mean") if len(results.tasks) > 1 else tuple(results.tasks)


def _accuracy(results: Results, model: str, metric: str = "accuracy") -> Table | None:
    titles = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "ece": "Expected calibration error"}
    table = Table(
        f"{metric}-{_file(model)}",
        f"{titles[metric]} in %, {model}",
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
                name = results.title(method) + suffix
                table.rows.append(_with_mean(results, name, cells, percent))
    return table


def _heads(results: Results, model: str) -> Table | None:
    table = Table(
        f"heads-{_file(model)}",
        f"Heads over the threshold, {model}",
        "Mean over the standard test prompts, after training where there is any.",
        ("method", *_task_columns(results)),
    )

    for method in results.methods:
        cells = []
        for task in results.tasks:
            records = results.records(model, task, method, "standard")
            heads = {record["seed"]: record.get("heads") for record in records}
            cells.append({seed: number for seed, number in heads.items() if number is not None})
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
    reference = results.grid.reference_method
    table = Table(
        f"all_differences-{_file(model)}",
        f"Difference in accuracy to {results.title(reference)} in every other "
        f"scenario, in points, {model}",
        "As above, on the prompts of one scenario.",
        ("scenario", "prompts", "task", "method", "difference"),
    )

    # "standard" has a table of its own, and so have scenarios with variants.
    scenarios = [
        name
        for name in [named.name for named in results.grid.scenarios]
        if name not in (*_NO_CORRECT_ANSWER, "standard") and SCENARIOS[name].variants == ({},)
    ]
    for scenario in scenarios:
        for task in results.tasks:
            for prompts in _prompt_sets(results, model, task, scenario):
                name = "" if prompts == scenario else prompts
                for method in results.methods:
                    estimate = difference(results, model, task, method, scenario, prompts)
                    if method != reference and estimate is not None:
                        title = results.title(method)
                        table.rows.append((scenario, name, task, title, signed(estimate)))
    return table


# No correct label, no queries, or the prompts of "standard".
_NO_CORRECT_ANSWER = (
    "contextual_bias",
    "domain_bias",
    "posterior_bias",
    "perplexity",
    "random_query",
)


def _prompt_sets(results: Results, model: str, task: str, scenario: str) -> list[str]:
    """Return the names of a scenario's prompt sets, each once, in the order of the results."""
    records = [
        record
        for method in results.methods
        for record in results.records(model, task, method, scenario)
    ]
    return list(dict.fromkeys(name for record in records for name in record["predictions"]))


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
    seeds, tasks = len(results.grid.seeds), results.tasks

    # Accuracies in and out of domain are means over the same tasks: those for which every method
    # that was measured out of domain has a result.
    by_method = [
        {task for task in tasks if results.values(model, task, method, "out_of_domain", "mean")}
        for method in results.methods
    ]
    task_sets = [task_set for task_set in by_method if task_set]
    common = [
        task for task in tasks if task_sets and all(task in task_set for task_set in task_sets)
    ]
    table = Table(
        f"cost-{_file(model)}",
        f"Cost and harm, {model}",
        f"Table 2. In domain: accuracy in % on the task of the training, mean over "
        f"{', '.join(common or tasks)}. "
        "Out of domain: the same models on all other tasks of the paper. Perplexity: news "
        "texts, lower is better.",
        columns,
    )

    shown = common or tasks  # the same ones in every column
    for method in results.methods:
        in_domain = [results.values(model, task, method, "standard", "accuracy") for task in shown]
        out_of_domain = [
            results.values(model, task, method, "out_of_domain", "mean") for task in common
        ]
        perplexities = [
            results.values(model, task, method, "perplexity", "perplexity") for task in shown
        ]
        perplexity = mean_over_tasks(perplexities)

        # A method without training leaves these columns empty.
        by_task = results.trainings(model, shown, method)
        trainings = [training for by_seed in by_task for training in by_seed.values()]
        seconds = [
            {seed: training["seconds"] for seed, training in by_seed.items()} for by_seed in by_task
        ]
        steps = ", ".join(sorted({str(training["steps"]) for training in trainings})) or None
        parameters = memory = None
        if trainings:
            bytes_used = max(training["peak_memory_bytes"] for training in trainings)
            memory = f"{bytes_used / 2**30:.1f}"
            parameters = f"{trainings[0]['trainable_parameters'] / 1e6:.2f}"

        table.rows.append(
            (
                results.title(method),
                steps,
                spread(mean_over_tasks(seconds), digits=0),
                parameters,
                memory,
                percent(mean_over_tasks(in_domain), seeds),
                percent(mean_over_tasks(out_of_domain), seeds),
                spread(perplexity, seeds, digits=2),
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
    """Return a function that makes a table: rows are tasks and methods, columns are metrics.

    `columns` are pairs of a metric and its title; `scale` is "percent" or "plain".
    """

    def make(results: Results, model: str) -> Table | None:
        if not results.has(scenario):
            return None

        head = ("task", "method", *(column for _, column in columns))
        table = Table(f"{scenario}-{_file(model)}", f"{title}, {model}", caption, head)
        for task in results.tasks:
            for method in results.methods:
                cells = [
                    results.values(model, task, method, scenario, metric) for metric, _ in columns
                ]
                if any(cells):
                    numbers = [_scaled(results, values, scale) for values in cells]
                    table.rows.append((task, results.title(method), *numbers))
        return table

    return make


def _scaled(results: Results, values: BySeed, scale: str) -> str | None:
    seeds = len(results.grid.seeds)
    return percent(values, seeds) if scale == "percent" else spread(values, seeds, digits=3)


def _consistency(results: Results, model: str) -> Table | None:
    columns = (
        "task",
        "method",
        "templates",
        "accuracy over templates",
        "demonstrations",
        "accuracy over demonstrations",
    )
    table = Table(
        f"consistency-{_file(model)}",
        f"Prediction consistency in %, {model}",
        "Table 3. Share of equal predictions for a query over 9 templates (100 queries) or 8 "
        "demonstration sets (128 queries).",
        columns,
    )

    seeds = len(results.grid.seeds)
    for task in results.tasks:
        for method in results.methods:
            cells = [
                results.values(model, task, method, f"{change}_consistency", metric)
                for change in ("template", "demonstration")
                for metric in ("consistency", "accuracy")
            ]
            if any(cells):
                numbers = [percent(values, seeds) for values in cells]
                table.rows.append((task, results.title(method), *numbers))
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
            seconds = [
                {seed: training["seconds"] for seed, training in by_seed.items()}
                for by_seed in results.trainings(model, results.tasks, name)
            ]
            title, *values = _with_mean(results, results.title(name), cells, percent)
            table.rows.append((title, spread(mean_over_tasks(seconds), digits=0), *values))
    return table


def _unseen(results: Results, model: str) -> Table | None:
    if not results.has("unseen_label"):
        return None

    scenarios = ("zero_shot", "standard", "unseen_label", "random_query")
    seeds = len(results.grid.seeds)
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
            # The other scenarios are only compared with it.
            if cells[scenarios.index("unseen_label")]:
                numbers = [percent(values, seeds) for values in cells]
                table.rows.append((task, results.title(method), *numbers))
    return table


def _variants(scenario: str) -> list[dict[str, Any]]:
    """Return the settings that each variant of a scenario changes."""
    return [dict(variant) for variant in SCENARIOS[scenario].variants]


def _labelled_texts(results: Results, model: str) -> Table | None:
    table = Table(
        f"labelled_texts-{_file(model)}",
        "Accuracy in % with so many labelled texts in all",
        "Demonstrations, training and choices come from these texts. CPU seconds of all cores: "
        "fitting, and 512 predictions; mean over tasks.",
        ("method", "labelled texts", *_task_columns(results), "fitting", "512 predictions"),
    )

    for variant in _variants(LABELLED_TEXTS):
        for method in results.methods:
            cells = [
                results.values(model, task, method, LABELLED_TEXTS, "accuracy", **variant)
                for task in results.tasks
            ]
            if not any(cells):
                continue

            # A mean over some of the tasks only would not compare.
            costs = [
                record["training"]
                for task in results.tasks
                for record in results.records(model, task, method, LABELLED_TEXTS, **variant)
            ]
            seconds = [
                float(np.mean([cost[name] for cost in costs])) if all(cells) else None
                for name in ("cpu_seconds", "cpu_seconds_512")
            ]
            name, *numbers = _with_mean(results, results.title(method), cells, percent)
            # A pool may hold fewer than the variant asks for.
            counts = sorted({cost["labelled_texts"] for cost in costs})
            count = "-".join(str(each) for each in dict.fromkeys((counts[0], counts[-1])))
            table.rows.append((name, count, *numbers, *seconds))
    return table


def _by_variant(scenario: str, key: str, title: str, caption: str) -> Any:
    """Return a function that makes a table of accuracies, a column for each value of a setting."""

    def make(results: Results, model: str) -> Table | None:
        values = [variant[key] for variant in _variants(scenario)]
        seeds = len(results.grid.seeds)
        table = Table(
            f"{scenario}-{_file(model)}",
            f"{title}, {model}",
            caption,
            ("task", "method", *(f"{value:g}" for value in values)),
        )

        for task in results.tasks:
            for method in results.methods:
                cells = [
                    results.values(model, task, method, scenario, "accuracy", **{key: value})
                    for value in values
                ]
                if any(cells):
                    numbers = [percent(by_seed, seeds) for by_seed in cells]
                    table.rows.append((task, results.title(method), *numbers))
        return table

    return make


def _factors(results: Results, model: str) -> Table | None:
    variants = _variants("factors")
    punishments = sorted({variant["A0"] for variant in variants})
    rewards = sorted({variant["B0"] for variant in variants})
    seeds = len(results.grid.seeds)
    table = Table(
        f"factors-{_file(model)}",
        f"Accuracy in % over A0 and B0, {model}",
        "Fig. 6.",
        ("task", "method", "PID", "A0", *(f"B0 = {b:g}" for b in rewards)),
    )

    # A row for every A0, with and without the controller.
    settings = [(pid, a) for pid in (True, False) for a in punishments]
    for task in results.tasks:
        for method in results.methods:
            for pid, a in settings:
                cells = [
                    results.values(model, task, method, "factors", "accuracy", A0=a, B0=b, pid=pid)
                    for b in rewards
                ]
                if any(cells):
                    names = (task, results.title(method), "on" if pid else "off", f"{a:g}")
                    table.rows.append((*names, *(percent(values, seeds) for values in cells)))
    return table


def _named_sets(scenario: str, title: str, caption: str) -> Any:
    """Return a function that makes a table with the metrics of a scenario's results as columns."""

    def make(results: Results, model: str) -> Table | None:
        metrics = [
            record["metrics"]
            for cell, record in results.finished
            if cell.scenario == scenario and cell.model == model
        ]
        names = dict.fromkeys(name for by_name in metrics for name in by_name)
        columns = [(name, name) for name in sorted(names, key=_column_order)]
        return _each_task(scenario, title, caption, columns)(results, model)

    return make


def _column_order(name: str) -> tuple[bool, int]:
    """Return a sort key: the paper's order of tasks, then that of the results, the mean last."""
    return name == "mean", PAPER_TASKS.index(name) if name in PAPER_TASKS else 0


def _file(model: str) -> str:
    """Return a model's name as a part of file names."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in model)


def _macro_f1(results: Results, model: str) -> Table | None:
    return _accuracy(results, model, "macro_f1")


def _ece(results: Results, model: str) -> Table | None:
    return _accuracy(results, model, "ece")


# In the order in which they are shown; those of the paper name their table or figure.
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
    _by_variant(
        "training_size",
        "nd",
        "Accuracy in % against the number of training prompts",
        "Fig. 2. The same number of steps for every size.",
    ),
    _by_variant(
        EXTRAPOLATION,
        "factor",
        "Accuracy in % between and beyond the trained weights",
        "Fig. 7. The change of the weights is multiplied by the number of the column; 1 = as "
        "trained.",
    ),
    _labelled_texts,
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
