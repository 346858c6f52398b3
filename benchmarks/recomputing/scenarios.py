"""Tables of RESULTS.md on prompts and tasks other than those of training, and ablations."""

import numpy as np

from recomputing.bench import KEPT_METRIC, TASKS, TITLES, TRAINED, Bench
from recomputing.pages import EMPTY, Expected, header, percent, plain
from recomputing.statistics import in_parentheses, largest_group

TRAINED_TASKS = ("SST2", "TREC")  # of the sections after "Where ABFT loses, and why"
ABLATIONS = (
    "abft",
    "abft_no_pid",
    "abft_no_pid_no_filter",
    "abft_no_punishment",
    "abft_no_reward",
)


def out_of_domain(bench: Bench, task: str, method: str) -> dict[str, float]:
    """Return a model's accuracy on the tasks it was not trained on."""
    sets = bench.record(task, method, "out_of_domain")["predictions"]
    return {name: bench.accuracy(task, method, "out_of_domain", name) for name in sets}


def out_of_domain_mean(bench: Bench, method: str) -> float:
    """Return a method's accuracy out of domain, mean over both trainings."""
    means = [np.mean(list(out_of_domain(bench, task, method).values())) for task in TRAINED_TASKS]
    return float(np.mean(means))


def cost(bench: Bench) -> Expected:
    """Recompute cost and harm."""
    columns = header(
        "method | steps | training seconds | trainable parameters (M) | peak memory (GiB) | "
        "in domain | out of domain | perplexity"
    )
    rows = {}
    for method in ("vanilla", *TRAINED):
        cells = [EMPTY] * 4
        if method != "vanilla":
            trainings = [bench.training(task, method) for task in TRAINED_TASKS]
            (steps,) = {training["steps"] for training in trainings}
            (parameters,) = {training["trainable_parameters"] for training in trainings}
            cells = [
                plain(steps, 0),
                plain(np.mean([training["seconds"] for training in trainings]), 0),
                plain(parameters / 1e6, 2),
                plain(max(training["peak_memory_bytes"] for training in trainings) / 2**30, 1),
            ]
        measured = all(bench.has(task, method, "out_of_domain") for task in TRAINED_TASKS)
        perplexities = [
            bench.metric(task, method, "perplexity", "perplexity") for task in TRAINED_TASKS
        ]
        rows[(TITLES[method],)] = [
            *cells,
            percent(np.mean([bench.accuracy(task, method) for task in TRAINED_TASKS])),
            percent(out_of_domain_mean(bench, method) if measured else None),
            plain(np.mean(perplexities), 2),
        ]
    note = "perplexity is read from the cells: no token losses are kept"
    return Expected(columns, rows, ("method",), note)


def out_of_domain_table(bench: Bench) -> Expected:
    """Recompute accuracy on each task that a model was not trained on."""
    rows = {}
    for task in TRAINED_TASKS:
        for method in ("vanilla", *TRAINED):
            if not bench.has(task, method, "out_of_domain"):
                continue
            found = out_of_domain(bench, task, method)
            values = [found.get(name) for name in TASKS]
            rows[task, TITLES[method]] = [
                percent(value) for value in (*values, np.mean(list(found.values())))
            ]
    return Expected(("task", "method", *TASKS, "mean"), rows, ("task", "method"))


def consistency(bench: Bench) -> Expected:
    """Recompute shares of equal predictions."""
    columns = header(
        "task | method | templates | accuracy over templates | demonstrations | "
        "accuracy over demonstrations"
    )
    rows = {}
    for task in TRAINED_TASKS:
        for method in ("vanilla", *TRAINED):
            if not bench.has(task, method, "demonstration_consistency"):
                continue
            templates = bench.record(task, method, "template_consistency")["predictions"]
            predicted = np.array([one["predicted"] for one in templates.values()])
            targets = np.array([one["targets"] for one in templates.values()])
            assert predicted.shape == (9, 100), f"{task}, {method}: {predicted.shape} predictions"

            # Prompt i has query i modulo 128.
            scenario = "demonstration_consistency"
            other_targets, others = bench.predictions(task, method, scenario)
            assert len(others) == 8 * 128, f"{task}, {method}: {len(others)} predictions"
            by_query = np.array([others[query::128] for query in range(128)]).T
            rows[task, TITLES[method]] = [
                percent(largest_group(predicted)),
                percent((predicted == targets).mean()),
                percent(largest_group(by_query)),
                percent((others == other_targets).mean()),
            ]
    return Expected(columns, rows, ("task", "method"))


