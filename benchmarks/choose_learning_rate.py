"""Choose learning rate and number of steps on training data only: a part of the training pool is held out for it.

    python benchmarks/choose_learning_rate.py --task SST2 --output results/learning_rate_sst2.json

Neither the demonstrations nor the test queries of the benchmark are touched.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import TrainerCallback

from abft import ABFTConfig, ABFTTrainer, encode, evaluate, evaluation_prompts, label_tokens, load_model, load_task
from abft.metrics import accuracy


class Validate(TrainerCallback):
    """Accuracy and heads on the held-out prompts every few steps."""

    def __init__(self, run, every):
        self.run, self.every, self.scores = run, every, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.scores[state.global_step] = self.run()


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

    data = load_task(options.task)
    pool = data.train
    held_out = replace(data, train=pool[:768], demonstrations=pool[768:896], test=pool[896:])
    results = []
    for rate in options.rates:
        model, tokenizer = load_model(options.model)
        prompts = encode(tokenizer, evaluation_prompts(held_out, options.prompts, 4))
        targets = [prompt.target for prompt in prompts]
        words = label_tokens(tokenizer, data.task)

        def score(model=model, prompts=prompts, targets=targets, words=words):
            probabilities, heads = evaluate(model, prompts, words, "abft_rows")
            return {"accuracy": accuracy(probabilities, targets), "heads": heads.heads}

        before = score()
        validate = Validate(score, options.every)
        arguments = ABFTConfig(
            output_dir=tempfile.mkdtemp(),
            learning_rate=rate,
            max_steps=options.steps,
            seed=options.seed,
            objective=options.objective,
            save_strategy="no",
            report_to="none",
        )
        trainer = ABFTTrainer(model, arguments, held_out, tokenizer, callbacks=[validate])
        trainer.train()
        log = [{k: v for k, v in entry.items() if k != "epoch"} for entry in trainer.state.log_history if "heads" in entry]
        results.append({"learning_rate": rate, "before": before, "validation": validate.scores, "log": log})
        options.output.write_text(
            json.dumps(
                {
                    "model": options.model,
                    "task": options.task,
                    "objective": options.objective,
                    "seed": options.seed,
                    "prompts": options.prompts,
                    "runs": results,
                },
                indent=1,
            )
        )
        print(rate, before, validate.scores, flush=True)


if __name__ == "__main__":
    main()
