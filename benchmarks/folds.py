"""Five folds of `ABFTClassifier` with one base model, against a base model loaded for every fold.

    python benchmarks/folds.py --output results/speed/folds.json

The ways take turns in one process; accuracies have to be equal.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import psutil

from abft import ABFTClassifier, load_task
from abft.classifier.sharing import base_model, forget_base_model
from record import write

SAME = {"device": "cpu", "random_state": 0, "progress": False}


class LoadsEachTime(ABFTClassifier):
    """Drops the base model before every `fit`."""

    def fit(self, X, y, sample_weight=None):
        forget_base_model()
        return super().fit(X, y, sample_weight)


def main():
    from sklearn.model_selection import cross_val_score

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="SST2")
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    examples = random.Random(0).sample(load_task(options.task).train, options.texts)
    texts, labels = zip(*((example.text, example.label) for example in examples), strict=True)
    process = psutil.Process()
    rounds, loading, memory = [], [], []
    for _ in range(options.rounds):
        forget_base_model()
        started = time.perf_counter()
        base_model(ABFTClassifier().model, "cpu", own=False)
        loading.append(time.perf_counter() - started)

        seconds, scores = {}, {}
        for name, kind in (("shared", ABFTClassifier), ("each", LoadsEachTime)):
            started = time.perf_counter()
            scores[name] = cross_val_score(kind(**SAME), texts, labels, cv=5).tolist()
            seconds[name] = time.perf_counter() - started
            memory.append(process.memory_info().rss / 2**30)
        assert scores["shared"] == scores["each"], scores
        rounds.append(seconds)
        print(seconds, flush=True)

    found = {
        "rounds": rounds,
        "loading_seconds": loading,
        "memory_GiB": memory,
        "scores": scores["shared"],
        "ratio": statistics.median(each["each"] / each["shared"] for each in rounds),
    }
    print({name: found[name] for name in ("loading_seconds", "memory_GiB", "ratio", "scores")})
    write(options.output, {"task": options.task, "texts": options.texts, **found})


if __name__ == "__main__":
    main()
