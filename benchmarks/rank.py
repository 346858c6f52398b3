"""Ranking by attention: recall@1 of heads before and while they are trained, against peers.

    python benchmarks/rank.py train contrastive --data relations --output results/rank/FILE.json
    python benchmarks/rank.py weigh --data halves --output results/rank/FILE.json
    python benchmarks/rank.py evaluate WEIGHTS RESULT.json --output FILE.json
    python benchmarks/rank.py heads --output results/rank/heads.json
    python benchmarks/rank.py speed --output results/rank/speed.json

benchmarks/rank_tables.py shows the results. Data, with 20 candidates (`--candidates`):

halves: the first parts of AGNews texts, the query is the second part of one. Choices are made on
"development", texts that are neither trained on nor tested.
relations: 12 texts of one task and 8 of others; the query is a text, and the instruction says what
has to be the same: "Which document has the same sentiment as the query?". Trained on SST2, FP,
SST5, TEE, TEH and HS18; tested on MR (a relation that was trained), TREC, SUBJ and AGNews
(relations that were not).
docstrings: the query is the first sentence of a function's documentation, candidates are the rest
of it and of others from the same package; tested on other packages.

Arms: contrastive (InfoNCE of 16 heads), layer (of one middle layer), vote (all heads), ce
(cross-entropy of the letter in front of the document, the only arm that is also read from logits).
In all arms the documents have letters. What is read: chosen heads and all heads, each without what
an empty query looks at, and the chosen heads with it ("raw"); chosen before training, by training
prompts. `weigh` reads the weighted heads of `AttentionRanker`, fitted on different numbers of
training queries, of the untrained model or of kept weights.
"""

import argparse
import ast
import json
import random
import string
import time
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from abft import apply_weights, load_model, load_task
from abft.data.splits import text_key
from abft.method.objectives import ContrastiveObjective
from abft.ranker.documents import DocumentReader
from abft.ranker.head_weights import examples, fit_head_weights, layers_read
from abft.ranker.peers import peers as ranker_peers
from abft.ranker.prompts import EMPTY_QUERY, RankingPrompts
from abft.ranker.queries import RankingQuery, by_candidates, queries_without_labels
from abft.ranker.queries import halves as split
from measured_training import recorded, train_measured
from record import write

LETTERS = string.ascii_uppercase
RELATIONS = {
    "SST2": "sentiment",
    "FP": "sentiment",
    "SST5": "rating",
    "MR": "sentiment",
    "TREC": "question type",
    "TEE": "emotion",
    "SUBJ": "subjectivity",
    "AGNews": "topic",
    "TEH": "hatefulness",
    "HS18": "hatefulness",
}
TESTED = ("MR", "TREC", "SUBJ", "AGNews")
DEVELOPMENT = 512  # texts
PACKAGES = ("numpy", "pandas", "torch", "scipy", "scikit-learn", "networkx", "sympy", "matplotlib")
TESTED_PACKAGES = ("transformers", "datasets", "huggingface-hub", "tokenizers", "accelerate")


# Data: groups (documents, [(query, relevant numbers)], instruction) of equally many documents


def asked_of(generator, options):
    """Numbers of the documents that a group asks for."""
    return generator.sample(range(options.candidates), min(options.queries, options.candidates))


def halves(pool, options, count, seed):
    """First parts of news texts, and second parts of some of them."""
    generator = random.Random(f"halves {seed}")
    groups = []
    for _ in range(count):
        chosen = generator.sample(pool, options.candidates)
        parts = [split(example.text) for example in chosen]
        asked = asked_of(generator, options)
        groups.append(([first for first, _ in parts], [(parts[i][1], {i}) for i in asked], ""))
    return groups


