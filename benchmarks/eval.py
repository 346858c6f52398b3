"""Prompts per second of evaluation against StaICC's reference kernel, on the same prompts in the
same run.

    python benchmarks/eval.py --output results/speed/eval.json

StaICC 0.1.1 scores one prompt at a time, with all hidden states and all logits. Ours sorts prompts
by length, batches them and computes the label words' logits at one position; "with heads" also
reads every head's attention to the labels. "matrix products alone" multiplies random numbers with
the decoder's linear layers, as many as the prompts have tokens: no float32 way of scoring these
prompts with this model can be faster. The ways take turns, so that a slow machine slows all of
them; the probabilities have to agree.
"""

import argparse
import contextlib
import io
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from abft import (
    encode,
    evaluate,
    evaluation_prompts,
    label_probabilities,
    label_tokens,
    load_model,
    load_task,
)
from abft.model.attention import decoder
from abft.scoring.evaluate import bucketed
from record import write

TOLERANCE = {
    "float32": 1e-4,
    "bfloat16": 0.1,
}  # of a probability; products in bfloat16 round by batch shape


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--task", default="SST2")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    with contextlib.redirect_stdout(io.StringIO()):
        from StaICC.prefabricate_inference.model_kernel import (
            standard_ICL_inference_with_torch_Causal_LM,
        )

    data = load_task(options.task, "staicc")
    model, tokenizer = load_model(options.model, dtype=options.dtype)
    written = evaluation_prompts(data, options.prompts, 4, "staicc")
    words = label_tokens(tokenizer, data.task, "staicc")

    def reference():
        return [
            standard_ICL_inference_with_torch_Causal_LM(
                prompt.text, model, tokenizer, list(data.task.label_words), cache_empty=None
            )
            for prompt in written
        ]

    def ours(size):
        return label_probabilities(
            model, encode(tokenizer, written, "staicc"), words, batch_size=size
        )

    def with_heads(size):
        return evaluate(model, encode(tokenizer, written, "staicc"), words, batch_size=size)[0]

    encoded = encode(tokenizer, written, "staicc")
    weights = [m.weight for m in decoder(model).modules() if isinstance(m, torch.nn.Linear)]
    tokens = {
        size: [sum(len(encoded[i].input_ids) for i in batch) for batch in bucketed(encoded, size)]
        for size in options.batch_sizes
    }

    @torch.no_grad()
    def products(size):
        numbers = torch.randn(
            max(tokens[size]), max(w.shape[1] for w in weights), dtype=model.dtype
        )
        inputs = {width: numbers[:, :width].contiguous() for width in {w.shape[1] for w in weights}}
        for count in tokens[size]:
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]][:count], weight)

    ways = {"StaICC": reference}
    for size in options.batch_sizes:
        ways[f"batches of {size}"] = lambda size=size: ours(size)
        ways[f"batches of {size}, with heads"] = lambda size=size: with_heads(size)
        ways[f"matrix products alone, {size}"] = lambda size=size: products(size)
    seconds = {name: [] for name in ways}
    expected = np.array(reference())  # a warm-up too
    for _ in range(options.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            scores = way()
            seconds[name].append(time.perf_counter() - started)
            assert (
                scores is None
                or np.abs(np.array(scores) - expected).max() < TOLERANCE[options.dtype]
            ), name
    result = {
        "model": options.model,
        "task": options.task,
        "dtype": options.dtype,
        "prompts": options.prompts,
        "rounds": options.rounds,
        "ways": {},
    }
    for name, taken in seconds.items():
        ratios = [theirs / own for theirs, own in zip(seconds["StaICC"], taken, strict=True)]
        speed = options.prompts / statistics.median(taken)
        result["ways"][name] = {
            "prompts_per_second": speed,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
        print(
            f"{name:30} {speed:7.2f} prompts/s  {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
    write(options.output, result)


if __name__ == "__main__":
    main()
