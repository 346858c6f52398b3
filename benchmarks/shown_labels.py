"""Where does accuracy come from: prompts whose demonstrations show the query's label, or those in
which none does?

    python benchmarks/shown_labels.py --cells results/bench/cells

Reads finished `standard` cells of `abft bench` (seed 0, consistent prompt style, k = 4) and
writes the prompts again, which takes seconds; no model runs. "copied" is the share of predictions
that are a label of the demonstrations; "correct share" is how much of all heads' attention on label
tokens is on correct ones.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from abft import evaluation_prompts, load_task

METHODS = {
    "vanilla": "vanilla",
    "e2e": "E2E",
    "abft": "ABFT",
    "vote_and_cross_entropy": "ABFT, vote and cross-entropy",
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=Path, default=Path("results/bench/cells"))
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument(
        "--tasks", nargs="+", default=["SST2", "MR", "FP", "SST5", "TREC", "SUBJ", "TEE", "TEH"]
    )
    options = parser.parse_args()
    print(
        "| task | classes | label shown | method | accuracy, shown | accuracy, not shown | "
        "copied | correct share |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in options.tasks:
        for method, title in METHODS.items():
            path = options.cells / f"{options.model}__{name}__{method}__standard__seed0.json"
            if not path.is_file():
                print(f"no cell {path}", file=sys.stderr)
                continue
            record = json.loads(path.read_text(encoding="utf-8"))
            found = record["predictions"]["standard"]
            # Version 0.1 called them right and wrong.
            correct = record.get("correct_mass", record.get("right_mass"))
            incorrect = record.get("incorrect_mass", record.get("wrong_mass"))
            share = correct / (correct + incorrect)
            targets, predicted = np.array(found["targets"]), np.array(found["predicted"])
            data = load_task(name)
            prompts = evaluation_prompts(data, len(targets), 4)
            assert [prompt.target for prompt in prompts] == targets.tolist(), (
                f"{path} holds other prompts"
            )
            shown = np.array([prompt.target in prompt.label_classes for prompt in prompts])
            copied = np.mean(
                [p in prompt.label_classes for p, prompt in zip(predicted, prompts, strict=True)]
            )
            right = predicted == targets
            parts = [f"{100 * right[at].mean():.1f}" if at.any() else "" for at in (shown, ~shown)]
            classes = len(data.task.labels)
            print(
                f"| {name} | {classes} | {shown.mean():.0%} | {title} | {parts[0]} | {parts[1]} "
                f"| {copied:.0%} | {share:.0%} |"
            )


if __name__ == "__main__":
    main()
