"""Tables and the picture of benchmarks/rank.py's results.

python benchmarks/rank_tables.py steps    # recall@1 over steps, run by run
python benchmarks/rank_tables.py counts   # recall@1 by number of candidates, and differences
python benchmarks/rank_tables.py against  # recall@1 with 20 queries a group, and differences
python benchmarks/rank_tables.py weighted # recall@1 of weighted heads, and differences
python benchmarks/rank_tables.py picture  # docs/ranker.svg

Intervals (95%) are bootstrapped over groups of documents with their queries, and over seeds where
there are several; of one seed they say nothing about others.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from pictures import save, svg_pyplot, tidy
from rank import share
from reader_tables import shown, with_interval

RESULTS = Path(__file__).parent.parent / "results" / "rank"
PICTURE = Path(__file__).parent.parent / "docs" / "ranker.svg"
COUNTS = RESULTS / "halves_counts_seed0.json"
LINES = {
    "trained": ("16 heads, trained", "#c0392b", "-"),
    "untrained": ("16 heads, untrained", "#c0392b", ":"),
    "MiniLM": ("MiniLM", "#57606a", "-"),
    "BM25": ("BM25", "#57606a", ":"),
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def steps(options):
    """Recall@1 over steps of every run that is kept."""
    for path in sorted(RESULTS.glob("**/*.json")):
        record = read(path)
        if "points" not in record:
            continue
        print(path.relative_to(RESULTS), "steps:", *(point["step"] for point in record["points"]))
        for name, each in record["peers"].items():
            print(f"  {name:12}", {k: share(v) for k, v in each.items() if isinstance(v, str)})
            for readout in ("heads", "raw", "all", "logits"):
                found = [point[name].get(readout) for point in record["points"]]
                row = ["    -" if each is None else f"{share(each):5.1f}" for each in found]
                print(f"    {readout:8}", *row)


def counts(options):
    """Recall@1 by number of candidates, and what training adds, with intervals over groups."""
    record = read(COUNTS)
    for name, cell in record["cells"].items():
        shares = {key: share(value) for key, value in cell.items() if isinstance(value, str)}
        print(f"{name}, {len(cell['trained'])} queries:", shares)
        hits = {key: np.array(list(value), float) for key, value in cell.items() if key != "chance"}
        for other in ("untrained", "TF-IDF", "MiniLM"):
            gain = (hits["trained"] - hits[other]).reshape(record["settings"]["tests"], -1)
            print(f"  trained minus {other}:", shown(with_interval([[gain[None]]])))


class Run:
    """A kept run with 20 queries a group: which queries each way to rank answers."""

    def __init__(self, path):
        self.record = read(path)
        settings = self.record["settings"]
        self.arm, self.seed, self._groups = settings["arm"], settings["seed"], settings["tests"]
        self.points = {point["step"]: point for point in self.record["points"]}

    def at(self, step, name, readout):
        """Hits after a step, (groups, queries)."""
        return self._hits(self.points[step][name][readout])

    def peer(self, name, peer):
        """Hits of a peer."""
        return self._hits(self.record["peers"][name][peer])

    def _hits(self, text):
        return np.array(list(text), float).reshape(self._groups, -1)


def last_of_all(runs):
    """The last step that all runs have measured."""
    return max(set.intersection(*(set(run.points) for run in runs)))


def print_difference(title, pairs):
    """A mean difference and its interval, of (ours, theirs) for each seed."""
    gain = np.stack([ours - theirs for ours, theirs in pairs])
    print(f"{title}:", shown(with_interval([[gain]])))


def against(options):
    """What training adds on texts of its own kind, to the untrained heads and to peers."""
    by_arm = {}
    for path in sorted(RESULTS.glob("halves_20_queries_*_seed?.json")):
        run = Run(path)
        by_arm.setdefault(run.arm, []).append(run)

    for arm, runs in by_arm.items():
        step, seeds = last_of_all(runs), [run.seed for run in runs]
        for name in runs[0].record["peers"]:
            for readout in ["heads"] + ["logits"] * (arm == "ce"):
                trained = [run.at(step, name, readout) for run in runs]
                print(f"{arm}, {readout}, {name}, seeds {seeds}, step {step}:", end=" ")
                print(f"{100 * np.mean(trained):.1f}")
                untrained = [run.at(0, name, readout) for run in runs]
                print_difference("  minus untrained", zip(trained, untrained, strict=True))
                for peer in ("TF-IDF", "BM25", "MiniLM"):
                    theirs = [run.peer(name, peer) for run in runs]
                    print_difference(f"  minus {peer}", zip(trained, theirs, strict=True))

    # Each arm minus cross-entropy, at the last step and with the seeds that both have.
    controls = {run.seed: run for run in by_arm.get("ce", [])}
    for arm, runs in by_arm.items():
        both = [(run, controls[run.seed]) for run in runs if run.seed in controls]
        if arm == "ce" or not both:
            continue
        step = last_of_all([run for pair in both for run in pair])
        for name in both[0][0].record["peers"]:
            for readout in ("heads", "logits"):
                print_difference(
                    f"{arm} minus ce read from {readout}, {name}, step {step}",
                    [
                        (run.at(step, name, "heads"), control.at(step, name, readout))
                        for run, control in both
                    ],
                )


def weighted(options):
    """Recall@1 of weighted heads by number of training queries, and differences to peers."""
    by_kind = {}
    for path in sorted(RESULTS.glob("*_weighted_*seed?.json")):
        by_kind.setdefault(path.stem.rsplit("_", 1)[0], []).append(read(path))
    trainings = [Run(path) for path in sorted(RESULTS.glob("halves_20_queries_contrastive_*.json"))]
    by_seed = {run.seed: run for run in trainings}

    for kind, records in by_kind.items():
        seeds = [record["settings"]["seed"] for record in records]
        for name, counted in records[0]["cells"].items():
            print(f"{kind}, {name}, seeds {seeds}; by training queries:")
            for record in records:
                cell = record["cells"][name]
                print("  ", {queries: share(hits) for queries, hits in cell.items()})

            most = max(counted, key=int)
            task, candidates = name.split("/")
            settings = records[0]["settings"]
            groups = settings["tests"] * settings["candidates"] // int(candidates)

            def hits(text, groups=groups):
                return np.array(list(text), float).reshape(groups, -1)

            ours = [hits(record["cells"][name][most]) for record in records]
            print(f"  {100 * np.mean(ours):.1f} with {most} queries")
            for peer in ("TF-IDF", "BM25", "MiniLM"):
                theirs = [hits(record["peers"][name][peer]) for record in records]
                shares = 100 * np.mean(theirs)
                print_difference(f"  minus {peer} ({shares:.1f})", zip(ours, theirs, strict=True))

            # The mean of the chosen heads, on the same queries.
            same = [by_seed.get(seed) for seed in seeds]
            if kind.startswith("halves") and int(candidates) == 20 and all(same):
                for step in (0, last_of_all(same)):
                    theirs = [run.at(step, task, "heads") for run in same]
                    print_difference(
                        f"  minus 16 heads after {step} steps ({100 * np.mean(theirs):.1f})",
                        zip(ours, theirs, strict=True),
                    )


def draw_weighted(axis):
    """Recall of weighted heads by training queries, next to trained heads and peers."""
    records = [read(path) for path in sorted(RESULTS.glob("halves_weighted_seed?.json"))]
    runs = [Run(path) for path in sorted(RESULTS.glob("halves_20_queries_contrastive_*.json"))]
    test = [record["cells"]["AGNews/20"] for record in records]
    queries = list(test[0])
    means = [np.mean([share(cell[count]) for cell in test]) for count in queries]
    axis.plot([int(count) for count in queries], means, "o-", color="#c0392b", label="weighted")
    last = last_of_all(runs)
    levels = {
        "MiniLM": (np.mean([run.peer("AGNews", "MiniLM") for run in runs]), "#57606a", "-"),
        f"16 heads, {last} steps": (
            np.mean([run.at(last, "AGNews", "heads") for run in runs]),
            "#2471a3",
            "-",
        ),
        "TF-IDF": (np.mean([run.peer("AGNews", "TF-IDF") for run in runs]), "#57606a", ":"),
        "16 heads": (np.mean([run.at(0, "AGNews", "heads") for run in runs]), "#2471a3", ":"),
    }
    for label, (level, color, style) in levels.items():
        axis.axhline(100 * level, color=color, linestyle=style, label=label)
    axis.set_xscale("log")
    axis.set_xticks([int(count) for count in queries], queries)
    axis.minorticks_off()
    axis.set_ylim(0, 100)
    axis.set_xlabel("training queries of the weights; model untrained")
    axis.set_ylabel("recall@1 in %, 20 candidates")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def picture(options):
    """Recall by training queries and candidates, heads that training changes, seconds a query."""
    pyplot = svg_pyplot(font_size=9)
    figure, ((first, left), (middle, right)) = pyplot.subplots(2, 2, figsize=(9, 7))
    draw_weighted(first)
    record = read(COUNTS)
    cells = {int(name.split("/")[1]): cell for name, cell in record["cells"].items()}
    for name, (label, color, style) in LINES.items():
        shares = [share(cell[name]) for cell in cells.values()]
        left.plot(list(cells), shares, style, marker="o", color=color, label=label)
    left.set_xscale("log")
    left.set_xticks(list(cells), [str(count) for count in cells])
    left.minorticks_off()
    left.set_ylim(0, 100)
    left.set_xlabel("candidates")
    left.set_ylabel("recall@1 in %")
    left.legend(frameon=False, fontsize=8)

    change_LH = np.array(record["scores"]["trained"]) - np.array(record["scores"]["untrained"])
    bound = np.abs(change_LH).max()
    drawn = middle.imshow(change_LH.T, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    layers, heads = np.array(record["heads"]).T
    middle.scatter(layers, heads, marker="s", facecolors="none", edgecolors="k", s=40)
    middle.set_xlabel("layer")
    middle.set_ylabel("head")
    middle.set_title("attention: relevant minus other, change; chosen heads", fontsize=9)
    figure.colorbar(drawn, ax=middle)

    results = read(RESULTS / "speed.json")["results"]
    counts = [row["documents"] for row in results]
    for name, label, style in (
        ("whole", "the whole prompt", ":"),
        ("query", "documents kept", "-"),
    ):
        seconds = [row["seconds"][name] for row in results]
        right.plot(counts, seconds, style, marker="o", color="#c0392b", label=label)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xticks(counts, [str(count) for count in counts])
    right.minorticks_off()
    right.set_xlabel("documents")
    right.set_ylabel("seconds of a query, one core")
    right.legend(frameon=False, fontsize=8)

    for axis in (first, left, right):
        tidy(axis)
    save(figure, PICTURE)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (steps, counts, against, weighted, picture):
        commands.add_parser(run.__name__, description=run.__doc__).set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
