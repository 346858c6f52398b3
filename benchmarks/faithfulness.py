"""Does the prediction follow the demonstration that the heads looked at most?

    python benchmarks/faithfulness.py --run RUN_DIR --output results/faithfulness_SST2.json

Each demonstration is removed in turn, and every query is classified again: how often does the
prediction change if the one goes that the heads looked at most, the one they looked at least, or a
random one (the mean over all)? Untouched, and with the weights of a finished run. The queries are
the last of the training pool.
"""

import argparse
import random
from pathlib import Path

import numpy as np

from abft import Predictor, apply_weights, load_model, load_task
from abft.data.draws import demonstration_sets
from record import write


def measure(model, tokenizer, data, texts, sets):
    """Shares of changed predictions, and mean change of the predicted label's probability."""
    changed, drops, shares = [], [], []
    for demonstrations in sets:
        whole = Predictor(model, tokenizer, data.task, demonstrations)
        explanations = whole.explain(texts)
        shares.append(np.stack([each.shares for each in explanations]))
        before = np.array([list(each.probabilities.values()) for each in explanations])
        predicted = before.argmax(1)
        rows = np.arange(len(texts))
        by_removed = []
        for i in range(len(demonstrations)):
            rest = [*demonstrations[:i], *demonstrations[i + 1 :]]
            by_removed.append(Predictor(model, tokenizer, data.task, rest).probabilities(texts))
        changed.append(np.stack([after.argmax(1) != predicted for after in by_removed], axis=1))
        still = np.stack([after[rows, predicted] for after in by_removed], axis=1)
        drops.append(before[rows, predicted][:, None] - still)

    changed_NK, drops_NK, shares_NK = map(np.concatenate, (changed, drops, shares))
    rows = np.arange(len(changed_NK))
    chosen = {"most": shares_NK.argmax(1), "least": shares_NK.argmin(1)}
    result = {
        name: {
            "changed": float(changed_NK[rows, i].mean()),
            "drop": float(drops_NK[rows, i].mean()),
        }
        for name, i in chosen.items()
    }
    result["random"] = {"changed": float(changed_NK.mean()), "drop": float(drops_NK.mean())}

    # Paired over queries: the most looked-at one against the mean of all.
    difference_N = changed_NK[rows, chosen["most"]] - changed_NK.mean(1)
    draws = np.random.default_rng(0).integers(0, len(texts), (2000, len(texts)))
    by_query = difference_N.reshape(len(sets), -1).mean(0)
    low, high = np.quantile(by_query[draws].mean(1), [0.025, 0.975])
    result["most minus random"] = [float(difference_N.mean()), float(low), float(high)]
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="SST2")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--sets", type=int, default=4)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    data = load_task(arguments.task)
    texts = [example.text for example in data.train[-arguments.queries :]]
    sets = demonstration_sets(data.demonstrations, arguments.k, arguments.sets, random.Random(0))
    model, tokenizer = load_model("SmolLM2-135M-Instruct", device="cpu")
    untouched = measure(model, tokenizer, data, texts, sets)
    trained = measure(apply_weights(model, arguments.run), tokenizer, data, texts, sets)
    settings = {name: str(value) for name, value in vars(arguments).items() if name != "output"}
    settings["run"] = arguments.run.name
    write(arguments.output, {**settings, "untouched": untouched, "trained": trained})


if __name__ == "__main__":
    main()
