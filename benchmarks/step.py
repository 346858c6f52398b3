"""One training step against peers: prompts per second and peak memory, side by side in one run.

    python benchmarks/step.py --output results/speed/step.json
    python benchmarks/step.py --shapes 512x1 2048x1 8192x1 --ways abft half plain --rounds 1
    --output results/speed/memory.json

The ways:

- abft: `ABFTTrainer` with the paper's settings; W_Q and W_K train at full rank
- packed: the same with 4 queries behind one set of demonstrations (`queries=4`)
- default: packed, with the loss that `abft train` begins with: all heads' vote and the label word's
  cross-entropy
- compiled: packed, every decoder layer under `torch.compile`; the compiling itself is not counted
- bf16: packed, computed in bfloat16 (autocast) with attention rows in float32
- half: abft with the activations of every second layer recomputed
- plain: what a reader of the paper would write first: eager attention, `output_attentions=True`,
  the whole model with full logits, then the last rows of the attention matrices; the same trained
  weights
- sft: TRL's `SFTTrainer` with LoRA (r = 16, all linear layers), loss on the label word; activation
  checkpointing off

Without `--ways`: all but default and compiled. All see the same prompts of random tokens, of which
every four share their demonstrations, four fifths of a prompt. Every measurement is a process of
its own; the ways take turns, so that a slow machine slows all of them. Memory is the peak during
training above what the process held before (weights and libraries).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("abft", "packed", "bf16", "half", "plain", "sft")
MORE_WAYS = ("default", "compiled")
SHARED = ("packed", "bf16", *MORE_WAYS)
SAME_LOSS = ("abft", "packed", "compiled", "half", "plain")
THRESHOLD = 0.001  # so low that heads pass on random tokens too and gradients flow
K, SHARING = 4, 4


def random_prompts(tokens, count):
    """`count` prompts of `tokens` tokens with 4 demonstrations; every 4 that follow each other have
    the same ones.
    """
    from abft.data.encoding import EncodedPrompt

    generator = random.Random(0)
    positions = tuple(int(tokens * 0.8 * (i + 1) / K) - 1 for i in range(K))
    prompts = []
    for i in range(count):
        if i % SHARING == 0:
            shown = [generator.randrange(3, 40_000) for _ in range(positions[-1] + 1)]
        own = [generator.randrange(3, 40_000) for _ in range(tokens - len(shown))]
        prompts.append(
            EncodedPrompt((*shown, *own), positions, (0, 1, 0, 1), target=i % 2, answer=100 + i % 2)
        )
    return prompts


def resident(field):
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def train_plain(model, prompts, steps):
    """Seconds and loss of each step."""
    import torch

    from abft import Batch, load_model
    from abft.data.batches import collate
    from abft.method.heads import induction_mask
    from abft.method.losses import head_loss, label_mass
    from abft.model.attention import row_attention
    from abft.model.qk_weights import train_full_rank

    model, _ = load_model(model)
    train_full_rank(model)
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=0.0
    )
    batch = Batch(**collate(prompts))
    before = ready(model)
    measured = []
    with row_attention(model, "eager"):
        for _ in range(steps):
            start = time.perf_counter()
            output = model(input_ids=batch.input_ids, output_attentions=True, use_cache=False)
            alpha = torch.stack(
                [matrix[:, :, -1, batch.label_positions[0]] for matrix in output.attentions]
            )
            right, wrong = label_mass(alpha, batch.correct, batch.incorrect)
            mask = induction_mask(alpha, torch.full((len(prompts),), THRESHOLD))
            loss = (head_loss(right, wrong, 0.5, 1.0) * mask).sum() / len(prompts)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            measured.append((time.perf_counter() - start, loss.item()))
            del output, alpha, right, wrong, mask, loss
    return before, measured


def ready(model):
    """Have the weights, which are mapped lazily, in memory; forget the peak; return the bytes
    held.
    """
    sum(parameter.sum().item() for parameter in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def train_with(trainer):
    """Seconds and loss of each step of a transformers Trainer."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.started, self.seconds = 0.0, []

        def on_step_begin(self, *args, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.seconds.append(time.perf_counter() - self.started)

    clock = Clock()
    trainer.add_callback(clock)
    before = ready(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return before, list(zip(clock.seconds, losses, strict=True))


def own_trainer(way, model, prompts, steps, folder):
    from abft import ABFTConfig, ABFTTrainer, load_model

    model, tokenizer = load_model(model)
    if way == "compiled":
        for layer in model.model.layers:
            layer.compile()
    loss = {"objective": "vote", "cross_entropy": 1.0} if way == "default" else {}
    arguments = ABFTConfig(
        **shared_arguments(len(prompts), steps, folder),
        **loss,
        threshold=THRESHOLD,
        queries=SHARING if way in SHARED else 1,
        bf16=way == "bf16",
        activation_checkpointing=way == "half",
        activation_checkpointing_kwargs={"every_n_layers": 2},
    )
    return ABFTTrainer(model, arguments, prompts, tokenizer)


def shared_arguments(batch_size, steps, folder):
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


def sft_trainer(model, prompts, steps, folder):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from abft import load_model

    model, tokenizer = load_model(model)
    rows = {
        "input_ids": [[*prompt.input_ids, prompt.answer] for prompt in prompts],
        "completion_mask": [[0] * len(prompt.input_ids) + [1] for prompt in prompts],
    }
    arguments = SFTConfig(
        **shared_arguments(len(prompts), steps, folder),
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
    )
    adapter = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        peft_config=adapter,
    )


def worker(way, model, tokens, batch_size, steps):
    """Time `steps` steps after a warm-up, in this process."""
    prompts = random_prompts(tokens, batch_size)
    with tempfile.TemporaryDirectory() as folder:
        if way == "plain":
            before, measured = train_plain(model, prompts, steps + 1)
        elif way == "sft":
            before, measured = train_with(sft_trainer(model, prompts, steps + 1, folder))
        else:
            before, measured = train_with(own_trainer(way, model, prompts, steps + 1, folder))
    seconds = [taken for taken, _ in measured[1:]]
    print(
        json.dumps(
            {"seconds": seconds, "peak_bytes": resident("VmHWM") - before, "loss": measured[0][1]}
        )
    )


def run_worker(options, way, tokens, batch_size):
    command = [sys.executable, __file__, "--model", options.model, "--steps", str(options.steps)]
    command += ["--worker", way, str(tokens), str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{way} at {tokens} x {batch_size} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument(
        "--shapes", nargs="+", default=["95x8", "1000x4"], help="tokens x prompts in a batch"
    )
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *MORE_WAYS], default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument(
        "--plain-tokens",
        type=int,
        default=2048,
        help="longest prompts that the plain way is asked to hold",
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # huge pages, as the command line asks for: for all ways
    if options.worker:
        way, tokens, batch_size = options.worker
        worker(way, options.model, int(tokens), int(batch_size), options.steps)
        return

    from record import write

    results = []
    for shape in options.shapes:
        tokens, batch_size = map(int, shape.split("x"))
        ways = [way for way in options.ways if way not in SHARED or batch_size % SHARING == 0]
        ways = [way for way in ways if way != "plain" or tokens <= options.plain_tokens]
        measured = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                measured[way].append(run_worker(options, way, tokens, batch_size))
        losses = [measured[way][0]["loss"] for way in ways if way in SAME_LOSS]
        assert not losses or max(losses) - min(losses) < 1e-3 * max(losses), (
            f"the ways differ: {losses}"
        )
        results.append({"tokens": tokens, "batch_size": batch_size, "ways": measured})
        write(options.output, {"model": options.model, "results": results})
        for way in ways:
            speed = statistics.median(
                batch_size / statistics.mean(m["seconds"]) for m in measured[way]
            )
            memory = statistics.median(m["peak_bytes"] for m in measured[way]) / 2**20
            print(
                f"{shape} {way}: {speed:.2f} prompts/s, peak memory {memory:,.0f} MiB", flush=True
            )


if __name__ == "__main__":
    main()
