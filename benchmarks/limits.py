"""How near the machine's limit a training step is, and where its time goes.

    python benchmarks/limits.py --output results/speed/limits.json

Two numbers limit a step: its floating-point operations over the rate at which this machine
multiplies float32 matrices of the model's own shapes, and the bytes that it has to move over the
machine's bandwidth. Both are measured here, in turns with the step. Then the step is profiled.
"""

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from abft import ABFTObjective, Batch, PIDController, load_model
from abft.data.batches import collate
from abft.model.attention import decoder, row_attention
from abft.model.qk_weights import train_full_rank
from record import write
from step import THRESHOLD, random_prompts

KINDS = {  # operators by what they do; the first that fits
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("scaled_dot_product",),
    "attention rows": (
        "aten::bmm",
        "aten::_softmax",
        "aten::gather",
        "aten::scatter",
        "aten::masked_fill",
    ),
    "copies, fills, concatenations": (
        "aten::copy_",
        "aten::fill_",
        "aten::zero_",
        "aten::cat",
        "aten::index",
        "aten::stack",
    ),
}
OPTIMIZER = "Optimizer.step"


def needed_products(model):
    """Multiply-adds a token: forward, gradients through frozen weights, gradients of W_Q and W_K.

    The loss depends on the last layer's W_Q and W_K only: its value, output and MLP weights are not
    needed. Gradients do not pass below the first layer's W_Q and W_K, nor through V, O and MLP
    above the last rows.
    """
    layers = decoder(model).layers
    names = {
        name: module.weight.numel()
        for name, module in layers[0].named_modules()
        if isinstance(module, nn.Linear)
    }
    qk = sum(size for name, size in names.items() if name.endswith(("q_proj", "k_proj")))
    rest = sum(names.values()) - qk
    deep = len(layers) - 1
    return {
        "forward": deep * (qk + rest) + qk,
        "backward": deep * (qk + rest),
        "weights": (deep + 1) * qk,
    }


def attention_operations(model, batch_size, tokens):
    """Of the two products of causal attention in the forward pass and the five of the backward
    pass, without the last layer.
    """
    layers, width = (
        len(decoder(model).layers) - 1,
        model.config.num_attention_heads * model.config.head_dim,
    )
    return layers * batch_size * 7 * 2 * tokens * (tokens + 1) / 2 * width


def product_rate(model, tokens):
    """FLOP/s of the float32 products of one forward and one backward pass through the decoder's
    linear layers.
    """
    weights = [
        module.weight.detach()
        for module in decoder(model).modules()
        if isinstance(module, nn.Linear)
    ]
    inputs = {width: torch.randn(tokens, width) for weight in weights for width in weight.shape}
    outputs = {width: torch.empty(tokens, width) for width in inputs}
    started = time.perf_counter()
    for weight in weights:
        torch.mm(inputs[weight.shape[1]], weight.T, out=outputs[weight.shape[0]])
    for weight in reversed(weights):
        torch.mm(inputs[weight.shape[0]], weight, out=outputs[weight.shape[1]])
    return 4 * tokens * sum(weight.numel() for weight in weights) / (time.perf_counter() - started)


def bandwidth(mebibytes=512, rounds=3):
    """Bytes a second, read and written, of a large copy."""
    source = torch.ones(mebibytes * 2**18)
    target = torch.empty_like(source)
    started = time.perf_counter()
    for _ in range(rounds):
        target.copy_(source)
    return rounds * 2 * source.nbytes / (time.perf_counter() - started)


def kind_of(operator):
    if operator.startswith(OPTIMIZER):
        return "optimizer"
    return next(
        (kind for kind, parts in KINDS.items() if any(part in operator for part in parts)),
        "element by element",
    )


def profiled(step):
    """Seconds by kind of operation in one step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    seconds, inside = Counter(), 0.0
    averages = profile.key_averages()
    for event in averages:
        if event.key.startswith(OPTIMIZER):
            inside = event.cpu_time_total / 1e6
    for event in averages:
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    seconds["optimizer"] = inside
    return dict(seconds)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument(
        "--shapes", nargs="+", default=["95x8", "1000x4"], help="tokens x prompts in a batch"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    model, _ = load_model(options.model)
    train_full_rank(model)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=0.0
    )
    objective = ABFTObjective(PIDController(), fixed_threshold=THRESHOLD)
    results = []
    for shape in options.shapes:
        tokens, batch_size = map(int, shape.split("x"))
        batch = Batch(**collate(random_prompts(tokens, batch_size)))

        def step(batch=batch):
            with row_attention(model):
                loss, _ = objective(decoder(model), batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        seconds, rates, bandwidths = [], [], []
        for _ in range(options.rounds):
            rates.append(product_rate(model, tokens * batch_size))
            bandwidths.append(bandwidth())
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        products = {
            name: 2 * count * tokens * batch_size for name, count in needed_products(model).items()
        }
        operations = {**products, "attention": attention_operations(model, batch_size, tokens)}
        shares = [
            sum(operations.values()) / rate / taken
            for rate, taken in zip(rates, seconds, strict=True)
        ]
        row = {
            "tokens": tokens,
            "batch_size": batch_size,
            "operations": operations,
            "seconds": seconds,
            "product_rates": rates,
            "bandwidths": bandwidths,
            "share_of_product_rate": statistics.median(shares),
            "profile": profiled(step),
        }
        results.append(row)
        print(
            f"{shape}: {sum(operations.values()) / 1e9:.0f} GFLOP in "
            f"{statistics.median(seconds):.2f} s, "
            f"{100 * statistics.median(shares):.0f}% of the rate of matrix products "
            f"({statistics.median(rates) / 1e9:.0f} GFLOP/s)",
            flush=True,
        )
    write(options.output, {"model": options.model, "rounds": options.rounds, "results": results})


if __name__ == "__main__":
    main()
