"""Tables and the picture of the scenario `labelled_texts`, and its raw results in a small form.

    abft bench --config results/grids/labelled_texts.yaml --output BENCH
    python benchmarks/labelled_texts.py keep BENCH      # results/labelled_texts/METHOD.jsonl
    python benchmarks/labelled_texts.py tables          # Markdown, from these files
    python benchmarks/labelled_texts.py picture         # docs/labelled-texts.svg, needs matplotlib

Every line of a file is a cell: task, labelled texts, seed of the draw, metrics, cost, versions, and
`probabilities`, base64 of the (queries, classes) probabilities as little-endian 16-bit integers,
65535 = 1. `readouts` has, for each read-out of `ABFTClassifier`, its metrics and its predicted
classes, one digit a query. `targets.json` has the classes of the test queries of every task.
"""

import argparse
import base64
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from abft.bench.statistics import spread_over_seeds
from pictures import save, svg_pyplot, tidy
from record import PACKAGES, ROOT, machine

FOLDER = ROOT / "results" / "labelled_texts"
PICTURE = ROOT / "docs" / "labelled-texts.svg"
TASKS = ("SST2", "MR", "FP", "SST5", "TREC", "SUBJ", "TEE", "TEH")
SIZES = (16, 64, 256, 512, 1024)
RESAMPLES = 2000
TITLES = {
    "tfidf": "TF-IDF + LR",
    "minilm": "MiniLM + LR",
    "minilm_knn": "MiniLM, nearest neighbours",
    "setfit": "SetFit, MiniLM",
    "untrained_probe": "probe of the untouched model",
    "untrained/label_words": "read-out: label words",
    "untrained/attention": "read-out: attention",
    "untrained/probe": "read-out: probe",
    "untrained/blend": "read-out: blend",
    "untrained": "**`ABFTClassifier`**",
    "trained": "`ABFTClassifier(steps=16)`",
}


def keep(bench):
    """Add a benchmark's cells to the files of their methods; a cell that is there is replaced."""
    measured_with = {
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine(),
    }
    targets = _read_json(FOLDER / "targets.json")
    by_method = {}
    for path in sorted((bench / "cells").glob("*__labelled_texts-*.json")):
        if path.name.endswith(".failed.json"):
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        predictions = record["predictions"]["zero_shot"]
        known = targets.setdefault(record["task"], predictions["targets"])
        assert known == predictions["targets"], f"{path}: other test queries"

        probabilities_NC = np.array(record["probabilities"]["zero_shot"])
        whole = np.round(probabilities_NC * 65535).astype("<u2")
        line = {
            "task": record["task"],
            "texts": record["variant"]["texts"],
            "seed": record["seed"],
            "metrics": _rounded(record["metrics"]),
            "training": record["training"],
            "probabilities": base64.b64encode(whole.tobytes()).decode(),
            # Probabilities are rounded, so that some are equal.
            "predicted": "".join(map(str, predictions["predicted"])),
        }
        if "readouts" in record:
            line["readouts"] = {
                name: {
                    "metrics": _rounded(of_readout["metrics"]),
                    "predicted": "".join(map(str, of_readout["predicted"])),
                }
                for name, of_readout in record["readouts"].items()
            }
        by_method.setdefault(record["method"], []).append({**line, **measured_with})

    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "targets.json").write_text(json.dumps(targets) + "\n", encoding="utf-8")
    for method, lines in by_method.items():
        path = FOLDER / f"{method}.jsonl"
        cells = {_place(line): line for line in [*_lines(path), *lines]}
        text = "".join(json.dumps(cells[place]) + "\n" for place in sorted(cells))
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(lines)} cells of {len(cells)}", file=sys.stderr)


def _place(line):
    return line["task"], line["texts"], line["seed"]


