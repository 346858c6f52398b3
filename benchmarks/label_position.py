"""Which tokens of a label of several tokens should heads learn to look at: the first, the last, or
all of them?

    python benchmarks/label_position.py --names all --positions first last all

The built-in tasks' labels are one token each; here they get words of several. One run for each of
`NAMES` and each position, measured on held-out prompts of the training pool. Every run is a file in
the output folder; what is there is not repeated.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from abft import encode, evaluation_prompts, label_tokens, load_model, load_task
from abft.data.encoding import with_answers
from abft.data.prompts import training_prompts
from held_out import measured_training, split
from record import write

NAMES = {  # label words, and what their tokens share
    "shared_start": ("SST2", ("very negative", "very positive")),
    "shared_end": ("SST2", ("negative review", "positive review")),
    "six_classes": (
        "TREC",
        ("a short form", "some thing", "a description", "human being", "some place", "a number"),
    ),
}
"""TREC's words are in the order of its labels: abbreviation, entity, description, person, location,
number.
"""
POSITIONS = ("first", "last", "all")


def looking_at(position, encoded, words):
    """The same prompts, with the first, the last or every token of each label as a candidate for
    the heads.

    `encoded` holds first tokens; `words` the tokens of each label.
    """
    length = [1 if isinstance(word, int) else len(word) for word in words]
    prompts = []
    for prompt in encoded:
        places, classes = [], []
        for start, label in zip(prompt.label_positions, prompt.label_classes, strict=True):
            tokens = range(start, start + length[label])
            chosen = {"first": tokens[:1], "last": tokens[-1:], "all": tokens}[position]
            places += chosen
            classes += [label] * len(chosen)
        prompts.append(replace(prompt, label_positions=tuple(places), label_classes=tuple(classes)))
    return prompts


def train(model_name, name, position, options):
    task, label_words = NAMES[name]
    data = split(load_task(task))
    data = replace(
        data, task=data.task.with_words(dict(zip(data.task.labels, label_words, strict=True)))
    )
    model, tokenizer = load_model(model_name)
    words = label_tokens(tokenizer, data.task)
    prompts = training_prompts(data, options.nd, 4, options.seed, queries=4)
    training = with_answers(looking_at(position, encode(tokenizer, prompts), words), words)
    tests = encode(tokenizer, evaluation_prompts(data, options.prompts, 4))
    settings = {
        "objective": "vote",
        "learning_rate": 3e-4,
        "max_steps": options.steps,
        "queries": 4,
        "seed": options.seed,
    }
    found = measured_training(
        model, tokenizer, lambda _: training, tests, words, settings, options.steps
    )
    return {"words": label_words, "tokens": words, **found}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--names", nargs="+", choices=[*NAMES, "all"], default=["all"])
    parser.add_argument("--positions", nargs="+", choices=POSITIONS, default=POSITIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--nd", type=int, default=512, help="training prompts")
    parser.add_argument("--prompts", type=int, default=128, help="held-out prompts")
    parser.add_argument("--output", type=Path, default=Path("results/label_position"))
    options = parser.parse_args()

    for name in NAMES if "all" in options.names else options.names:
        for position in options.positions:
            path = options.output / f"{name}-{position}-{options.seed}.json"
            if not path.is_file():
                write(
                    path,
                    {
                        "names": name,
                        "position": position,
                        **train(options.model, name, position, options),
                    },
                )


if __name__ == "__main__":
    main()
