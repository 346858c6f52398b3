"""One task whose label words mean nothing, as a user's ticket codes: does an attention loss help?

    python benchmarks/own_words.py train ce --task TREC --texts 64 --output FILE.json
    python benchmarks/own_words.py classifier --task TREC --texts 64 --output FILE.json
    python benchmarks/own_words.py tables

Every class is written as a random word of one token (`--seed` draws them), in training and in the
test alike. Demonstrations, training prompts and nothing else come from `--texts` labelled texts.
Arms: ce (cross-entropy of the label word), vote, vote+ce, nce16 (InfoNCE of 16 heads), nce16+ce;
the same prompts, steps, weights (W_Q and W_K) and learning rate. MiniLM with a logistic regression
is fitted to the same texts; so is an `ABFTClassifier` of the untouched model (`classifier`), which
has the same template and words.
"""

import argparse
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from abft.data.builtin import PAPER_TASKS
from measured_training import recorded, train_measured, trained_heads
from reader import READOUTS, MiniLM, accuracy, arm, digits, hits, measured, objective_of
from reader_tables import shown, with_interval
from record import write

STEPS = (32, 64)
RESULTS = Path(__file__).parent.parent / "results" / "own_words"


def drawn(options, tokenizer):
    """The task with its words and labelled texts, test queries, and what draws the rest."""
    from abft import load_task
    from abft.bench.labelled_texts import labelled_texts
    from abft.data.label_words import written_as
    from abft.data.lengths import fit_texts
    from abft.data.mixture import TEXT_TOKENS

    data, _ = fit_texts(load_task(options.task), tokenizer, TEXT_TOKENS)
    known = tuple(labelled_texts(data.train, options.texts, options.seed))
    generator = random.Random(f"own words {options.task} {options.seed}")
    task = written_as(data.task, "arbitrary", tokenizer, "test", generator)
    asked = generator.sample(data.test, options.sets * options.test_queries)
    return replace(data, task=task, train=known, demonstrations=known), asked, generator


def classifier(options):
    """An `ABFTClassifier` of the untouched model on the same texts, with the same words."""
    from abft import load_model
    from abft.bench.classifiers import CLASSIFIERS, Fitting

    _, tokenizer = load_model("SmolLM2-135M-Instruct")
    data, asked, _ = drawn(options, tokenizer)
    labels = [example.label for example in data.train]
    smallest = min(Counter(labels).values())
    fitting = Fitting(len(labels), smallest, options.seed, data.task, "SmolLM2-135M-Instruct")
    fitted = CLASSIFIERS["untrained"](fitting).fit([e.text for e in data.train], labels)
    found = {
        "targets": digits(example.label for example in asked),
        "classifier": digits(fitted.predict([example.text for example in asked])),
        "readout": fitted.readout_,
    }
    print(options.task, options.texts, options.seed, f"{accuracy(found, 'classifier'):.1%}")
    write(options.output, {"settings": {**recorded(options), "arm": "classifier"}, **found})


def train(options):
    """One arm: train, and measure every few steps."""
    from abft import encode, label_tokens, load_model
    from abft.data.draws import demonstration_sets
    from abft.data.encoding import with_answers
    from abft.data.mixture import asking_group
    from abft.data.prompts import training_prompts

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    data, asked, generator = drawn(options, tokenizer)
    task, known = data.task, data.train

    tokens = label_tokens(tokenizer, task)
    count = options.groups * options.queries * options.steps
    written = training_prompts(data, count, options.k, options.seed, queries=options.queries)
    prompts = with_answers(encode(tokenizer, written, scored=tokens), tokens)

    shown = demonstration_sets(known, options.k, options.sets, generator)
    size = options.test_queries
    tests = [
        asking_group(task, tokenizer, demonstrations, asked[i * size : (i + 1) * size])
        for i, demonstrations in enumerate(shown)
    ]
    peer, _ = MiniLM().fit(known).predict(asked)
    points = []

    def prepare(trainer):
        heads = trained_heads(trainer)

        def measure(step, seconds):
            found = measured(model, tests, heads)
            points.append({"step": step, "seconds": round(seconds), **found})
            shares = {r: round(100 * accuracy(found, r), 1) for r in READOUTS if r in found}
            print(step, f"{seconds:.0f} s", shares, flush=True)
            words = dict(zip(task.labels, task.label_words, strict=True))
            record = {"settings": recorded(options), "label_words": words, "minilm": peer}
            record |= {"points": points}
            write(options.output, record)

        return measure

    settings = objective_of(options.arm, options.temperature)
    train_measured(model, tokenizer, prompts, options, prepare, **settings)


