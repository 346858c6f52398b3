"""Tables and the picture of benchmarks/rank.py's results.

python benchmarks/rank_tables.py steps    # recall@1 over steps, run by run
python benchmarks/rank_tables.py counts   # recall@1 by number of candidates, and differences
python benchmarks/rank_tables.py against  # recall@1 with 20 queries a group, and differences
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


def against(options):
    """What training adds on texts of its own kind, to the untrained heads and to peers."""
    by_arm = {}
    for path in sorted(RESULTS.glob("halves_20_queries_*_seed?.json")):
        record = read(path)
        by_arm.setdefault(record["settings"]["arm"], {})[record["settings"]["seed"]] = record

    def hits(arm, seed, name, readout="heads", step=-1):
        record = by_arm[arm][seed]
        text = record["points"][step][name].get(readout) or record["peers"][name].get(readout)
        return np.array(list(text), float).reshape(record["settings"]["tests"], -1)

    for arm, records in by_arm.items():
        for name in next(iter(records.values()))["peers"]:
            last = records[min(records)]["points"][-1]["step"]
            readouts = ["heads"] + ["logits"] * (arm == "ce")
            for readout in readouts:
                trained = np.stack([hits(arm, seed, name, readout) for seed in records])
                print(f"{arm}, {readout}, {name}, seeds {sorted(records)}, step {last}:", end=" ")
                print(f"{100 * trained.mean():.1f}")
                for other in ("untrained", "TF-IDF", "BM25", "MiniLM"):
                    theirs = [
                        hits(arm, seed, name, readout, 0)
                        if other == "untrained"
                        else hits(arm, seed, name, other)
                        for seed in records
                    ]
                    gain = trained - np.stack(theirs)
                    print(f"  minus {other}:", shown(with_interval([[gain]])))

    # At the last step that both have.
    both = sorted(by_arm.get("contrastive", {}).keys() & by_arm.get("ce", {}).keys())
    for name in ("AGNews", "development") if both else ():
        steps_of = [
            {point["step"] for point in by_arm[arm][seed]["points"]}
            for arm in ("contrastive", "ce")
            for seed in both
        ]
        step = max(set.intersection(*steps_of))

        def at(arm, seed, readout, name=name, step=step):
            steps = [point["step"] for point in by_arm[arm][seed]["points"]]
            return hits(arm, seed, name, readout, steps.index(step))

        for readout in ("heads", "logits"):
            gain = np.stack([at("contrastive", s, "heads") - at("ce", s, readout) for s in both])
            difference = shown(with_interval([[gain]]))
            print(f"contrastive minus ce read from {readout}, {name}, step {step}: {difference}")


def picture(options):
    """Recall by candidates, heads before and after training, and seconds of a query."""
    pyplot = svg_pyplot(font_size=9)
    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(11, 3.6), width_ratios=(1.2, 1.1, 1)
    )
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

    for axis in (left, right):
        tidy(axis)
    save(figure, PICTURE)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (steps, counts, against, picture):
        commands.add_parser(run.__name__, description=run.__doc__).set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
