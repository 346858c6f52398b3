"""Read the same prompts in several ways, untouched and with a reader's weights.

    python benchmarks/reader_readouts.py measure RESULT.json --output FILE.json
    python benchmarks/reader_readouts.py measure RESULT.json --weights WEIGHTS --output FILE.json
    python benchmarks/reader_readouts.py tables
    python benchmarks/reader_readouts.py against

RESULT.json is of `reader.py train` with a contrastive arm: it says which family is held out and
which heads were chosen, before any step and on training prompts, so that the untouched model can
be read from the same heads. `tables` expects {family}_readouts_untouched.json and
{family}_readouts_seed{seed}.json in results/reader.

After every sequence of demonstrations, one forward pass reads the label words and the heads at its
queries, and at texts without content (contextual calibration, arXiv 2102.09690). Batch calibration
(arXiv 2309.17249) divides by the mean answer to the 16 queries themselves, without their labels;
texts without content count as 4 of them, as in `Predictor(calibrate="batch")`.
"""

import argparse
from pathlib import Path

import numpy as np

from abft.scoring.calibration import CONTENT_FREE, batch_prior, calibrated, prior
from measured_training import recorded
from reader import DEVELOPMENT, FAMILIES, QUERIES_OF_A_SET, cells, digits
from reader_tables import RESULTS, hits, read, with_interval
from reader_tables import shown as interval
from record import write

KINDS = ("own", "arbitrary", "permuted")
SOURCES = ("label_words", "heads")
SMALLEST = 1e-4  # of a probability


def logs(shares_PC):
    """Log-probabilities with three decimals, a text for each row: they are kept in a file."""
    shares_PC = shares_PC / shares_PC.sum(1, keepdims=True)
    rows = np.log(np.maximum(shares_PC, SMALLEST)).round(3).tolist()
    return [" ".join(map(str, row)) for row in rows]


def shares(rows):
    """What `logs` wrote, as probabilities."""
    shares_NC = np.exp(np.array([row.split() for row in rows], float))
    return shares_NC / shares_NC.sum(1, keepdims=True)


def read_by_way(shown):
    """Probabilities of the queries after one sequence of demonstrations, by way to read."""
    words_NC, heads_NC = (shares(shown["queries"][name]) for name in SOURCES)
    without_NC = shares(shown["content_free"]["label_words"])
    calibrated_NC = calibrated(words_NC, prior(without_NC))
    return {
        "label words": words_NC,
        "calibrated": calibrated_NC,
        "batch-calibrated": calibrated(words_NC, batch_prior(words_NC, without_NC)),
        "batch alone": calibrated(words_NC, words_NC.mean(0)),
        "heads": heads_NC,
        "calibrated and heads": calibrated_NC * heads_NC,
    }


def hits_by_way(cell):
    """Which queries are answered correctly, (sets, queries) for each way to read."""
    found = {}
    for shown in cell:
        targets_N = np.array(list(shown["targets"]), int)
        for way, shares_NC in read_by_way(shown).items():
            found.setdefault(way, []).append(shares_NC.argmax(1) == targets_N)
    return {way: np.array(hits, float) for way, hits in found.items()}


def measure(options):
    """Log-probabilities of every cell of `reader.py train`, set by set of demonstrations."""
    from abft import Example, apply_weights, load_model, load_task
    from abft.data.mixture import asking_group, evaluation_groups
    from abft.scoring.groups import read_groups

    trained = read(options.result)
    held_out = trained["settings"]["held_out"]
    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    heads_LH = np.zeros(shape, bool)
    heads_LH[tuple(np.array(trained["heads"]).T)] = True
    if options.weights:
        model = apply_weights(model, options.weights)

    empty = [Example(text, 0) for text in CONTENT_FREE]
    found = {}
    for task, kind in cells(held_out, KINDS):
        groups = evaluation_groups(
            load_task(task), tokenizer, options.k, options.sets, options.test_queries, words=kind
        )
        cell = []
        for group in groups:
            texts = [*group.queries, *empty]
            both = asking_group(group.task, tokenizer, group.demonstrations, texts)
            (reading,) = read_groups(model, [both])
            asked = len(group.queries)
            places = {"queries": slice(asked), "content_free": slice(asked, None)}
            read_out = (reading.label_words, reading.votes(heads_LH))
            kept = {
                place: {name: logs(each[at]) for name, each in zip(SOURCES, read_out, strict=True)}
                for place, at in places.items()
            }
            cell.append({"targets": digits(reading.targets[:asked]), **kept})
        found[f"{task}/{kind}"] = cell
        said = {way: f"{hits.mean():.1%}" for way, hits in hits_by_way(cell).items()}
        print(task, kind, said, flush=True)
    settings = {**recorded(options), "result": options.result.name, "held_out": held_out}
    settings["weights"] = options.weights and options.weights.name
    write(options.output, {"settings": settings, "cells": found})


