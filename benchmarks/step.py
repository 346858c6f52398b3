"""One training step against the plain way: prompts per second and peak memory, side by side in one run.

    python benchmarks/step.py --output results/step.json

The plain way is what a reader of the paper would write first: eager attention, `output_attentions=True`, the whole
model with full logits, then the last rows of the attention matrices. Loss, trained weights (W_Q, W_K) and optimizer
are the same. "half" is ours with the activations of every second layer recomputed.

Every measurement is a process of its own; the ways take turns, so that a slow machine slows all of them.
Memory is the peak during a step above what the process held before its first step (weights and libraries).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

WAYS = ("abft", "half", "plain")


def worker(way, model_name, tokens, batch_size, steps):
    """Time `steps` steps after a warm-up, in this process."""
    import torch

    from abft import ABFTObjective, Batch, PIDController, load_model
    from abft.attention import decoder, row_attention
    from abft.heads import induction_mask
    from abft.loss import head_loss, label_mass
    from abft.weights import train_full_rank

    model, _ = load_model(model_name)
    train_full_rank(model)
    model.train()
    if way == "half":
        model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=0.0)
    torch.manual_seed(0)
    k = 4
    positions = torch.arange(1, k + 1) * (tokens // (k + 2))
    correct = torch.tensor([[True, False, True, False]]).expand(batch_size, -1)
    batch = Batch(
        input_ids=torch.randint(3, 40_000, (batch_size, tokens)),
        query_positions=torch.full((batch_size,), tokens - 1),
        label_positions=positions.expand(batch_size, -1),
        correct=correct,
        wrong=~correct,
    )
    # A low threshold, so that heads pass on random tokens too and gradients flow.
    objective = ABFTObjective(PIDController(), fixed_threshold=0.001)

    def abft_loss():
        return objective(decoder(model), batch)[0]

    def plain_loss():
        output = model(input_ids=batch.input_ids, output_attentions=True, use_cache=False)
        alpha = torch.stack([matrix[:, :, -1, positions] for matrix in output.attentions])
        right, wrong = label_mass(alpha, batch.correct, batch.wrong)
        mask = induction_mask(alpha, torch.full((batch_size,), 0.001))
        return (head_loss(right, wrong, 0.5, 1.0) * mask).sum() / batch_size

    loss_of = plain_loss if way == "plain" else abft_loss
    sum(parameter.sum().item() for parameter in model.parameters())  # weights are mapped lazily: have them in memory
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    seconds, losses = [], []
    with row_attention(model, "eager" if way == "plain" else "abft_rows"):
        for _ in range(steps + 1):
            start = time.perf_counter()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
            losses.append(loss.item())
            del loss
    print(json.dumps({"seconds": seconds[1:], "peak": resident("VmHWM") - before, "loss": losses[0]}))


def resident(field):
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--shapes", nargs="+", default=["95x8", "1000x2"], help="tokens x prompts in a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, tokens, batch_size = options.worker
        worker(way, options.model, int(tokens), int(batch_size), options.steps)
        return

    results = []
    for shape in options.shapes:
        tokens, batch_size = map(int, shape.split("x"))
        measured = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--model", options.model, "--steps", str(options.steps)]
                command += ["--worker", way, str(tokens), str(batch_size)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                measured[way].append(json.loads(output.splitlines()[-1]))
        losses = [measured[way][0]["loss"] for way in WAYS]
        assert max(losses) - min(losses) < 1e-3, f"the ways differ: {losses}"
        speed = {way: [batch_size * len(m["seconds"]) / sum(m["seconds"]) for m in measured[way]] for way in WAYS}
        memory = {way: statistics.median(m["peak"] for m in measured[way]) for way in WAYS}
        for way in WAYS[:-1]:
            ratios = [a / b for a, b in zip(speed[way], speed["plain"], strict=True)]
            row = {
                "tokens": tokens,
                "batch_size": batch_size,
                "way": way,
                "prompts_per_second": statistics.median(speed[way]),
                "plain_prompts_per_second": statistics.median(speed["plain"]),
                "speed_ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
                "peak_bytes": memory[way],
                "plain_peak_bytes": memory["plain"],
                "memory_ratio": memory[way] / memory["plain"],
            }
            results.append(row)
            print(
                f"{tokens} tokens, batch {batch_size}, {way}: {row['prompts_per_second']:.2f} prompts/s against "
                f"{row['plain_prompts_per_second']:.2f} ({row['speed_ratio']['median']:.2f}x, "
                f"{min(ratios):.2f}-{max(ratios):.2f}); "
                f"peak memory {memory[way] / 2**20:.0f} MiB against {memory['plain'] / 2**20:.0f} MiB "
                f"({row['memory_ratio']:.2f}x)",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps({"model": options.model, "rounds": options.rounds, "results": results}, indent=1))


if __name__ == "__main__":
    main()
