"""Read, don't memorise: train on a mixture of tasks, test on a family that was never trained on.

    python benchmarks/reader.py train nce16 --held-out questions --output results/reader/FILE.json
    python benchmarks/reader.py evaluate WEIGHTS RESULT.json --factor 0.5 --output FILE.json
    python benchmarks/reader.py channel --output results/reader/channel.json
    python benchmarks/reader.py peers --output results/reader/peers.json
    python benchmarks/reader.py classifier --output results/reader/classifier.json

`train` measures while it trains: for every held-out task and kind of label words the predictions of
the label words, of all heads' attention and, with a contrastive arm, of the trained heads'.
`evaluate` measures kept weights in more cells; reader_tables.py expects them in
{family}_cells_factor{factor}_seed{seed}.json and {family}_cells_untouched.json. `channel` measures
MetaICL's noisy channel. `peers` fits MiniLM with a logistic regression, and its nearest neighbour,
on the same k texts that the prompts show, and `classifier` an `ABFTClassifier`. AGNews is the task
on which choices are made: no family is held out for it and no mixture trains on it. Other ways to
read the same prompts: reader_readouts.py.

Arms: ce (cross-entropy of the label word, as symbol tuning, arXiv 2305.08298), celabels (the same
among the labels that the demonstrations show, so that nothing else is learned), vote, eq1, nce16
(InfoNCE of 16 heads), ncelayer; "+ce" adds cross-entropy with weight 1. `--kl 3` adds the
divergence from the untouched model, as the recipe does; reader_tables.py expects such results in
{family}_{arm}_kl3_seed{seed}.json, others in {family}_{arm}_seed{seed}.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from abft.data.builtin import BUILTIN, PAPER_TASKS
from abft.scoring.calibration import calibrated, prior
from measured_training import recorded, train_measured, trained_heads
from record import write

FAMILIES = {
    family: tuple(name for name in PAPER_TASKS if BUILTIN[name].family == family)
    for family in ("sentiment", "questions", "tweets")
}
DEVELOPMENT = ("AGNews",)
MEASURED = (*(task for tasks in FAMILIES.values() for task in tasks), *DEVELOPMENT)
WORDS = ("own", "arbitrary", "permuted", "codes")
QUERIES_OF_A_SET = 16
READOUTS = ("label_words", "attention", "heads")


def training_tasks(held_out):
    """The built-in tasks of the other families, but for that of development."""
    left_out = (held_out, *(BUILTIN[name].family for name in DEVELOPMENT))
    return [name for name, record in BUILTIN.items() if record.family not in left_out]


def cells(held_out, kinds, seen=()):
    """What is measured: (task, kind of words). Swapped words mean something with two classes."""
    from abft import load_task

    tasks = [*FAMILIES[held_out], *DEVELOPMENT]
    two = {task for task in tasks if len(load_task(task).task.labels) == 2}
    held = [(t, kind) for t in tasks for kind in kinds if kind != "permuted" or t in two]
    return [*held, *((task, "arbitrary") for task in seen)]


def news_perplexity(model, tokenizer):
    """Perplexity of news, which no mixture trains on."""
    from abft import load_task
    from abft.bench.scenarios import NEUTRAL_TEXTS
    from abft.scoring.perplexity import perplexity

    news = [example.text for example in load_task("AGNews").test[:NEUTRAL_TEXTS]]
    return perplexity(model, tokenizer, news)


def digits(values):
    """Predictions as one text: a figure each, as no task has more than ten classes."""
    return "".join(str(int(value)) for value in values)


def measured(model, groups, heads):
    """Predictions by read-out, and the correct labels' share of the attention on labels."""
    from abft.scoring.groups import read_groups

    readings = read_groups(model, groups)
    targets = np.concatenate([reading.targets for reading in readings])
    found = {
        "targets": digits(targets),
        "label_words": digits(np.concatenate([r.label_words.argmax(1) for r in readings])),
        "attention": digits(np.concatenate([r.votes().argmax(1) for r in readings])),
    }
    if heads is not None:
        found["heads"] = digits(np.concatenate([r.votes(heads).argmax(1) for r in readings]))
    shares = [r.votes(heads)[np.arange(len(r.targets)), r.targets] for r in readings]
    return {**found, "share": round(float(np.concatenate(shares).mean()), 4)}


