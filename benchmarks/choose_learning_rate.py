"""Choose learning rate and number of steps on training data only: a part of the training pool is
held out for it.

python benchmarks/choose_learning_rate.py --task SST2 --output results/learning_rate_sst2.json
"""

import argparse
import json
from pathlib import Path

from held_out import train_and_validate


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--task", default="SST2")
    parser.add_argument("--objective", choices=("abft", "e2e"), default="abft")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-4, 1e-3])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--seed", type=int, default=42, help="training prompts and their order")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    results = []
    for rate in options.rates:
        settings = {
            "learning_rate": rate,
            "max_steps": options.steps,
            "seed": options.seed,
            "objective": options.objective,
        }
        run = train_and_validate(
            options.model, options.task, settings, every=options.every, prompts=options.prompts
        )
        results.append(
            {"learning_rate": rate, **{k: run[k] for k in ("before", "validation", "log")}}
        )
        names = ("model", "task", "objective", "seed", "prompts")
        record = {name: getattr(options, name) for name in names}
        options.output.write_text(json.dumps({**record, "runs": results}, indent=1))


if __name__ == "__main__":
    main()
