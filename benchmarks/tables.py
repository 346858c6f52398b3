"""Write the tables of PERFORMANCE.md from raw results, between its `<!-- table: NAME -->` marks.

python benchmarks/tables.py            # in place
python benchmarks/tables.py --print    # to the terminal instead
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

import numpy as np

from abft.bench.results import mean_difference
from abft.bench.statistics import interval, paired_bootstrap

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
STEP_WAYS = {  # row names of the ways of step.py
    "abft": "abft, `--queries 1`",
    "packed": "abft, `--queries 4`",
    "bf16": "abft, `--queries 4 --bf16`",
    "half": "abft, `--queries 1 --activation-checkpointing 2`",
    "plain": "eager baseline",
    "sft": "TRL `SFTTrainer`, LoRA",
}
STEP_CHANGES = {
    "default": "loss of the default (vote + cross-entropy)",
    "compiled": "every decoder layer under `torch.compile`",
}
PROFILE_KINDS = {  # row names of the kinds of operations of limits.py
    "element by element": "element-wise operations",
    "attention": "attention kernel",
    "attention rows": "attention rows for the loss",
}
RUN_NAMES = {  # row names of the variants of time_to_accuracy.py
    "paper": "paper's recipe",
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
GIB = 2**30
DEFAULT = "both4"  # among the variants of time_to_accuracy.py
GOALS = {"SST2": 0.85, "TREC": 0.6, "FP": 0.75}  # accuracy on held-out prompts


def table(head, rows):
    return "\n".join(
        ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    )


def spread(ratios):
    """Median, and the range over rounds."""
    if len(ratios) == 1:
        return f"{ratios[0]:.2f}x"
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def against(seconds, others):
    """Ratios of another way's seconds to this one's, round by round."""
    return [other / own for own, other in zip(seconds, others, strict=True)]


def step(record):
    rows = []
    for shape in record["results"]:
        seconds = step_seconds(shape)
        memory = {
            way: statistics.median(m["peak_bytes"] for m in found)
            for way, found in shape["ways"].items()
        }
        for way in seconds:
            rows.append(
                [
                    f"{shape['tokens']:,} x {shape['batch_size']}",
                    STEP_WAYS[way],
                    f"{shape['batch_size'] / statistics.median(seconds[way]):.2f}",
                    *(
                        "" if way == other else spread(against(seconds[way], seconds[other]))
                        for other in ("plain", "sft")
                    ),
                    f"{memory[way] / GIB:.2f} GiB",
                    "" if way == "plain" else f"{memory[way] / memory['plain']:.2f}x",
                ]
            )
    head = [
        "tokens x batch",
        "setup",
        "prompts/s",
        "speed vs. eager baseline",
        "speed vs. TRL",
        "peak memory",
        "memory vs. eager baseline",
    ]
    return table(head, rows)


def step_seconds(shape):
    """Mean seconds of a step, by way and round."""
    return {
        way: [statistics.mean(m["seconds"]) for m in found] for way, found in shape["ways"].items()
    }


def variants(record):
    rows = []
    for shape in record["results"]:
        seconds = step_seconds(shape)
        rows += [
            [
                f"{shape['tokens']:,} x {shape['batch_size']}",
                STEP_CHANGES[way],
                spread(against(taken, seconds["packed"])),
            ]
            for way, taken in seconds.items()
            if way != "packed"
        ]
    return table(["tokens x batch", "change", "speed vs. `--queries 4`"], rows)


def memory(record):
    rows = []
    for shape in record["results"]:
        peaks = {way: found[0]["peak_bytes"] for way, found in shape["ways"].items()}
        cells = [
            f"{peaks[way] / GIB:.2f}" if way in peaks else "" for way in ("abft", "half", "plain")
        ]
        ratios = [
            f"{peaks[way] / peaks['plain']:.2f}x" if "plain" in peaks else ""
            for way in ("abft", "half")
        ]
        rows.append(
            [
                f"{shape['tokens']:,}",
                *cells,
                f"{peaks['abft'] / shape['tokens'] / 2**20:.2f}",
                *ratios,
            ]
        )
    names = ("abft", "with checkpointing")
    head = [
        "tokens",
        *(f"{name}, GiB" for name in (*names, "eager baseline")),
        "abft, MiB per token",
        *(f"{name} / baseline" for name in names),
    ]
    return table(head, rows)


def limits(record):
    rows = []
    for shape in record["results"]:
        operations = sum(shape["operations"].values())
        rows.append(
            [
                f"{shape['tokens']:,} x {shape['batch_size']}",
                f"{operations / 1e9:,.0f}",
                f"{statistics.median(shape['product_rates']) / 1e9:.0f}",
                f"{statistics.median(shape['bandwidths']) / 1e9:.1f}",
                f"{operations / statistics.median(shape['seconds']) / 1e9:.0f}",
                f"**{100 * shape['share_of_product_rate']:.0f}%**",
            ]
        )
    head = [
        "tokens x batch",
        "GFLOP per step",
        "matrix rate, GFLOP/s",
        "bandwidth, GB/s",
        "training, GFLOP/s",
        "share of matrix rate",
    ]
    return table(head, rows)


def profile(record):
    kinds = sorted({kind for shape in record["results"] for kind in shape["profile"]})
    first = record["results"][0]["profile"]
    kinds.sort(key=lambda kind: -first.get(kind, 0))
    shares = [
        {k: v / sum(shape["profile"].values()) for k, v in shape["profile"].items()}
        for shape in record["results"]
    ]
    rows = [
        [PROFILE_KINDS.get(kind, kind), *(f"{100 * share.get(kind, 0):.1f}%" for share in shares)]
        for kind in kinds
    ]
    return table(
        ["operations", *(f"{s['tokens']:,} x {s['batch_size']}" for s in record["results"])],
        rows,
    )


def evaluation(record):
    rows = [
        [
            evaluation_name(name),
            f"{way['prompts_per_second']:.1f}",
            spread(way["ratios"]) if name != "StaICC" else "1",
        ]
        for name, way in record["ways"].items()
    ]
    return table(["setup", "prompts/s", "speed vs. StaICC"], rows)


def evaluation_name(way):
    """The row name for a way of eval.py, whose name has the batch size in it."""
    _, _, size = way.partition("matrix products alone, ")
    if size:
        return f"matrix products only, batch size {size} (upper bound)"
    return way.replace("batches of", "abft, batch size").replace(
        "with heads", "with every head's attention"
    )


def predict(record):
    rows = [
        [
            str(row["k"]),
            f"{row['tokens']:.0f}",
            f"{row['query_tokens']:.0f}",
            f"{row['queries_per_second']['whole']:.1f}",
            f"{row['queries_per_second']['kept']:.1f}",
            f"**{row['ratio']:.1f}x** ({min(row['ratios']):.1f}-{max(row['ratios']):.1f})",
            f"{row['largest_difference']:.0e}",
        ]
        for row in record["results"]
    ]
    head = [
        "k",
        "tokens per prompt",
        "tokens of the query",
        "whole prompts, queries/s",
        "cached demonstrations, queries/s",
        "speedup",
        "largest difference in probability",
    ]
    return table(head, rows)


def reached(run, accuracy):
    """Steps of training until the first validation with this accuracy; None if there was none."""
    return next(
        (int(step) for step, found in run["validation"].items() if found["accuracy"] >= accuracy),
        None,
    )


def seconds_per_step(runs):
    """CPU seconds of a training step: one thread, so that other work on the machine does not count.
    None: not measured.
    """
    ends = [list(run["validation"].items())[-1] for run in runs]
    taken = [found["cpu_seconds"] / int(step) for step, found in ends if "cpu_seconds" in found]
    return statistics.median(taken) if taken else None


def times_faster(run, cost, paper, paper_cost, goal):
    """How much sooner a run reaches an accuracy than the recipe, which counts with all its steps if
    it never does; None if the run does not.
    """
    steps, whole = reached(run, goal), int(list(paper["validation"])[-1])
    return paper_cost * (reached(paper, goal) or whole) / (cost * steps) if steps else None


def time_to_accuracy(runs):
    """Each task's variants against the paper's recipe.

    A recipe that does not get there counts with all its steps: "times faster" is then a lower
    limit.
    """
    rows = []
    for task in dict.fromkeys(run["task"] for run in runs):
        variants = {}
        for run in runs:
            if run["task"] == task:
                variants.setdefault(run["variant"], {})[run["seed"]] = run
        paper = variants["paper"]
        cost = {name: seconds_per_step(found.values()) for name, found in variants.items()}
        last = {
            name: {seed: list(run["validation"].values())[-1] for seed, run in found.items()}
            for name, found in variants.items()
        }
        goal = GOALS[task]
        for name, found in variants.items():
            steps = {seed: reached(run, goal) for seed, run in found.items()}
            arrived = [cost[name] * count for count in steps.values() if count]
            both = [seed for seed in found if seed in paper]
            ratios = [
                times_faster(found[seed], cost[name], paper[seed], cost["paper"], goal)
                for seed in both
            ]
            ratios = [ratio for ratio in ratios if ratio]
            ends = [last["paper"][seed]["accuracy"] for seed in both]  # what the recipe comes to
            as_far = [
                times_faster(found[seed], cost[name], paper[seed], cost["paper"], end)
                for seed, end in zip(both, ends, strict=True)
            ]
            limit = "at least " if any(not reached(paper[seed], goal) for seed in both) else ""
            right = {
                v: [[int(c) for c in last[v][seed]["right"]] for seed in both]
                for v in (name, "paper")
            }
            rows.append(
                [
                    f"{task}, {100 * goal:.1f}%",
                    RUN_NAMES.get(name, name),
                    f"{len(arrived)} of {len(found)}",
                    f"{cost[name]:.1f}",
                    f"{statistics.median(arrived):.0f}" if arrived else "",
                    "" if name == "paper" or not ratios else limit + spread(ratios),
                    "" if name == "paper" or None in as_far else spread(as_far),
                    f"{100 * statistics.mean(end['accuracy'] for end in last[name].values()):.1f}",
                    "" if name == "paper" else difference([(right[name], right["paper"])]),
                ]
            )
    head = [
        "task, target accuracy",
        "method",
        "seeds that reach it",
        "CPU seconds per step",
        "CPU seconds to target, median",
        "speedup to target",
        "speedup to recipe's final accuracy",
        "final accuracy, %",
        "difference in points",
    ]
    return table(head, rows)


def explored(runs):
    """Accuracy on held-out prompts by training prompts seen, and what a step costs beside the
    default's of the same task.
    """
    rows = []
    default = {
        task: seconds_per_step(
            run for run in runs if (run["task"], run["variant"]) == (task, DEFAULT)
        )
        for task in {run["task"] for run in runs if run["variant"] == DEFAULT}
    }
    shown = [run for run in runs if run["variant"] != "paper"]
    for run in sorted(
        shown, key=lambda run: (run["task"] != "SST2", run["task"], run["variant"], run["seed"])
    ):
        settings = run["settings"]
        step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
        at = {
            int(number) * step: f"{100 * found['accuracy']:.1f}"
            for number, found in run["validation"].items()
        }
        seen = [at.get(prompts, "") for prompts in (128, 256, 512, 768, 1024)]
        cost = seconds_per_step([run])
        ratio = f"{cost / default[run['task']]:.2f}" if cost and run["task"] in default else ""
        rows.append(
            [
                run["task"],
                RUN_NAMES.get(run["variant"], run["variant"]),
                str(run["seed"]),
                f"{100 * run['before']['accuracy']:.1f}",
                *seen,
                ratio,
            ]
        )
    head = [
        "task",
        "method",
        "seed",
        "before",
        "128 prompts",
        "256",
        "512",
        "768",
        "1,024",
        "cost per step",
    ]
    return table(head, rows)


def against_default(runs):
    """Accuracy of each variant minus the default's on the same prompts, tasks and seeds, at the
    last validation of both.
    """
    default = {(run["task"], run["seed"]): run for run in runs if run["variant"] == DEFAULT}
    pairs = {}
    for run in runs:
        other = default.get((run["task"], run["seed"]))
        if other and run["variant"] not in ("paper", DEFAULT):
            step = max(run["validation"].keys() & other["validation"].keys(), key=int)
            own, its = (
                [int(c) for c in each["validation"][step].get("right", "")] for each in (run, other)
            )
            if len(own) == len(its):  # the same prompts
                pairs.setdefault(run["variant"], []).append((run["task"], own, its))
    rows = []
    for name, found in sorted(pairs.items()):
        cells = []
        for tasks in (*((task,) for task in GOALS), tuple(GOALS)):
            chosen = [pair for pair in found if pair[0] in tasks]
            # By task, seeds by prompts: both are resampled, and runs of one seed stay a pair.
            by_task = [
                [[pair[side] for pair in chosen if pair[0] == task] for side in (1, 2)]
                for task in dict.fromkeys(pair[0] for pair in chosen)
            ]
            cells.append(f"{len(chosen)}: {difference(by_task)}" if chosen else "")
        rows.append([RUN_NAMES.get(name, name), *cells])
    return table(["method", *GOALS, "all"], rows)


def difference(by_task):
    """Mean difference over tasks in points and its 95% interval; two sets of rights and wrongs by
    run and prompt for each task.
    """
    estimates = []
    for ours, theirs in by_task:
        gains = np.array(ours) - np.array(theirs)
        estimates.append(
            paired_bootstrap(gains, np.zeros((1, gains.shape[1])), range(gains.shape[1]))
        )
    mean, samples = mean_difference(estimates)
    low, high = interval(samples)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def startup(record):
    rows = [
        [
            f"`{name}`".replace(", without imports`", "`, without imports"),
            f"{statistics.median(taken):.2f}",
            f"{min(taken):.2f}",
        ]
        for name, taken in record["seconds"].items()
    ]
    return table(["process", "seconds, median", "seconds, minimum"], rows)


def machine(record):
    about, versions = record["machine"], record["versions"]
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{about['cpu']}, {about['cores']} cores, {about['memory_GiB']} GiB; {named}."


TABLES = {  # what makes each, and the files or folders that it reads
    "machine": (machine, "step"),
    "limits": (limits, "limits"),
    "profile": (profile, "limits"),
    "step": (step, "step"),
    "variants": (variants, "variants"),
    "memory": (memory, "memory"),
    "evaluation": (evaluation, "eval"),
    "predict": (predict, "predict"),
    "startup": (startup, "startup"),
    "explored": (explored, "explored", "time_to_accuracy"),
    "against_default": (against_default, "explored", "time_to_accuracy"),
    "time_to_accuracy": (time_to_accuracy, "time_to_accuracy"),
}


def written(name, folder):
    """The table `name` and the command that made its raw results."""
    make, *sources = TABLES[name]
    if (folder / sources[0]).is_dir():
        paths = [path for source in sources for path in sorted((folder / source).glob("*.json"))]
        return make([json.loads(path.read_text(encoding="utf-8")) for path in paths])
    return make(json.loads((folder / f"{sources[0]}.json").read_text(encoding="utf-8")))


def filled(page, folder):
    """The page with every table written anew."""
    return MARK.sub(
        lambda found: found.group(1) + written(found.group(2), folder) + "\n" + found.group(3), page
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "speed")
    parser.add_argument("--page", type=Path, default=ROOT / "PERFORMANCE.md")
    parser.add_argument(
        "--print",
        action="store_true",
        dest="show",
        help="print the tables; leave the page as it is",
    )
    options = parser.parse_args()
    if options.show:
        for name, (_, source, *_) in TABLES.items():
            if (options.results / source).is_dir() or (
                options.results / f"{source}.json"
            ).is_file():
                print(f"{name}\n\n{written(name, options.results)}\n")
        return
    try:
        text = filled(options.page.read_text(encoding="utf-8"), options.results)
    except FileNotFoundError as missing:
        sys.exit(f"no raw results: {missing.filename}; run the benchmark first (make bench)")
    options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