def tables(options):
    """Accuracy of the label words over seeds, and vote + cross-entropy minus cross-entropy.

    Intervals (95%) are bootstrapped over seeds, which draw texts, words and queries, and over sets
    of test demonstrations with their queries.
    """
    runs = {}
    for path in RESULTS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        settings = record["settings"]
        key = (settings["task"], settings["texts"], settings["arm"])
        runs.setdefault(key, {})[settings["seed"]] = record

    def answers(record, step, readout="label_words"):
        (point,) = (point for point in record["points"] if point["step"] == step)
        return hits(point, readout).reshape(record["settings"]["sets"], -1)

    titles = [f"{arm}, step {step}" for step in STEPS for arm in ("ce", "vote+ce")]
    print("| | seeds | untrained |", " | ".join(titles), "| MiniLM + LR | `ABFTClassifier` |")
    print("|---" * (len(titles) + 5) + "|")
    for task, texts in sorted({key[:2] for key in runs}):
        plain, voted = (runs[task, texts, name] for name in ("ce", "vote+ce"))
        seeds = sorted(plain.keys() & voted.keys())

        def mean(values):
            return f"{100 * np.mean(list(values)):.1f}"

        row = [f"{task}, {texts} texts", str(len(seeds))]
        row.append(mean(answers(plain[seed], 0) for seed in seeds))
        for step in STEPS:
            row += [mean(answers(arm[seed], step) for seed in seeds) for arm in (plain, voted)]
        row.append(mean(accuracy(plain[s]["points"][0] | plain[s], "minilm") for s in seeds))
        fitted = runs.get((task, texts, "classifier"), {})
        values = [accuracy(fitted[s], "classifier") for s in seeds if s in fitted]
        row.append(mean(values) if values else "")
        print("|", " | ".join(row), "|")

        for step in STEPS:
            gains = [answers(voted[s], step) - answers(plain[s], step) for s in seeds]
            print(f"  step {step}: {shown(with_interval([[np.array(gains)]]))}")
        votes = [
            mean(answers(arm[s], STEPS[-1], "attention") for s in seeds) for arm in (plain, voted)
        ]
        print(f"  read from the vote of all heads, step {STEPS[-1]}: {' and '.join(votes)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (train, classifier):
        command = commands.add_parser(run.__name__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--task", choices=PAPER_TASKS, required=True)
        command.add_argument("--texts", type=int, required=True, help="labelled texts in all")
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--sets", type=int, default=16, help="sets of test demonstrations")
        command.add_argument("--test-queries", type=int, default=16, help="of each set")
        command.add_argument("--seed", type=int, default=0)
    command = commands.choices["train"]
    command.add_argument("arm", type=arm)
    command.add_argument("--k", type=int, default=8, help="demonstrations of a prompt")
    command.add_argument("--steps", type=int, default=64)
    command.add_argument("--groups", type=int, default=2, help="groups of prompts a step")
    command.add_argument("--queries", type=int, default=16, help="prompts of a group")
    command.add_argument("--lr", type=float, default=3e-4)
    command.add_argument("--temperature", type=float, default=0.05)
    command.add_argument("--every", type=int, default=32, help="steps between measurements")
    command.add_argument("--bf16", action="store_true", help="mixed precision")
    command.add_argument("--save", type=Path, help="folder for the trained weights")
    commands.add_parser("tables").set_defaults(run=tables)
    options = parser.parse_args()
    if options.run is train and options.texts < options.k + options.queries:
        parser.error(f"--texts {options.texts}: a group of prompts has k + queries different ones")
    options.run(options)


if __name__ == "__main__":
    main()
