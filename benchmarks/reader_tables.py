"""Tables and the picture of benchmarks/reader.py's results.

    python benchmarks/reader_tables.py steps      # accuracy over steps, run by run
    python benchmarks/reader_tables.py summary    # before and after the recipe, next to MiniLM
    python benchmarks/reader_tables.py keeps      # news and AGNews, recipe and arms
    python benchmarks/reader_tables.py compare nce16 ce  # one arm minus another
    python benchmarks/reader_tables.py cells      # other numbers of demonstrations, order, news
    python benchmarks/reader_tables.py channel    # the noisy channel, untouched
    python benchmarks/reader_tables.py picture    # docs/reader.svg

Intervals (95%) are bootstrapped over seeds of the training (where there is more than one), and,
within every task, over sets of demonstrations with their queries: the same ones for all seeds and
arms. They say nothing about other tasks than these, and, of a family with one seed, nothing about
other seeds.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from pictures import save, svg_pyplot, tidy
from reader import DEVELOPMENT, FAMILIES, QUERIES_OF_A_SET, READOUTS, accuracy
from reader import hits as hits_of

RESULTS = Path(__file__).parent.parent / "results" / "reader"
PICTURE = Path(__file__).parent.parent / "docs" / "reader.svg"
OURS = "nce16_kl3"  # the recipe
LINES = {  # title, colour and line of each arm in the picture
    OURS: ("contrastive, anchored", "#c0392b", "-"),
    "nce16": ("contrastive", "#c0392b", ":"),
    "ce_kl3": ("cross-entropy, anchored", "#57606a", "-"),
    "ce": ("cross-entropy", "#57606a", ":"),
}
SETS = 8
DRAWS = 4000


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def runs(family, arm):
    """Points of every finished run of an arm, by seed."""
    found = {}
    for path in sorted(RESULTS.glob(f"{family}_{arm}_seed*.json")):
        record = read(path)
        if record["points"][-1]["step"] == record["settings"]["steps"]:
            found[record["settings"]["seed"]] = record["points"]
        else:
            print(f"({path.name} is left out: it is not finished)")
    return found


def hits(cell, readout="label_words"):
    """Which queries are answered correctly, by set of demonstrations, (sets, queries)."""
    assert len(cell["targets"]) == SETS * QUERIES_OF_A_SET
    return hits_of(cell, readout).reshape(SETS, -1)


def with_interval(by_family):
    """Mean over tasks, and its interval.

    Few are drawn: what a draw of n differs by is made sqrt(n / (n - 1)) times as large, so that it
    is not too narrow.

    Args:
        by_family: for each family a list of tasks, each (seeds, sets, queries).
    """
    generator = np.random.default_rng(0)
    mean = np.mean([task.mean() for family in by_family for task in family])

    def change(drawn, of, n):
        return (drawn.mean() - of.mean()) * np.sqrt(n / (n - 1)) if n > 1 else 0.0

    drawn = []
    for _ in range(DRAWS):
        values = []
        for family in by_family:
            seeds = len(family[0])
            chosen = generator.integers(0, seeds, seeds)
            for task in family:
                count = task.shape[1]
                sets = generator.integers(0, count, count)
                by_seed = change(task[chosen], task, seeds)
                values.append(task.mean() + by_seed + change(task[:, sets], task, count))
        drawn.append(np.mean(values))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return tuple(100 * x for x in (mean, low, high))


def shown(interval):
    """A mean and its interval as text."""
    mean, low, high = interval
    return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def row_of(values):
    """Shares as percentages."""
    return " ".join("     -" if np.isnan(x) else f"{100 * x:6.1f}" for x in values)


def steps(options):
    """Accuracy over steps of every run, by read-out."""
    for path in sorted(RESULTS.glob("*_seed*.json")):
        points = read(path).get("points")
        if not points:
            continue
        print(path.name, "steps:", *(point["step"] for point in points))
        for name in [key for key in points[0] if "/" in key]:
            for readout in READOUTS:
                if readout in points[0][name]:
                    print(
                        f"  {name:18}{readout:12}",
                        row_of(accuracy(p[name], readout) for p in points),
                    )


def summary(options):
    """The recipe: every held-out task before and after, next to MiniLM."""
    peers, fitted = (read(RESULTS / f"{name}.json")["cells"] for name in ("peers", "classifier"))
    rows, gains = [], {"own": [], "arbitrary": []}
    from_heads = {"own": {}, "arbitrary": {}}
    titles = ("", "own words", "arbitrary words", "swapped words", "swapped, read from heads")
    titles = (*titles, "MiniLM + LR", "MiniLM, nearest text")
    titles = (*titles, "`ABFTClassifier`, own words", "arbitrary words", "largest class")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for family, tasks in FAMILIES.items():
        by_seed = list(runs(family, OURS).values())
        if not by_seed:
            continue
        first = by_seed[0][0]

        def mean_of(cell, readout="label_words", runs_of=by_seed):
            return np.mean([accuracy(points[-1][cell], readout) for points in runs_of])

        for task in tasks:
            peer = peers[f"{task}/16"]
            own, arbitrary, swapped = (f"{task}/{k}" for k in ("own", "arbitrary", "permuted"))
            assert peer["targets"] == first[own]["targets"]
            row = []
            for cell in (own, arbitrary):
                row += [accuracy(first[cell], "label_words"), mean_of(cell)]
            if swapped in first:
                before = accuracy(first[swapped], "label_words")
                row += [before, mean_of(swapped), mean_of(swapped, "heads")]
            else:
                row += [np.nan] * 3
            row += [accuracy(peer, name) for name in ("minilm", "minilm_nearest")]
            row += [accuracy(fitted[cell], "classifier") for cell in (own, arbitrary)]
            counts = Counter(peer["targets"])
            row.append(max(counts.values()) / counts.total())
            rows.append(row)
            print(f"| {task} | {before_and_after(row)} |")
        for kind, found in gains.items():
            cells = [f"{task}/{kind}" for task in tasks]
            from_heads[kind] |= {cell: mean_of(cell, "heads") - mean_of(cell) for cell in cells}
            found.append(
                [np.stack([hits(p[-1][c]) - hits(p[0][c]) for p in by_seed]) for c in cells]
            )
    print(f"| mean | {before_and_after(np.nanmean(rows, 0))} |")
    for kind, found in gains.items():
        print(f"gain, {kind} words:", shown(with_interval(found)))
    for kind, found in from_heads.items():
        each = {cell: f"{100 * x:+.1f}" for cell, x in found.items()}
        print(f"heads minus label words, {kind}: {100 * np.mean(list(found.values())):+.1f}", each)


def before_and_after(row):
    """A row of the summary as Markdown."""
    values = ["" if np.isnan(x) else f"{100 * x:.1f}" for x in row]
    pairs = [" → ".join(values[i : i + 2]) if values[i] else "" for i in (0, 2, 4)]
    return " | ".join([*pairs, *values[6:]])


def compare(options):
    """One arm minus another, where both ran with the same seed; and on a task of the mixture."""
    ways = [("own", "label_words"), ("arbitrary", "label_words")]
    ways += [("permuted", "label_words"), ("permuted", "attention")]
    for kind, readout in ways:
        found = []
        for family, tasks in FAMILIES.items():
            ours, others = runs(family, options.arm), runs(family, options.other)
            seeds = sorted(set(ours) & set(others))
            if not seeds:
                continue
            first = ours[seeds[0]][0]
            cells = [c for task in tasks if (c := f"{task}/{kind}") in first]
            found.append(
                [
                    np.stack(
                        [
                            hits(ours[s][-1][c], readout) - hits(others[s][-1][c], readout)
                            for s in seeds
                        ]
                    )
                    for c in cells
                ]
            )
            title = f"{kind} words, {readout}"
            print(f"{family}, {len(seeds)} seeds, {title}:", shown(with_interval(found[-1:])))
        if not found:
            raise SystemExit(f"no runs of {options.arm} and {options.other} share family and seed")
        if len(found) > 1:
            print(f"all, {kind} words, {readout}:", shown(with_interval(found)))

    for family, tasks in FAMILIES.items():
        ours, others = runs(family, options.arm), runs(family, options.other)
        for seed in sorted(set(ours) & set(others)):
            (seen,) = {c for c in ours[seed][0] if "/" in c and c.split("/")[0] not in tasks} - {
                f"{known}/{kind}" for known in DEVELOPMENT for kind in ("own", "arbitrary")
            }
            row = [accuracy(ours[seed][0][seen], "label_words")]
            row += [accuracy(each[seed][-1][seen], "label_words") for each in (ours, others)]
            print(f"{seen}, trained on, {family} seed {seed}: before, both arms", row_of(row))


def keeps(options):
    """What training should keep: perplexity of news, and a task whose words say much.

    Columns: perplexity before and after, accuracy with own words, with arbitrary ones.
    """
    (known,) = DEVELOPMENT
    for family in FAMILIES:
        for arm in LINES:
            for seed, points in runs(family, arm).items():
                first, last = points[0], points[-1]
                row = [p.get("perplexity", np.nan) / 100 for p in (first, last)]
                for kind in ("own", "arbitrary"):
                    row += [accuracy(p[f"{known}/{kind}"], "label_words") for p in (first, last)]
                print(f"{family:10}{arm:10} seed {seed}", row_of(row))


def cells(options):
    """Kept weights in other cells: accuracy of the untouched model, and of each training."""
    for family in FAMILIES:
        paths = [RESULTS / f"{family}_cells_untouched.json"]
        paths += sorted(RESULTS.glob(f"{family}_cells_factor*.json"))
        paths = [path for path in paths if path.is_file()]
        if not paths:
            continue
        print(*(path.name for path in paths))
        columns = [read(path)["cells"] for path in paths]
        print("  perplexity            ", *(f"{column['perplexity']:6.1f}" for column in columns))
        for name in columns[0]:
            if name == "perplexity":
                continue
            print(f"  {name:22}", row_of(accuracy(c[name], "label_words") for c in columns))
            if name.endswith("/permuted"):
                print(
                    "    from heads          ", row_of(accuracy(c[name], "heads") for c in columns)
                )
            if name.endswith(("orders", "choices")):
                print("    deviation over sets ", row_of(deviation(c[name]) for c in columns))


def deviation(cell):
    """Standard deviation of the accuracy over sets, which ask the same queries."""
    return np.std(hits_of(cell, "label_words").reshape(SETS, -1).mean(1))


def channel(options):
    """The noisy channel next to the direct way, untouched."""
    for task, cell in read(RESULTS / "channel.json")["cells"].items():
        print(
            f"{task:8}", row_of(accuracy(cell, readout) for readout in ("label_words", "channel"))
        )


def picture(options):
    """Accuracy over steps, the mean of a family's tasks, one line an arm."""
    pyplot = svg_pyplot()

    family = "questions"
    (known,) = DEVELOPMENT
    tasks = FAMILIES[family]
    panels = {
        f"{' and '.join(tasks)}, own words": [f"{task}/own" for task in tasks],
        f"{' and '.join(tasks)}, arbitrary words": [f"{task}/arbitrary" for task in tasks],
        f"{known}, own words": [f"{known}/own"],
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for arm, (label, color, line) in LINES.items():
            by_seed = list(runs(family, arm).values())
            if not by_seed:
                continue
            # The line is of the runs that measured most often; of others the end is shown.
            most = max(map(len, by_seed))
            often = [points for points in by_seed if len(points) == most]
            counts = [point["step"] for point in often[0]]
            found = [
                with_interval([[np.stack([hits(p[i][n]) for p in often]) for n in names]])
                for i in range(most)
            ]
            means, low, high = np.array(found).T
            axis.plot(counts, means, line, marker="o", color=color, label=label)
            if line == "-":
                axis.fill_between(counts, low, high, color=color, alpha=0.15, linewidth=0)
            ends = [points[-1] for points in by_seed if len(points) < most]
            means = [100 * np.mean([hits(end[name]) for name in names]) for end in ends]
            axis.plot([end["step"] for end in ends], means, "x", color=color)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("steps of 32 prompts")
        axis.set_xticks(counts)
        tidy(axis)
    axes[0].set_ylabel("accuracy in %, 16 demonstrations")
    axes[0].legend(frameon=False, loc="lower right", fontsize=9)
    save(figure, PICTURE)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (steps, summary, compare, keeps, cells, channel, picture):
        command = commands.add_parser(run.__name__, description=run.__doc__)
        command.set_defaults(run=run)
        if run is compare:
            command.add_argument("arm")
            command.add_argument("other")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