def tables(options):
    """Accuracy by way to read, untouched and trained (a mean over seeds), and intervals."""
    for kind in KINDS:
        rows, differences, known = [], {}, {}
        for family, tasks in FAMILIES.items():
            untouched = read(RESULTS / f"{family}_readouts_untouched.json")["cells"]
            paths = sorted(RESULTS.glob(f"{family}_readouts_seed*.json"))
            trained = [read(path)["cells"] for path in paths]
            for task in (*tasks, *DEVELOPMENT):
                name = f"{task}/{kind}"
                if name not in untouched or not trained:
                    continue
                before = hits_by_way(untouched[name])
                after = [hits_by_way(cells[name]) for cells in trained]
                if not rows:
                    titles = [
                        f"{when}, {way}" for when in ("untouched", "reader") for way in before
                    ]
                    print(f"| {kind} words | seeds |", " | ".join(titles), "|")
                    print("|---" * (2 + len(titles)) + "|")
                row = [before[way].mean() for way in before]
                row += [np.mean([hits[way] for hits in after]) for way in before]
                title = f"{task} ({family} held out)" if task in DEVELOPMENT else task
                print(f"| {title} | {len(after)} |", " | ".join(f"{100 * x:.1f}" for x in row), "|")
                if task not in DEVELOPMENT:
                    rows.append(row)
                kept = known if task in DEVELOPMENT else differences
                for way, untrained in before.items():
                    by_family = kept.setdefault(way, {})
                    by_family.setdefault(family, []).append(
                        np.stack([each[way] - untrained for each in after])
                    )
        print("| mean | |", " | ".join(f"{100 * x:.1f}" for x in np.mean(rows, 0)), "|")
        others = {
            way: [each for family, each in by_family.items() if family != "questions"]
            for way, by_family in differences.items()
        }
        for way, by_family in differences.items():
            print(f"reader minus untouched, {way}:", interval(with_interval(by_family.values())))
            print(
                "  without questions, on which the pilot was run:",
                interval(with_interval(others[way])),
            )
            if way in known:
                # The same prompts after the trainings of all families.
                runs = np.concatenate([each for (each,) in known[way].values()])
                print(f"  {DEVELOPMENT[0]} alone:", interval(with_interval([[runs]])))


def against(options):
    """The reader minus peers that are given the same 16 texts, by way to read."""
    minilm, fitted = (read(RESULTS / f"{name}.json")["cells"] for name in ("peers", "classifier"))
    peers = {
        "MiniLM + LR": lambda task, kind: hits(minilm[f"{task}/16"], "minilm"),
        "MiniLM + LR, batch-calibrated": lambda task, kind: hits(
            minilm[f"{task}/16"], "minilm_batch"
        ),
        "ABFTClassifier": lambda task, kind: hits(fitted[f"{task}/{kind}"], "classifier"),
    }
    for kind in ("own", "arbitrary"):
        trained = {
            family: [
                {task: hits_by_way(read(path)["cells"][f"{task}/{kind}"]) for task in tasks}
                for path in sorted(RESULTS.glob(f"{family}_readouts_seed*.json"))
            ]
            for family, tasks in FAMILIES.items()
        }
        ways = next(iter(trained["questions"][0].values()))
        for name, theirs in peers.items():
            for way in ways:
                found = [
                    [
                        np.stack([seed[task][way] - theirs(task, kind) for seed in trained[family]])
                        for task in tasks
                    ]
                    for family, tasks in FAMILIES.items()
                ]
                print(f"{kind} words, {way}, minus {name}:", interval(with_interval(found)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure", description=measure.__doc__)
    command.set_defaults(run=measure)
    command.add_argument("result", type=Path, help="file that reader.py train --output wrote")
    command.add_argument("--weights", type=Path, help="that --save wrote; default: untouched")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--k", type=int, default=16)
    command.add_argument("--sets", type=int, default=8, help="sets of demonstrations a cell")
    command.add_argument("--test-queries", type=int, default=QUERIES_OF_A_SET)
    for run in (tables, against):
        commands.add_parser(run.__name__, description=run.__doc__).set_defaults(run=run)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
