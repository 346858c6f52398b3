"""Time of training until held-out prompts of the training pool reach an accuracy, by variant, task
and seed.

    python benchmarks/time_to_accuracy.py --variants paper both4 --tasks SST2 TREC FP --seeds 0 1 2

Every run is a file in the output folder; runs that are there are not repeated. Seconds count
training steps only, not validation. Runs use one thread: their CPU seconds do not depend on what
else the machine does.
"""

import argparse
from pathlib import Path

import torch

from abft.method.head_statistics import head_statistics, mass_metrics
from abft.method.losses import vote_loss
from abft.model.attention import read_rows
from held_out import train_and_validate
from record import write

TINY = 1e-6


class RatioObjective:
    """Cross-entropy over label tokens, -log(right / (right + wrong)), of prompts that hold both
    kinds.

    Each induction head has a loss of its own, or, `by_layer`, all heads of a layer together; the
    sum is trained.
    """

    def __init__(self, by_layer=False):
        self.by_layer = by_layer

    def __call__(self, module, batch):
        rows, _ = read_rows(module, batch.input_ids, batch.query_positions, **batch.model_inputs())
        heads = head_statistics(rows, batch)
        both = (batch.correct.any(-1) & batch.incorrect.any(-1)).to(heads.correct.device)
        counted = heads.induction.float() * both[None, :, None]
        right, wrong = heads.correct, heads.incorrect
        if self.by_layer:
            right, wrong, counted = right.sum(2), wrong.sum(2), both.float()
        terms = -torch.log((right + TINY) / (right + wrong + TINY))
        return (terms * counted).sum() / len(both), mass_metrics(heads, heads.induction.float())

    def after_step(self, metrics):
        return {}

    def state(self):
        return {}

    def restore(self, state):
        pass


class MassObjective(RatioObjective):
    """The vote, -log(right / (right + wrong)) over all heads, and a reward of `mass` x log(right +
    wrong).
    """

    def __init__(self, mass):
        self.mass = mass

    def __call__(self, module, batch):
        rows, _ = read_rows(module, batch.input_ids, batch.query_positions, **batch.model_inputs())
        heads = head_statistics(rows, batch)
        divided = (batch.correct.any(-1) & batch.incorrect.any(-1)).to(heads.correct.device)
        labels = (heads.correct + heads.incorrect).sum((0, 2))
        loss = (
            vote_loss(heads.correct, heads.incorrect, divided)
            - self.mass * torch.log(labels).mean()
        )
        return loss, mass_metrics(heads, torch.ones_like(heads.correct))


OBJECTIVES = {  # not in the library
    "ratio": RatioObjective(),
    "layers": RatioObjective(by_layer=True),
    "mass0.1": MassObjective(0.1),
    "mass0.3": MassObjective(0.3),
    "mass1": MassObjective(1.0),
}
RATIO = {"objective": "ratio", "learning_rate": 3e-4, "max_steps": 16, "every": 4}
VOTE = {**RATIO, "objective": "vote"}
BOTH4 = {**VOTE, "queries": 4, "cross_entropy": 1.0}
VARIANTS = {
    "paper": {"learning_rate": 1e-4, "max_steps": 32, "every": 4},
    "paper4": {"learning_rate": 1e-4, "max_steps": 32, "every": 4, "queries": 4},
    "paper4-3e-4": {"learning_rate": 3e-4, "max_steps": 32, "every": 4, "queries": 4},
    "vote4-32": {**VOTE, "queries": 4, "max_steps": 32},
    "mass0.1-4": {**VOTE, "objective": "mass0.1", "queries": 4},
    "mass0.3-4": {**VOTE, "objective": "mass0.3", "queries": 4},
    "mass1-4": {**VOTE, "objective": "mass1", "queries": 4},
    "both4": BOTH4,
    "both4-linear": {**BOTH4, "lr_scheduler_type": "linear"},
    "both4-warmup": {**BOTH4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 4},
    "both4-clip": {**BOTH4, "max_grad_norm": 1.0},
    "both4-beta2": {**BOTH4, "adam_beta2": 0.95},
    **{f"both4-above{n}": {**BOTH4, "layers": list(range(n + 1, 30))} for n in (4, 9, 14, 19)},
    "e2e4": {"objective": "e2e", "learning_rate": 3e-4, "max_steps": 16, "every": 2, "queries": 4},
    "ratio": RATIO,
    "ratio4": {**RATIO, "queries": 4},
    "ratio8": {**RATIO, "queries": 8},
    "ratio4-1e-4": {**RATIO, "queries": 4, "learning_rate": 1e-4},
    "ratio4-6e-4": {**RATIO, "queries": 4, "learning_rate": 6e-4},
    "layers4": {**RATIO, "objective": "layers", "queries": 4},
    "vote": VOTE,
    "vote4": {**VOTE, "queries": 4},
    "vote8": {**VOTE, "queries": 8},
    "vote4-dense": {**VOTE, "queries": 4, "dense": True},
    "vote4-1e-4": {**VOTE, "queries": 4, "learning_rate": 1e-4},
    "vote4-1e-3": {**VOTE, "queries": 4, "learning_rate": 1e-3},
    "vote4-nb16": {**VOTE, "queries": 4, "max_steps": 32, "every": 8, "nb": 16},
    "vote4-above9": {**VOTE, "queries": 4, "layers": list(range(10, 30))},
    "vote4-linear": {**VOTE, "queries": 4, "lr_scheduler_type": "linear"},
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["paper", "both4"])
    parser.add_argument("--tasks", nargs="+", default=["SST2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="stop earlier than the variant does")
    parser.add_argument("--every", type=int, help="steps between validations; default: by variant")
    parser.add_argument("--nb", type=int, default=32, help="training prompts in a step")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts")
    parser.add_argument("--output", type=Path, default=Path("results/speed/time_to_accuracy"))
    options = parser.parse_args()
    torch.set_num_threads(1)

    for seed in options.seeds:
        for task in options.tasks:
            for variant in options.variants:
                path = options.output / f"{variant}-{task}-{seed}.json"
                if path.is_file():
                    continue
                print(path.stem, flush=True)
                settings = {**VARIANTS[variant], "seed": seed}
                objective = OBJECTIVES.get(settings.get("objective"))
                if objective:
                    del settings["objective"]
                nb = settings.pop("nb", options.nb)
                every = settings.pop("every")
                how = {
                    "every": options.every or every,
                    "prompts": options.prompts,
                    "dense_queries": settings.pop("dense", False),
                }
                settings["max_steps"] = min(
                    settings["max_steps"], options.steps or settings["max_steps"]
                )
                settings["per_device_train_batch_size"] = options.batch_size
                settings["gradient_accumulation_steps"] = nb // options.batch_size
                run = train_and_validate(options.model, task, settings, objective=objective, **how)
                run["settings"] = {**VARIANTS[variant], **run["settings"]}
                write(path, {"variant": variant, "task": task, "seed": seed, **run})


if __name__ == "__main__":
    main()