def _rounded(metrics):
    return {name: round(value, 5) for name, value in metrics.items()}


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _lines(path):
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Cells:
    """The kept cells: whether each test query was answered correctly, and what it cost."""

    def __init__(self, folder=FOLDER):
        targets = {name: np.array(t) for name, t in _read_json(folder / "targets.json").items()}
        self.correct, self.cost = {}, {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in _lines(path):
                task, texts, seed = _place(line)
                known = targets[task]
                raw = np.frombuffer(base64.b64decode(line["probabilities"]), "<u2")
                predicted = {path.stem: raw.reshape(len(known), -1).argmax(1)}
                if "predicted" in line:
                    predicted = {path.stem: np.array(list(line["predicted"]), int)}
                for name, of_readout in line.get("readouts", {}).items():
                    predicted[f"{path.stem}/{name}"] = np.array(list(of_readout["predicted"]), int)
                for method, classes in predicted.items():
                    self.correct[method, task, texts, seed] = classes == known
                    self.cost[method, task, texts, seed] = line["training"]

    def seeds(self, method, texts, tasks=TASKS):
        """The draws that were measured on all tasks."""
        return [s for s in range(9) if all((method, t, texts, s) in self.correct for t in tasks)]

    def accuracy(self, method, texts, task, seeds):
        """Accuracy in %, mean of the draws."""
        return 100 * np.mean([self.correct[method, task, texts, seed].mean() for seed in seeds])

    def samples(self, method, texts, seeds, tasks=TASKS, seed=0):
        """Bootstrap samples of the mean accuracy over tasks, in %: queries and draws resampled.

        Methods with the same draws get the same samples of queries and draws, so that differences
        are paired.
        """
        generator = np.random.default_rng(seed)
        samples = np.zeros(RESAMPLES)
        for task in tasks:
            correct_SN = spread_over_seeds(
                np.stack([self.correct[method, task, texts, s] for s in seeds])
            )
            S, N = correct_SN.shape
            for i in range(RESAMPLES):
                draws = generator.integers(S, size=S)
                queries = generator.integers(N, size=N)
                samples[i] += correct_SN[np.ix_(draws, queries)].mean()
        return 100 * samples / len(tasks)

    def mean(self, method, texts, seeds):
        """Mean accuracy over tasks in %, and both ends of its 95% interval."""
        mean = np.mean([self.accuracy(method, texts, task, seeds) for task in TASKS])
        low, high = np.quantile(self.samples(method, texts, seeds), [0.025, 0.975])
        return mean, low, high

    def seconds(self, method, texts, seeds, name):
        """CPU seconds, mean over tasks and draws."""
        return np.mean([self.cost[method, t, texts, s][name] for t in TASKS for s in seeds])


def tables():
    """Print the table of means by number of texts, and those by task."""
    cells = Cells()
    sizes = [texts for texts in SIZES if any(cells.seeds(method, texts) for method in TITLES)]
    print("| method | " + " | ".join(f"N = {texts}" for texts in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for method, title in TITLES.items():
        row = []
        for texts in sizes:
            seeds = cells.seeds(method, texts)
            if not seeds:
                row.append("")
                continue
            mean, low, high = cells.mean(method, texts, seeds)
            row.append(f"{len(seeds)}: {mean:.1f} [{low:.1f}, {high:.1f}]")
        if any(row):
            print(f"| {title} | " + " | ".join(row) + " |")

    for texts in sizes:
        print(f"\n**N = {texts}: accuracy in %.**\n")
        head = ("method", *TASKS, "mean", "fitting", "512 predictions")
        print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
        for method, title in TITLES.items():
            seeds = cells.seeds(method, texts)
            if not seeds:
                continue
            each = [cells.accuracy(method, texts, task, seeds) for task in TASKS]
            cost = ["", ""]
            if "/" not in method:
                names = ("cpu_seconds", "cpu_seconds_512")
                cost = [f"{cells.seconds(method, texts, seeds, name):.1f}" for name in names]
            numbers = [*(f"{value:.1f}" for value in (*each, np.mean(each))), *cost]
            print(f"| {title} | " + " | ".join(numbers) + " |")


SHOWN = ("tfidf", "minilm_knn", "minilm", "setfit", "untrained_probe", "untrained")


def picture():
    """Draw mean accuracy against labelled texts, with 95% intervals."""
    pyplot = svg_pyplot()
    cells = Cells()
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for i, method in enumerate(SHOWN):
        points = [(texts, seeds) for texts in SIZES if (seeds := cells.seeds(method, texts))]
        if not points:
            continue
        means, bounds = [], []
        for texts, seeds in points:
            mean, low, high = cells.mean(method, texts, seeds)
            means.append(mean)
            bounds.append((mean - low, high - mean))
        ours = method == "untrained"
        axes.errorbar(
            # Neighbours are set apart a little, so that their intervals can be told apart.
            [texts * 1.025 ** (i - 2.5) for texts, _ in points],
            means,
            np.array(bounds).T,
            label=TITLES[method].replace("*", "").replace("`", ""),
            marker="o",
            markersize=5 if ours else 4,
            linewidth=2.5 if ours else 1.3,
            capsize=2,
            color="#c0392b" if ours else f"C{i}" if f"C{i}" != "C3" else "C7",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.set_ylim(bottom=42)  # room for the legend
    axes.set_xlabel("labelled texts in all")
    axes.set_ylabel("accuracy in %, mean of eight tasks")
    tidy(axes)
    axes.legend(frameon=False, loc="lower right")
    save(figure, PICTURE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("keep", "tables", "picture"))
    parser.add_argument("bench", nargs="?", type=Path, help="folder of abft bench")
    options = parser.parse_args()
    if options.what == "keep":
        keep(options.bench)
    else:
        {"tables": tables, "picture": picture}[options.what]()


if __name__ == "__main__":
    main()
