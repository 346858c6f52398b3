"""What does an explanation cost beside the prediction alone? CPU seconds of both, in turns.

python benchmarks/explain.py --output results/explain_cost.json
"""

import argparse
import random
import statistics
import time

from abft import ABFTClassifier, Predictor, load_model, load_task
from abft.bench.labelled_texts import labelled_texts
from abft.data.draws import demonstration_sets
from record import write

TEXTS, FITTED = 48, 64


def in_turns(plain, explained, texts, repeats=5):
    """CPU seconds of `plain` and `explained`, by repeat; the first of each does not count."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.process_time()
        plain(texts)
        between = time.process_time()
        explained(texts)
        seconds.append((round(between - started, 3), round(time.process_time() - between, 3)))
    return seconds[1:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=["SST2", "TREC"])
    parser.add_argument("--output")
    options = parser.parse_args()

    results = []
    for task in options.tasks:
        data = load_task(task)
        texts = [example.text for example in data.train[-TEXTS:]]
        (shown,) = demonstration_sets(data.demonstrations, 4, 1, random.Random(0))
        model, tokenizer = load_model("SmolLM2-135M-Instruct", device="cpu")
        predictor = Predictor(model, tokenizer, data.task, shown)

        fitted = labelled_texts(data.train, FITTED, seed=0)
        classifier = ABFTClassifier(
            template=data.task.template.pattern,
            label_words=dict(enumerate(data.task.label_words)),
            steps=0,
            device="cpu",
            random_state=0,
            progress=False,
        ).fit([example.text for example in fitted], [example.label for example in fitted])

        pairs = {
            "Predictor": (predictor.probabilities, predictor.explain),
            f"ABFTClassifier, {classifier.readout_}": (
                classifier.predict_proba,
                classifier.explain,
            ),
        }
        for name, (plain, explained) in pairs.items():
            seconds = in_turns(plain, explained, texts)
            ratio = statistics.median(after / before for before, after in seconds)
            results.append({"task": task, "of": name, "seconds": seconds, "ratio": ratio})
            print(task, name, f"{ratio:.3f}")
    write(options.output, {"texts": TEXTS, "rows": results})


if __name__ == "__main__":
    main()