def hits(cell, readout):
    """Which queries are answered correctly, 1 or 0, (queries,)."""
    pairs = zip(cell[readout], cell["targets"], strict=True)
    return np.array([a == b for a, b in pairs], float)


def accuracy(cell, readout):
    """Share of correct predictions."""
    return float(hits(cell, readout).mean())


def arm(text):
    """An arm's name, checked."""
    kind, _, added = text.partition("+")
    heads = kind.removeprefix("nce")
    known = kind in ("ce", "celabels", "vote", "eq1") or (
        kind != heads and (heads == "layer" or heads.isdigit())
    )
    if not known or added not in ("", "ce") or text in ("ce+ce", "celabels+ce"):
        raise argparse.ArgumentTypeError(f"no arm is named {text!r}")
    return text


def objective_of(arm, temperature):
    """The settings of an arm's objective."""
    kind, _, added = arm.partition("+")
    weight = {"cross_entropy": 1.0 if added else 0.0}
    if kind.startswith("nce"):
        heads = {"heads": kind.removeprefix("nce"), "temperature": temperature}
        return {"objective": "contrastive", **heads, **weight}
    names = {"ce": "e2e", "celabels": "e2e", "vote": "vote", "eq1": "abft"}
    return {"objective": names[kind], **weight}


def among_labels(model):
    """Cross-entropy over the tokens of the labels that a prompt shows, and of its answer."""
    import torch
    from torch.nn.functional import cross_entropy

    from abft.data.batches import at_positions
    from abft.method.objectives import E2EObjective
    from abft.model.lm_head import output_logits

    class AmongLabels(E2EObjective):
        def cross_entropy(self, hidden_BSD, batch):
            hidden_PD = at_positions(hidden_BSD, batch.query_positions)
            logits_PV = output_logits(self.model, hidden_PD)
            prompts = len(batch.answers)
            ids_PS = batch.input_ids.repeat_interleave(prompts // len(batch.input_ids), 0)

            # Places without a demonstration count as the answer.
            tokens_PK = ids_PS.gather(1, batch.label_positions)
            answers_P1 = batch.answers[:, None]
            tokens_PK = torch.where(batch.correct | batch.incorrect, tokens_PK, answers_P1)
            others_PV = torch.ones_like(logits_PV, dtype=torch.bool)
            others_PV.scatter_(1, torch.cat([tokens_PK, answers_P1], 1), False)
            return cross_entropy(logits_PV.masked_fill(others_PV, -torch.inf), batch.answers)

    return AmongLabels(model)


def train(options):
    """One arm: train on the mixture, and measure every few steps."""
    from abft import load_model, load_task
    from abft.data.mixture import evaluation_groups, training_groups
    from abft.data.splits import text_key

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    names = training_tasks(options.held_out)
    kinds = options.test_words.split(",")

    # Some tasks share texts: none that is tested is trained on.
    tested = [load_task(task) for task in (*FAMILIES[options.held_out], *DEVELOPMENT)]
    parts = [part for data in tested for part in (data.train, data.demonstrations, data.test)]
    texts = {text_key(example.text) for part in parts for example in part}
    groups = training_groups(
        [load_task(name).without(texts) for name in names],
        tokenizer,
        options.groups * options.steps,
        options.queries,
        options.seed,
        words=options.words.split(","),
    )
    prompts = [prompt for group in groups for prompt in group.prompts]

    def test_groups(task, kind):
        return evaluation_groups(
            load_task(task), tokenizer, options.k, options.sets, options.test_queries, words=kind
        )

    tests = {cell: test_groups(*cell) for cell in cells(options.held_out, kinds, seen=names[:1])}
    points = []

    def prepare(trainer):
        heads = trained_heads(trainer)

        def measure(step, seconds):
            point = {"step": step, "seconds": round(seconds)}
            point["perplexity"] = news_perplexity(model, tokenizer)
            for (task, kind), written in tests.items():
                point[f"{task}/{kind}"] = measured(model, written, heads)
            points.append(point)
            shown = {
                name: [round(100 * accuracy(cell, r), 1) for r in READOUTS if r in cell]
                for name, cell in point.items()
                if isinstance(cell, dict)
            }
            said = f"{seconds:.0f} s, perplexity {point['perplexity']:.1f}"
            print(step, said, shown, flush=True)
            chosen = None if heads is None else np.argwhere(heads).tolist()
            write(
                options.output,
                {
                    "settings": recorded(options),
                    "trained_on": names,
                    "heads": chosen,
                    "points": points,
                },
            )

        return measure

    settings = objective_of(options.arm, options.temperature)
    settings["kl"] = options.kl
    custom = among_labels(model) if options.arm == "celabels" else None
    train_measured(model, tokenizer, prompts, options, prepare, custom, **settings)


def asked_after(data, tokenizer, sets, queries):
    """The same queries after several sequences of demonstrations, with the task's own words."""
    from abft.data.mixture import asking_group

    return [asking_group(data.task, tokenizer, shown, queries) for shown in sets]


def evaluate(options):
    """Trained weights in more cells: numbers and order of demonstrations, codes, news.

    The cells of `train`, and besides them 4 and 32 demonstrations, codes as label words, the same
    32 queries after 8 orders of 16 demonstrations and after 8 choices of 16, and the perplexity of
    news. `--factor` makes the change of the weights smaller, as `abft merge --factor`; 0 is the
    untouched model.
    """
    import random

    from abft import apply_weights, load_model, load_task
    from abft.data.draws import demonstration_sets
    from abft.data.lengths import fit_texts
    from abft.data.mixture import TEXT_TOKENS, evaluation_groups

    trained = json.loads(options.result.read_text(encoding="utf-8"))
    held_out = trained["settings"]["held_out"]
    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    heads_LH = None
    if trained["heads"] is not None:
        shape = model.config.num_hidden_layers, model.config.num_attention_heads
        heads_LH = np.zeros(shape, bool)
        heads_LH[tuple(np.array(trained["heads"]).T)] = True

    def groups_of(task, k, kind):
        return evaluation_groups(
            load_task(task), tokenizer, k, options.sets, options.test_queries, words=kind
        )

    kinds = ("own", "arbitrary", "permuted")
    tests = {f"{t}/16/{kind}": groups_of(t, 16, kind) for t, kind in cells(held_out, kinds)}
    for task in FAMILIES[held_out]:
        for k, kind in ((4, "own"), (4, "arbitrary"), (32, "own"), (32, "arbitrary")):
            tests[f"{task}/{k}/{kind}"] = groups_of(task, k, kind)
        tests[f"{task}/16/codes"] = groups_of(task, 16, "codes")

        data, _ = fit_texts(load_task(task), tokenizer, TEXT_TOKENS)
        generator = random.Random(f"order {task}")
        queries = generator.sample(data.test, 32)
        choices = demonstration_sets(data.demonstrations, 16, options.sets, generator)
        orders = [generator.sample(choices[0], 16) for _ in range(options.sets)]
        tests[f"{task}/orders"] = asked_after(data, tokenizer, orders, queries)
        tests[f"{task}/choices"] = asked_after(data, tokenizer, choices, queries)
    if options.factor:
        model = apply_weights(model, options.weights, options.factor)
    found = {"perplexity": news_perplexity(model, tokenizer)}
    print(f"perplexity {found['perplexity']:.2f}", flush=True)
    for name, groups in tests.items():
        found[name] = measured(model, groups, heads_LH)
        shares = [accuracy(found[name], r) for r in READOUTS if r in found[name]]
        print(name, *(round(100 * share, 1) for share in shares), flush=True)
    settings = {**recorded(options), "weights": options.weights.name}
    settings |= {"result": options.result.name, "held_out": held_out}
    write(options.output, {"settings": settings, "cells": found})


def channel(options):
    """The noisy channel of MetaICL, untouched: the class whose label makes the text most probable.

    Demonstrations are "label: text" (arXiv 2108.04106); the same texts as in the other cells with
    the task's own words. The direct way is measured next to it.
    """
    import torch
    from transformers import DynamicCache

    from abft import load_model, load_task
    from abft.data.mixture import evaluation_groups
    from abft.model.cache import cache_arguments

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    model.eval()

    def tokens(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def log_likelihoods(group):
        """Log-probability of each query's text after each label, (queries, classes)."""
        words = group.task.label_words
        shown = [f"{words[e.label]}: {e.text}\n" for e in group.demonstrations]
        first = DynamicCache()
        model(torch.tensor([tokens("".join(shown))]), **cache_arguments(model, first))
        rows = [
            (tokens(f"{word}:"), tokens(f" {example.text}"))
            for example in group.queries
            for word in words
        ]
        scores = []
        for start in range(0, len(rows), 32):
            some = rows[start : start + 32]
            longest = max(len(label) + len(text) for label, text in some)
            ids = torch.zeros(len(some), longest, dtype=torch.long)
            for i, (label, text) in enumerate(some):
                ids[i, : len(label) + len(text)] = torch.tensor(label + text)
            cache = DynamicCache()
            for number, layer in enumerate(first.layers):
                many = [each.expand(len(some), -1, -1, -1) for each in (layer.keys, layer.values)]
                cache.update(*many, number)
            logits = model(ids, **cache_arguments(model, cache)).logits.log_softmax(-1)
            for i, (label, text) in enumerate(some):
                at = torch.arange(len(label) - 1, len(label) + len(text) - 1)
                scores.append(float(logits[i, at, torch.tensor(text)].sum()))
        return np.array(scores).reshape(len(group.queries), len(words))

    found = {}
    for task in MEASURED:
        groups = evaluation_groups(
            load_task(task), tokenizer, options.k, options.sets, options.test_queries, words="own"
        )
        found[task] = measured(model, groups, None)
        found[task]["channel"] = digits(
            np.concatenate([log_likelihoods(group).argmax(1) for group in groups])
        )
        shares = [round(100 * accuracy(found[task], r), 1) for r in ("label_words", "channel")]
        print(task, *shares, flush=True)
    write(options.output, {"settings": recorded(options), "cells": found})


class MiniLM:
    """Sentence embeddings of labelled texts: a logistic regression, the nearest text."""

    def __init__(self):
        from abft.bench.classifiers import SentenceEmbedding

        self.embed = SentenceEmbedding().fit([]).transform

    def fit(self, examples):
        """Fit to labelled texts."""
        from sklearn.linear_model import LogisticRegression

        self.shown = self.embed([example.text for example in examples])
        self.labels = np.array([example.label for example in examples])
        self.regression = LogisticRegression(C=10, max_iter=1000).fit(self.shown, self.labels)
        return self

    def predict(self, examples):
        """Predictions of the regression, also batch-calibrated, and of the nearest text."""
        asked = self.embed([example.text for example in examples])
        shares_NC = self.regression.predict_proba(asked)
        nearest = self.labels[(asked @ self.shown.T).argmax(1)]
        labels = self.regression.classes_
        return {
            "minilm": digits(labels[shares_NC.argmax(1)]),
            "minilm_batch": digits(labels[calibrated(shares_NC, prior(shares_NC)).argmax(1)]),
            "minilm_nearest": digits(nearest),
        }


def peers(options):
    """MiniLM on the k texts that the prompts show: a logistic regression, the nearest text."""
    from abft import load_model, load_task
    from abft.data.mixture import evaluation_groups

    _, tokenizer = load_model("SmolLM2-135M-Instruct")
    minilm = MiniLM()
    found = {}
    for task in MEASURED:
        data = load_task(task)
        for k in map(int, str(options.k).split(",")):
            groups = evaluation_groups(
                data, tokenizer, k, options.sets, options.test_queries, words="own"
            )
            said = {"targets": ""}
            for group in groups:
                said["targets"] += digits(example.label for example in group.queries)
                for name, each in minilm.fit(group.demonstrations).predict(group.queries).items():
                    said[name] = said.get(name, "") + each
            found[f"{task}/{k}"] = said
            shares = {name: accuracy(said, name) for name in said if name != "targets"}
            print(task, k, {name: f"{share:.1%}" for name, share in shares.items()}, flush=True)
    write(options.output, {"cells": found})


def classifier(options):
    """An `ABFTClassifier` of the k texts that the prompts show, with the same template and words.

    Of the untouched model on all tasks, or of a reader (`--weights`) on the family that it was not
    trained on.
    """
    import tempfile

    from abft import apply_weights, load_model, load_task
    from abft.bench.classifiers import CLASSIFIERS, Fitting
    from abft.data.mixture import evaluation_groups

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.weights:
            apply_weights(model, options.weights).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        base = folder if options.weights else "SmolLM2-135M-Instruct"
        for task in FAMILIES[options.held_out] if options.weights else MEASURED:
            for kind in ("own", "arbitrary"):
                predictions = {"targets": "", "classifier": ""}
                for group in evaluation_groups(
                    load_task(task),
                    tokenizer,
                    options.k,
                    options.sets,
                    options.test_queries,
                    words=kind,
                ):
                    texts, labels = zip(
                        *((e.text, e.label) for e in group.demonstrations), strict=True
                    )
                    fitting = Fitting(len(texts), 2, 0, group.task, base)
                    fitted = CLASSIFIERS["untrained"](fitting).fit(texts, labels)
                    predictions["targets"] += digits(example.label for example in group.queries)
                    predictions["classifier"] += digits(
                        fitted.predict([example.text for example in group.queries])
                    )
                cells[f"{task}/{kind}"] = predictions
                print(task, kind, f"{accuracy(predictions, 'classifier'):.1%}", flush=True)
    settings = {**recorded(options), "weights": options.weights and options.weights.name}
    write(options.output, {"settings": settings, "cells": cells})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(required=True)
    for name, run in (
        ("train", train),
        ("evaluate", evaluate),
        ("channel", channel),
        ("peers", peers),
        ("classifier", classifier),
    ):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--sets", type=int, default=8, help="sets of demonstrations a cell")
        command.add_argument(
            "--test-queries", type=int, default=QUERIES_OF_A_SET, help="queries of each set"
        )
        if name != "evaluate":
            command.add_argument("--k", type=str if name == "peers" else int, default=16)
        if name == "classifier":
            command.add_argument("--held-out", choices=FAMILIES, help="that the weights never saw")
            command.add_argument("--weights", type=Path, help="default: the untouched model")
        if name == "evaluate":
            command.add_argument("weights", type=Path, help="folder that train --save wrote")
            command.add_argument("result", type=Path, help="file that train --output wrote")
            command.add_argument("--factor", type=float, default=1.0, help="of the change")
        if name == "train":
            command.add_argument("arm", type=arm)
            command.add_argument("--held-out", choices=FAMILIES, default="questions")
            command.add_argument("--words", default="own,arbitrary,permuted", help="in training")
            command.add_argument("--test-words", default="own,arbitrary,permuted")
            command.add_argument("--steps", type=int, default=256)
            command.add_argument("--groups", type=int, default=2, help="groups a step")
            command.add_argument("--queries", type=int, default=16, help="prompts of a group")
            command.add_argument("--lr", type=float, default=3e-4)
            command.add_argument("--temperature", type=float, default=0.05)
            command.add_argument("--kl", type=float, default=0.0, help="weight of the divergence")
            command.add_argument("--every", type=int, default=64, help="steps between measurements")
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--bf16", action="store_true", help="mixed precision")
            command.add_argument("--save", type=Path, help="folder for the trained weights")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
