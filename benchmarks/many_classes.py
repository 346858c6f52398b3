"""More classes than demonstrations in a prompt: how many sets of demonstrations should
`ABFTClassifier` average over?

    python benchmarks/many_classes.py --output results/many_classes.json

The texts of several built-in tasks make one task of all their classes. Only training pools are
used: a part to fit, another to measure.
Accuracy by number of sets, without training and with it; with s sets of k demonstrations, s k
classes are shown somewhere.
"""

import argparse
import random
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from abft import ABFTClassifier, load_task
from record import write

TASKS = ("TREC", "AGNews", "SUBJ", "TEE", "SST2")
TEXTS = 200  # a task, drawn from its training pool
LEAST = 8  # texts of a class; TREC's abbreviations are too few


def texts_and_labels(seed):
    """Shuffled texts of all tasks, and their labels."""
    rows = []
    for name in TASKS:
        data = load_task(name)
        drawn = random.Random(seed).sample(data.train, TEXTS)
        rows += [(example.text, data.task.label_words[example.label]) for example in drawn]
    random.Random(seed).shuffle(rows)
    counts = Counter(label for _, label in rows)
    return [(text, label) for text, label in rows if counts[label] >= LEAST]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--sets", type=int, default=8, help="at most")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--texts", type=int, default=640, help="to fit on")
    parser.add_argument("--tests", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    rows = texts_and_labels(options.seed)
    texts, labels = zip(*rows[: options.texts], strict=True)
    tests, answers = zip(*rows[options.texts : options.texts + options.tests], strict=True)
    found = {"classes": sorted(set(labels)), "k": options.k}
    for name, steps in (("untrained", 0), ("trained", options.steps)):
        classifier = ABFTClassifier(
            k=options.k,
            demonstration_sets=options.sets,
            steps=steps,
            random_state=options.seed,
            progress=False,
        )
        with warnings.catch_warnings(action="ignore"):
            classifier.fit(texts, labels)
        by_set = np.stack([predictor.probabilities(tests) for predictor in classifier._opened()])
        right = np.searchsorted(classifier.classes_, answers)
        accuracy = {
            s: float((by_set[:s].mean(0).argmax(1) == right).mean())
            for s in range(1, options.sets + 1)
        }
        shown = [{label for _, label in one} for one in classifier.demonstrations_]
        by_shown = {
            word: float(
                (by_set[0].argmax(1) == right)[
                    [(answer in shown[0]) == is_shown for answer in answers]
                ].mean()
            )
            for word, is_shown in (("shown", True), ("not shown", False))
        }
        found[name] = {
            "accuracy by sets": accuracy,
            "accuracy of the first set by whether it shows the right class": by_shown,
            "classes shown by sets": {s: len(set().union(*shown[:s])) for s in accuracy},
            "best step": classifier.best_step_,
            "validation": classifier.validation_,
        }
        print(name, found[name], flush=True)
    write(options.output, found)


if __name__ == "__main__":
    main()
