"""Tables of PERFORMANCE.md."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recomputing.pages import EMPTY, Cell, Expected, header, number, percent, plain, write
from recomputing.statistics import bootstrap, mean_estimate, points

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