def relations(pools, tasks, options, count, seed):
    """Texts of which some have what the query names in common with it."""
    generator = random.Random(f"relations {seed} {tasks}")
    groups = []
    for _ in range(count):
        task = generator.choice(tasks)
        relation = RELATIONS[task]
        by_class = {}
        for example in generator.sample(pools[task], len(pools[task])):
            by_class.setdefault(example.label, []).append(example.text)
        classes = sorted(c for c, texts in by_class.items() if len(texts) >= options.candidates)
        own = options.candidates * 3 // 5
        labels = [generator.choice(classes) for _ in range(own)]
        documents = [(by_class[label].pop(), label) for label in labels]
        others = [name for name in pools if RELATIONS[name] != relation]
        for _ in range(options.candidates - own):
            documents.append((generator.choice(pools[generator.choice(others)]).text, None))
        generator.shuffle(documents)

        shown = sorted(set(labels))
        asked = []
        while len(asked) < options.queries:
            label = generator.choice(shown)
            if by_class[label]:
                relevant = {i for i, (_, each) in enumerate(documents) if each == label}
                asked.append((by_class[label].pop(), relevant))
        instruction = f"Which document has the same {relation} as the query?"
        groups.append(([text for text, _ in documents], asked, instruction))
    return groups


def docstrings(packages):
    """(first sentence, rest) of documented functions and classes, by package, without importing."""
    found = {}
    for distribution in distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name not in packages:
            continue
        pairs = {}
        for file in distribution.files or ():
            if file.suffix != ".py" or "test" in str(file):
                continue
            try:
                tree = ast.parse(Path(file.locate()).read_text(encoding="utf-8"))
            except (OSError, SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    text = " ".join((ast.get_docstring(node) or "").split())
                    first, _, rest = text.partition(". ")
                    if len(first.split()) >= 5 and len(rest.split()) >= 12:
                        pairs[first] = rest
        found[name] = sorted(pairs.items())
    return found


def docstring_groups(pools, options, count, seed):
    """First sentences, and what follows them, of one package at a time."""
    generator = random.Random(f"docstrings {seed}")
    names = sorted(name for name, pairs in pools.items() if len(pairs) >= 2 * options.candidates)
    groups = []
    for _ in range(count):
        pairs = generator.sample(pools[generator.choice(names)], options.candidates)
        asked = asked_of(generator, options)
        groups.append(([rest for _, rest in pairs], [(pairs[i][0], {i}) for i in asked], ""))
    return groups


def data(options):
    """Training groups, and test groups by name."""
    count, tests = options.groups * options.steps, options.tests
    if options.data == "halves":
        news = load_task("AGNews")
        held, others = news.demonstrations[:DEVELOPMENT], news.demonstrations[DEVELOPMENT:]
        return (
            halves([*news.train, *others], options, count, options.seed),
            {
                "AGNews": halves(news.test, options, tests, "test"),
                "development": halves(held, options, tests, "development"),
            },
        )
    if options.data == "relations":
        loaded = {name: load_task(name) for name in RELATIONS}
        tested = {
            text_key(example.text)
            for name in TESTED
            for part in (loaded[name].train, loaded[name].demonstrations, loaded[name].test)
            for example in part
        }
        trained = [name for name in RELATIONS if name not in TESTED]
        pools = {name: loaded[name].without(tested).train for name in trained}
        unseen = {name: list(each.test) for name, each in loaded.items()}
        return (
            relations(pools, trained, options, count, options.seed),
            {name: relations(unseen, [name], options, tests, "test") for name in TESTED},
        )
    training, testing = docstrings(PACKAGES), docstrings(TESTED_PACKAGES)
    print({name: len(pairs) for name, pairs in (*training.items(), *testing.items())}, flush=True)
    return (
        docstring_groups(training, options, count, options.seed),
        {"docstrings": docstring_groups(testing, options, tests, "test")},
    )


# Reading


def lettered(documents):
    """Documents as prompts show them; letters name as many as there are."""
    names = [*LETTERS, *range(len(LETTERS), len(documents))]
    return [f"({name}) {text}" for name, text in zip(names, documents, strict=False)]


def prompts_of(writer, groups, answers):
    """Encoded prompts, those of a group after each other."""
    encoded = []
    for documents, asked, instruction in groups:
        writer = replace(writer, instruction=instruction)
        written = writer.documents(lettered(documents))
        for ids, (_, relevant) in zip(writer.queries([q for q, _ in asked]), asked, strict=True):
            flags = [i in relevant for i in range(len(documents))]
            # More documents than letters: there is no answer to name.
            first = min(relevant)
            answer = answers[first] if first < len(answers) else -1
            encoded.append(writer.prompt(written, ids, flags, answer))
    return encoded


def marks(hits):
    """Hits as one text of 0 and 1."""
    return "".join(str(int(hit)) for hit in hits)


def peers(groups, corpus):
    """Which queries the peers answer, and how often chance does; words are counted in `corpus`."""
    scorers = ranker_peers(corpus)
    found = {name: [] for name in scorers}
    chance = []
    for documents, asked, _ in groups:
        texts = [query for query, _ in asked]
        for name, scorer in scorers.items():
            best = scorer(texts, documents).argmax(1)
            found[name] += [int(b) in right for b, (_, right) in zip(best, asked, strict=True)]
        chance += [len(right) / len(documents) for _, right in asked]
    return {**{name: marks(hits) for name, hits in found.items()}, "chance": np.mean(chance)}


def corpus_of(*parts):
    """The documents of all these groups."""
    return [text for groups in parts for documents, _, _ in groups for text in documents]


def read(model, writer, groups, heads_LH, answers, whole):
    """Which queries each way of reading answers; not `whole`: the chosen heads only, faster."""
    import torch

    from abft.data.batches import Batch, at_positions
    from abft.method.head_statistics import label_attention
    from abft.model.attention import (
        causal_lm,
        decoder,
        read_batch,
        row_attention,
        up_to_layer,
    )

    model.eval()
    hits = {"heads": [], "raw": [], "all": [], "logits": []}
    layers = None if whole else np.flatnonzero(heads_LH.any(1)).tolist()
    chosen_LH = heads_LH if whole else heads_LH[layers]
    last = None if whole else layers[-1]
    with torch.no_grad(), row_attention(model), up_to_layer(decoder(model), last):
        for documents, asked, instruction in groups:
            # The empty query is one more of the group.
            both = [(documents, [*asked, (EMPTY_QUERY, {0})], instruction)]
            prompts = prompts_of(writer, both, answers)
            batch = Batch.of(prompts, len(prompts), "cpu")
            rows, hidden_BSD = read_batch(decoder(model), batch, row_layers=layers)
            attention_LPHK = label_attention(rows, batch).numpy()
            every = {"heads": attention_LPHK.transpose(1, 3, 0, 2)[..., chosen_LH].mean(-1)}
            if whole:
                every["all"] = attention_LPHK.mean((0, 2))
            scores = {name: each[:-1] - each[-1] for name, each in every.items()}
            scores["raw"] = every["heads"][:-1]
            if whole:
                hidden_PD = at_positions(hidden_BSD, batch.query_positions)
                logits_PV = causal_lm(model).get_output_embeddings()(hidden_PD)
                scores["logits"] = logits_PV[:-1, answers[: len(documents)]].numpy()
            for name, each in scores.items():
                best = each.argmax(1)
                hits[name] += [int(b) in right for b, (_, right) in zip(best, asked, strict=True)]
    return {name: marks(each) for name, each in hits.items() if each}


def share(text):
    """Recall@1 in percent."""
    return round(100 * text.count("1") / len(text), 1)


def train(options):
    """One arm: measure, and train."""
    from abft.method.objectives import E2EObjective, VoteObjective

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    writer = RankingPrompts(tokenizer, options.looking, 64, 96)
    answers = [tokenizer(f" ({letter}")["input_ids"][-1] for letter in LETTERS]
    groups, tests = data(options)
    record = {"settings": recorded(options)}
    corpus = corpus_of(groups, *tests.values())
    record["peers"] = {name: peers(each, corpus) for name, each in tests.items()}
    for name, each in record["peers"].items():
        print(
            name,
            {k: share(v) if isinstance(v, str) else round(100 * v, 1) for k, v in each.items()},
        )
    prompts = prompts_of(writer, groups, answers)

    # The heads that are read are chosen in the same way for every arm.
    finder = ContrastiveObjective("layer" if options.arm == "layer" else str(options.heads))
    finder.temperature = options.temperature
    finder.prepare(model, prompts, options.queries)
    heads_LH = finder.chosen_LH.numpy()
    record["heads"] = np.argwhere(heads_LH).tolist()
    objective = {"vote": VoteObjective(), "ce": E2EObjective(model)}.get(options.arm, finder)
    record["points"] = []

    def measure(step, seconds):
        point = {"step": step, "seconds": round(seconds)}
        for name, each in tests.items():
            whole = step == 0 or objective is not finder
            point[name] = read(model, writer, each, heads_LH, answers, whole)
        record["points"].append(point)
        shown = {n: {k: share(v) for k, v in point[n].items()} for n in tests}
        print(step, f"{seconds:.0f} s", shown, flush=True)
        write(options.output, record)

    train_measured(model, tokenizer, prompts, options, lambda trainer: measure, objective)


def looks(model, writer, groups, layers):
    """How the queries of each group look at its documents, as `fit_head_weights` takes them."""
    for documents, asked, instruction in groups:
        instructed = replace(writer, instruction=instruction)
        reader = DocumentReader(model, instructed.beginning, layers)
        shown = tuple(lettered(documents))
        queries = [RankingQuery(text, shown, frozenset(relevant)) for text, relevant in asked]
        yield from examples(reader, instructed, [queries], None)


def answered(scorer, groups):
    """Which queries have a relevant document with the highest score."""
    return marks(int(scorer(look).argmax()) in right for group in groups for look, right in group)


def heads(options):
    """Nothing is trained: heads that are found and weighed on one kind of documents read another.

    Those of `chosen` have the largest difference between relevant documents and others, after an
    empty query's attention was subtracted.
    """
    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    writer = RankingPrompts(tokenizer, "query", 64, 96)
    record = {"settings": recorded(options), "queries": {}, "peers": {}, "cells": {}}
    known, tests = {}, {}
    for name in ("docstrings", "halves"):
        drawn = argparse.Namespace(**vars(options), data=name, groups=1, steps=options.tests)
        labelled, tested = data(drawn)
        known[f"{name}, labelled"] = labelled
        tests[name] = next(iter(tested.values()))
        record["peers"][name] = peers(tests[name], corpus_of(labelled, tests[name]))

    # Without labels: on the documents that are ranked, by the queries of
    # `AttentionRanker.find_heads`.
    for name, groups in tests.items():
        shared = by_candidates(
            queries_without_labels(corpus_of(groups), options.candidates, options.seed)
        )
        known[f"{name}, without labels"] = [
            (documents, [(query.text, query.relevant) for query in asked[: options.queries]], "")
            for documents, asked in list(shared.items())[: options.tests]
        ]

    layers = model.config.num_hidden_layers
    per_layer = model.config.num_attention_heads
    read_of = len(layers_read(model)) * per_layer  # the heads that are weighed are the first ones
    tested = {
        name: list(looks(model, writer, groups, list(range(layers))))
        for name, groups in tests.items()
    }
    for name, groups in tested.items():
        record["cells"][f"{name}/all heads"] = answered(lambda look: look.mean(0), groups)
    for found_on, groups in known.items():
        found = list(looks(model, writer, groups, list(range(layers))))
        every = [example for group in found for example in group]
        record["queries"][found_on] = len(every)
        contrast = np.mean([preference(look, list(right)) for look, right in every], 0)
        chosen = np.argsort(-contrast)[: options.heads]
        weights = fit_head_weights(
            [[(look[:read_of], right) for look, right in group] for group in found],
            len(layers_read(model)),
        )
        for name, asked in tested.items():
            cell = record["cells"][f"{name}/{found_on}"] = {
                "chosen": answered(lambda look, heads=chosen: look[heads].mean(0), asked),
                "weighted": answered(lambda look, by=weights: by.scores(look[:read_of]), asked),
            }
            print(f"{found_on} -> {name}:", {how: share(hits) for how, hits in cell.items()})
            write(options.output, record)


def preference(look_KD, relevant):
    """Each head's mean attention on relevant documents minus that on others."""
    return look_KD[:, relevant].mean(1) - np.delete(look_KD, relevant, 1).mean(1)


def weigh(options):
    """Recall@1 of weighted heads by number of training queries and of candidates."""
    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    trained = ()
    if options.weights is not None:
        model = apply_weights(model, options.weights)
        trained = json.loads(options.result.read_text(encoding="utf-8"))["heads"]
    model.eval()
    writer = RankingPrompts(tokenizer, "query", 64, 96)
    options.steps = 1
    groups, tests = data(options)
    names = {
        name: path and path.name
        for name, path in (("weights", options.weights), ("result", options.result))
    }
    record = {"settings": recorded(options) | names, "peers": {}, "cells": {}}
    started = time.perf_counter()
    layers = layers_read(model, trained)
    known = list(looks(model, writer, groups, layers))
    record["seconds"] = {"training queries": round(time.perf_counter() - started)}

    fitted = {}
    for count in (1, 2, 4, 8, 16, 32, 64):
        if count <= len(known):
            started = time.perf_counter()
            weights = fit_head_weights(known[:count], len(layers))
            fitted[sum(map(len, known[:count]))] = weights
            seconds = time.perf_counter() - started
    record["seconds"]["fit of the most"] = round(seconds, 1)

    for count in map(int, options.counts.split(",")):
        # Fewer candidates, more groups: about as many queries.
        each = {"candidates": count, "tests": options.tests * options.candidates // count}
        smaller = argparse.Namespace(**{**vars(options), **each})
        tests = data(smaller)[1]
        corpus = corpus_of(groups, *tests.values())
        for name, asked in tests.items():
            record["peers"][f"{name}/{count}"] = peers(asked, corpus)
            found = list(looks(model, writer, asked, layers))
            cell = record["cells"][f"{name}/{count}"] = {
                str(queries): answered(weights.scores, found) for queries, weights in fitted.items()
            }
            print(f"{name}/{count}", {queries: share(hits) for queries, hits in cell.items()})
            write(options.output, record)


def speed(options):
    """A query over documents that are kept, against a forward pass of the whole prompt."""
    import torch

    from abft.data.batches import Batch
    from abft.model.attention import decoder, read_batch, row_attention

    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    writer = RankingPrompts(tokenizer, "query", 128, 64)
    texts = [example.text for example in load_task("AGNews").train]
    results = []
    for count in (4, 20, 100):
        documents = writer.documents(texts[:count])
        query, *others = writer.queries(texts[count : count + 16])
        prompt = writer.prompt(documents, query, [True] + [False] * (count - 1))
        rounds = []
        for _ in range(options.rounds):
            # A new one each round: it keeps what it has read.
            reader = DocumentReader(model, writer.beginning)
            seconds = {}
            started = time.perf_counter()
            with torch.no_grad(), row_attention(model):
                read_batch(decoder(model), Batch.of([prompt], 1, "cpu"))
            seconds["whole"] = time.perf_counter() - started
            started = time.perf_counter()
            kept = reader.read(documents)
            seconds["documents"] = time.perf_counter() - started
            started = time.perf_counter()
            list(reader.attention(kept, [query]))
            seconds["query"] = time.perf_counter() - started
            started = time.perf_counter()
            list(reader.attention(kept, [query, *others]))
            seconds["each of 16 queries"] = (time.perf_counter() - started) / 16
            rounds.append(seconds)
        middle = {name: float(np.median([r[name] for r in rounds])) for name in rounds[0]}
        held = sum(k.numel() * 4 + v.numel() * 4 for k, v in kept.layers) / 2**20
        row = {"documents": count, "tokens": len(prompt.input_ids), "MiB": round(held, 1)}
        results.append({**row, "seconds": middle, "rounds": rounds})
        print(row, {k: round(v, 3) for k, v in middle.items()}, flush=True)
    write(options.output, {"results": results})


def evaluate(options):
    """Kept weights: recall@1 by number of candidates, and which heads prefer relevant documents."""
    from abft.method.head_finder import head_scores
    from abft.model.attention import IMPLEMENTATION

    trained = json.loads(options.result.read_text(encoding="utf-8"))
    settings = argparse.Namespace(**trained["settings"])
    training_documents = corpus_of(data(settings)[0])  # whose words the peers count, as in `train`
    settings.tests, settings.groups, settings.steps = options.tests, 1, 16
    settings.queries = options.queries
    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    writer = RankingPrompts(tokenizer, settings.looking, 64, 96)
    answers = [tokenizer(f" ({letter}")["input_ids"][-1] for letter in LETTERS]
    layers = sorted({layer for layer, _ in trained["heads"]})
    known = data(settings)[0]
    finding = prompts_of(writer, known, answers)

    def recall(reader, groups):
        hits = []
        for documents, asked, _ in groups:
            kept = reader.read(writer.documents(lettered(documents)))
            scores = []
            queries = writer.queries([*(query for query, _ in asked), EMPTY_QUERY])
            looking = None if settings.looking == "query" else 1
            for attention_LHD in reader.attention(kept, queries, looking):
                chosen = [attention_LHD[layers.index(i), h] for i, h in trained["heads"]]
                scores.append(np.mean([each.numpy() for each in chosen], 0))
            best = (np.array(scores[:-1]) - scores[-1]).argmax(1)
            hits += [int(b) in right for b, (_, right) in zip(best, asked, strict=True)]
        return marks(hits)

    names = {"weights": options.weights.name, "result": options.result.name, "data": settings.data}
    record = {"settings": recorded(options) | names, "heads": trained["heads"]}
    record |= {"cells": {}, "scores": {}}
    for name in ("untrained", "trained"):
        if name == "trained":
            model = apply_weights(model, options.weights)
        scores_LH = head_scores(model.eval(), finding, IMPLEMENTATION, settings.queries)
        record["scores"][name] = [[round(float(x), 5) for x in row] for row in scores_LH]
        for count in map(int, options.counts.split(",")):
            settings.candidates = count
            tests = {name: each for name, each in data(settings)[1].items() if name in options.sets}
            corpus = [*training_documents, *corpus_of(*tests.values())]
            for task, groups in tests.items():
                beginning = replace(writer, instruction=groups[0][2]).beginning
                cell = record["cells"].setdefault(f"{task}/{count}", {})
                cell[name] = recall(DocumentReader(model, beginning, layers), groups)
                if name == "untrained":
                    cell.update(peers(groups, corpus))
                shown = {k: share(v) for k, v in cell.items() if isinstance(v, str)}
                print(name, task, count, shown, flush=True)
                write(options.output, record)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("train")
    command.set_defaults(run=train)
    command.add_argument("arm", choices=("contrastive", "layer", "vote", "ce"))
    command.add_argument("--data", choices=("halves", "relations", "docstrings"), required=True)
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--candidates", type=int, default=20)
    command.add_argument("--queries", type=int, default=8, help="of a group")
    command.add_argument("--groups", type=int, default=4, help="of an optimizer step")
    command.add_argument("--steps", type=int, default=64)
    command.add_argument("--every", type=int, default=16, help="steps between measurements")
    command.add_argument("--tests", type=int, default=16, help="groups of each test")
    command.add_argument("--heads", type=int, default=16)
    command.add_argument("--looking", default="query")
    command.add_argument("--temperature", type=float, default=0.05)
    command.add_argument("--lr", type=float, default=3e-4)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--bf16", action="store_true", help="mixed precision")
    command.add_argument("--save", type=Path, help="folder for the trained weights")
    command = commands.add_parser("heads")
    command.set_defaults(run=heads)
    command.add_argument("--candidates", type=int, default=20)
    command.add_argument("--queries", type=int, default=8, help="of a group")
    command.add_argument("--tests", type=int, default=16, help="groups of each test")
    command.add_argument("--heads", type=int, default=16)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--output", type=Path, required=True)
    command = commands.add_parser("weigh")
    command.set_defaults(run=weigh)
    command.add_argument("--data", choices=("halves", "relations", "docstrings"), required=True)
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--weights", type=Path, help="folder that train --save wrote")
    command.add_argument("--result", type=Path, help="with --weights: file of that training")
    command.add_argument("--candidates", type=int, default=20)
    command.add_argument("--counts", default="20", help="numbers of candidates of the tests")
    command.add_argument("--queries", type=int, default=20, help="of a group")
    command.add_argument("--groups", type=int, default=32, help="of training queries")
    command.add_argument("--tests", type=int, default=16, help="groups of each test")
    command.add_argument("--seed", type=int, default=0)
    command = commands.add_parser("speed")
    command.set_defaults(run=speed)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--output", type=Path)
    command = commands.add_parser("evaluate")
    command.set_defaults(run=evaluate)
    command.add_argument("weights", type=Path, help="folder that train --save wrote")
    command.add_argument("result", type=Path, help="file that train --output wrote")
    command.add_argument("--counts", default="4,10,20,50,100", help="numbers of candidates")
    command.add_argument("--queries", type=int, default=8, help="of a group")
    command.add_argument("--sets", nargs="+", default=["AGNews"], help="names of test sets")
    command.add_argument("--tests", type=int, default=16, help="groups of each test")
    command.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