def unseen_labels(bench: Bench) -> Expected:
    """Recompute accuracy where no demonstration has the query's label."""
    scenarios = ("zero_shot", "standard", "unseen_label", "random_query")
    rows = {
        (task, TITLES[method]): [
            percent(bench.accuracy(task, method, scenario)) for scenario in scenarios
        ]
        for task in TRAINED_TASKS
        for method in ("vanilla", *TRAINED)
    }
    columns = ("zero-shot", "standard", "unseen label", "random query")
    return Expected(("task", "method", *columns), rows, ("task", "method"))


def renamed(bench: Bench, task: str, method: str, words: str) -> float:
    """Return accuracy with other label words."""
    return bench.accuracy(task, method, "renamed_labels", words)


def renamed_labels(bench: Bench) -> Expected:
    """Recompute accuracy with other label words."""
    kinds = ("synonyms", "swapped", "arbitrary")
    rows = {}
    titles = {**TITLES, "e2e_16_steps": "E2E, 16 steps with shared demonstrations"}
    for task in TRAINED_TASKS:
        for method in ("vanilla", *TRAINED, "e2e_16_steps"):
            values = [renamed(bench, task, method, words) for words in kinds]
            rows[task, titles[method]] = [percent(value) for value in (*values, np.mean(values))]
    return Expected(("task", "method", *kinds, "mean"), rows, ("task", "method"))


def extrapolation(bench: Bench) -> Expected:
    """Recompute accuracy between and beyond the trained weights."""
    factors = (0.5, 1.0, 1.25, 1.5, 2.0)
    rows = {}
    for task in TRAINED_TASKS:
        for method in TRAINED:
            cells = []
            for factor in factors:
                record = bench.record(task, method, f"extrapolation-factor={factor}", 1)
                (prompts,) = record["predictions"].values()
                right = np.array(prompts["targets"]) == np.array(prompts["predicted"])
                cells.append(percent(right.mean()))
            rows[task, TITLES[method]] = cells
    return Expected(("task", "method", *(f"{f:g}" for f in factors)), rows, ("task", "method"))


def factors(bench: Bench) -> Expected:
    """Recompute the grid over A0 and B0; without either there is no loss."""
    rewards = (0.0, 0.5, 1.0, 2.0)
    rows = {}
    for controller in (True, False):
        for punishment in (0.0, 0.25, 0.5, 1.0):
            names = [f"factors-A0={punishment}-B0={b}-pid={controller}" for b in rewards]
            cells = [
                percent(bench.accuracy("SST2", "abft", name) if punishment or reward else None)
                for name, reward in zip(names, rewards, strict=True)
            ]
            rows["on" if controller else "off", f"{punishment:g}"] = cells
    columns = ("PID", "A0", *(f"B0 = {b:g}" for b in rewards))
    return Expected(columns, rows, ("PID", "A0"))


def other_tasks(bench: Bench) -> Expected:
    """Recompute what training on all other tasks reaches."""
    rows = {
        (task,): [
            *(percent(bench.accuracy(task, method)) for method in ("vanilla", "metaicl")),
            in_parentheses(bench.difference(task, "metaicl")),
            percent(bench.accuracy(task, "e2e")),
        ]
        for task in TRAINED_TASKS
    }
    columns = ("task", "vanilla", "MetaICL", "MetaICL minus vanilla", "E2E on the task itself")
    return Expected(columns, rows, ("task",))


def ablations(bench: Bench) -> Expected:
    """Recompute the ablations."""
    rows = {
        (TITLES[method],): [
            plain(bench.training("SST2", method)["seconds"], 0),
            percent(bench.accuracy("SST2", method)),
        ]
        for method in ABLATIONS
    }
    return Expected(("method", "training seconds", "SST2"), rows, ("method",))


def ablation_differences(bench: Bench) -> Expected:
    """Recompute differences of the ablations to the untouched model."""
    rows = {
        (TITLES[method],): [in_parentheses(bench.difference("SST2", method))]
        for method in ABLATIONS
    }
    return Expected(("method", "SST2"), rows, ("method",))


def ablation_heads(bench: Bench) -> Expected:
    """Read the numbers of heads over the threshold of the ablations."""
    rows = {
        (TITLES[method],): [plain(bench.metric("SST2", method, "standard", "heads"))]
        for method in ("vanilla", *ABLATIONS)
    }
    return Expected(("method", "SST2"), rows, ("method",), KEPT_METRIC)
