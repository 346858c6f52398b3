"""Prediction with kept demonstrations against re-reading the whole prompt: queries per second, side
by side in one run.

    python benchmarks/predict.py --output results/speed/predict.json

The same texts behind the same demonstrations, in batches of the same size; the probabilities have
to agree to 1e-5. The ways take turns, so that a slow machine slows both.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from abft import Example, encode, label_tokens, load_model, load_task
from abft.data.prompts import write_prompt
from abft.scoring.scorer import LabelScorer
from record import write


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--task", default="SST2")
    parser.add_argument("--demonstrations", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    model, tokenizer = load_model(options.model)
    data = load_task(options.task)
    words = label_tokens(tokenizer, data.task)
    results = []
    if (
        not 1
        <= min(options.demonstrations)
        <= max(options.demonstrations)
        <= len(data.demonstrations)
    ):
        parser.error(f"--demonstrations: expected 1 to {len(data.demonstrations)}")
    for k in options.demonstrations:
        texts = [example.text for example in data.test[: options.queries]]
        written = [
            write_prompt(data.task, data.demonstrations[:k], Example(text, 0), "consistent")
            for text in texts
        ]
        prompts = encode(tokenizer, written)
        shared = prompts[0].label_positions[-1] + 1
        score = LabelScorer(model, words)

        def kept(score=score, prompts=prompts, shared=shared):
            return score(prompts, shared=shared, batch_size=options.batch_size)

        def whole(score=score, prompts=prompts):
            return score(prompts, shared=0, batch_size=options.batch_size)

        expected = whole()
        started = time.perf_counter()
        difference = np.abs(kept() - expected).max()
        first = time.perf_counter() - started
        assert difference < 1e-5, f"the ways differ by {difference}"
        seconds = {"kept": [], "whole": []}
        for _ in range(options.rounds):
            for name, way in (("kept", kept), ("whole", whole)):
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
        ratios = [
            whole / kept for whole, kept in zip(seconds["whole"], seconds["kept"], strict=True)
        ]
        row = {
            "k": k,
            "tokens": statistics.mean(len(prompt.input_ids) for prompt in prompts),
            "query_tokens": statistics.mean(len(prompt.input_ids) - shared for prompt in prompts),
            "reading_demonstrations_seconds": first - statistics.median(seconds["kept"]),
            "queries_per_second": {
                name: len(texts) / statistics.median(taken) for name, taken in seconds.items()
            },
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "largest_difference": float(difference),
        }
        results.append(row)
        speed = row["queries_per_second"]
        print(
            f"k = {k} ({row['tokens']:.0f} tokens, {row['query_tokens']:.0f} of them the query's): "
            f"{speed['kept']:.1f} queries/s against {speed['whole']:.1f}, "
            f"{row['ratio']:.1f}x ({min(ratios):.1f}-{max(ratios):.1f})",
            flush=True,
        )
    settings = {
        name: getattr(options, name)
        for name in ("model", "task", "queries", "batch_size", "rounds")
    }
    write(options.output, {**settings, "results": results})


if __name__ == "__main__":
    main()
