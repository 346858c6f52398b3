"""Which classes should training prompts draw, where one class is rare?

    python benchmarks/unbalanced.py --output results/unbalanced.json

Two classes at ten to one (`--ratio`), made from a task's training pool by dropping texts; tasks
with more classes stay as they are. Each sampling trains as `abft train` does by default; the
untouched model is measured too. Test queries are the last eighth of the pool, all of them (none of
TREC's is of its rarest class); at ten to one the majority's count ten times: recalls are weighted,
so that no rare text is thrown away. Demonstrations of test prompts are drawn from the unbalanced
pool, as `abft train` measures, or class by class, as `abft predict` chooses them.
"""

import argparse
import random
from dataclasses import replace

import numpy as np

from abft import encode, evaluate, evaluation_prompts, label_tokens, load_model, load_task
from abft.data.draws import demonstration_sets
from abft.data.prompts import write_prompt
from abft.method.settings import PAPER
from held_out import split, trained
from record import write

SAMPLINGS = ("natural", "balanced-queries", "balanced")
DEFAULT = {  # as `abft train` trains by default
    "objective": "vote",
    "cross_entropy": 1.0,
    "learning_rate": 3e-4,
    "queries": 4,
    "max_steps": 16,
}


def unbalanced(data, ratio):
    """The task with `ratio` times as many texts of its first class in training as of its second."""
    parts = split(data)
    if len(data.task.labels) != 2:
        return parts, np.bincount([example.label for example in parts.train])

    def thinned(examples):
        kept = [example for example in examples if example.label == 0]
        return tuple(kept + [e for e in examples if e.label == 1][: round(len(kept) / ratio)])

    # StaICC's draws depend on the order: the rare texts must not all come last.
    demonstrations = list(thinned(parts.demonstrations))
    random.Random(0).shuffle(demonstrations)
    data = replace(parts, train=thinned(parts.train), demonstrations=tuple(demonstrations))
    return data, np.array([ratio, 1])


def test_prompts(data, k):
    """By name, prompts of all test queries."""
    generator = random.Random(0)
    shown = demonstration_sets(data.demonstrations, k, len(data.test), generator)
    return {
        "drawn": evaluation_prompts(data, len(data.test), k),
        "class by class": [
            write_prompt(data.task, demonstrations, query)
            for demonstrations, query in zip(shown, data.test, strict=True)
        ],
    }


def weighted(predicted, targets, counts_C):
    """Accuracy, macro-F1 and recalls, where class c is as frequent as `counts_C` says."""
    C = len(counts_C)
    confusion_CC = np.zeros((C, C))
    np.add.at(confusion_CC, (targets, predicted), 1)
    confusion_CC *= (counts_C / np.maximum(confusion_CC.sum(1), 1))[:, None]
    confusion_CC /= confusion_CC.sum()
    hits_C = confusion_CC.diagonal()
    f1_C = 2 * hits_C / np.maximum(confusion_CC.sum(0) + confusion_CC.sum(1), 1e-12)
    return {
        "accuracy": float(hits_C.sum()),
        "macro_f1": float(f1_C.mean()),
        "recalls": (hits_C / np.maximum(confusion_CC.sum(1), 1e-12)).round(4).tolist(),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=["SST2", "SUBJ"])
    parser.add_argument("--ratio", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--output")
    options = parser.parse_args()

    results = []
    for task in options.tasks:
        data, counts_C = unbalanced(load_task(task), options.ratio)
        prompts = test_prompts(data, PAPER["k"])
        for seed in options.seeds:
            for sampling in (None, *SAMPLINGS):
                # The untouched model has no seed.
                if sampling is None and seed != options.seeds[0]:
                    continue
                model, tokenizer = load_model(options.model, device="cpu")
                words = label_tokens(tokenizer, data.task)
                if sampling is not None:
                    settings = {**DEFAULT, "sampling": sampling, "seed": seed}
                    trained(model, tokenizer, lambda _, data=data: data, settings)
                row = {"task": task, "sampling": sampling, "seed": seed}
                for name, written in prompts.items():
                    encoded = encode(tokenizer, written)
                    probabilities_NC, _ = evaluate(model, encoded, words)
                    targets = np.array([prompt.target for prompt in encoded])
                    predicted = probabilities_NC.argmax(1)
                    row[name] = {
                        **weighted(predicted, targets, counts_C),
                        "predicted": "".join(map(str, predicted)),
                        "targets": "".join(map(str, targets)),
                    }
                results.append(row)
                for name in prompts:
                    print(task, seed, sampling, name, row[name]["macro_f1"], row[name]["recalls"])
                write(
                    options.output, {"settings": DEFAULT, "ratio": options.ratio, "rows": results}
                )


if __name__ == "__main__":
    main()
