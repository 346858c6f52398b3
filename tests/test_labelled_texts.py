"""Classifiers that are fitted on labelled texts, next to the methods that read prompts."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import yaml

from abft.bench.classifiers import CLASSIFIERS, Fitting
from abft.bench.grid_file import read_grid
from abft.bench.labelled_texts import labelled_texts
from abft.bench.methods import METHODS
from abft.data.tasks import Example
from abft.errors import AbftError
from command_line import invoke

POOL = [Example(f"text {i}", 0 if i % 10 else 1) for i in range(200)]


def test_draws_hold_two_of_every_class_and_the_smaller_draws():
    draws = [labelled_texts(POOL, count, seed=3) for count in (4, 16, 64, 200)]
    assert [len(draw) for draw in draws] == [4, 16, 64, 200]
    assert Counter(example.label for example in draws[0]) == {0: 2, 1: 2}
    assert all(set(small) < set(large) for small, large in pairwise(draws))
    assert len(set(draws[-1])) == 200

    # All but the pairs come as they are: one in ten is of the rare class.
    rare = [sum(e.label for e in labelled_texts(POOL, 64, seed)) for seed in range(40)]
    assert np.mean(rare) == pytest.approx(2 + 60 * 18 / 196, abs=1)
    assert labelled_texts(POOL, 64, 0) != labelled_texts(POOL, 64, 1)
    assert len(labelled_texts(POOL, 1024, 0)) == 200


def test_draws_that_mean_nothing_are_refused():
    with pytest.raises(AbftError, match="2 classes need at least 4 labelled texts, not 3"):
        labelled_texts(POOL, 3, 0)
    with pytest.raises(AbftError, match="one text of a class"):
        labelled_texts([*POOL, Example("alone", 2)], 16, 0)


def test_every_classifier_is_a_method():
    named = [method.classifier for method in METHODS.values() if method.classifier is not None]
    assert sorted(named) == sorted(CLASSIFIERS)


@pytest.mark.parametrize("name", list(CLASSIFIERS))
def test_classifiers_learn_and_return_probabilities(name, review_data, model_folder):
    good = [f"what a wonderful film, number {i}" for i in range(12)]
    bad = [f"a dreadful waste of time, number {i}" for i in range(8)]
    classifier = CLASSIFIERS[name](Fitting(20, 8, 0, review_data.task, str(model_folder), "cpu"))
    classifier.fit(good + bad, [1] * 12 + [0] * 8)

    probabilities_NC = classifier.predict_proba(["a wonderful film", "a dreadful waste"])
    assert probabilities_NC.shape == (2, 2)
    assert np.allclose(probabilities_NC.sum(1), 1)
    # A random language model knows nothing of words; its hidden states tell texts apart.
    if name != "trained":
        assert probabilities_NC.argmax(1).tolist() == [1, 0]


def test_the_bench_fits_them_on_the_texts_of_the_draw(tmp_path, reviews, model_folder):
    task = {
        "name": "reviews",
        "data": str(reviews),
        "text_column": "review",
        "label_column": "stars",
        "template": "review: {text} sentiment: {label}\n",
    }
    values = {
        "models": [{"name": "tiny", "model": str(model_folder)}],
        "tasks": [task],
        "methods": ["vanilla", "tfidf"],
        "scenarios": ["labelled_texts", "standard"],
        "seeds": [0, 1],
        "settings": {"test_prompts": 16, "device": "cpu"},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    applied = {(cell.method, cell.scenario) for cell in read_grid(path).cells()}
    assert applied == {("vanilla", "standard"), ("tfidf", "labelled_texts")}

    output = tmp_path / "bench"
    plan = invoke("bench", "--config", path, "--output", output, "--dry-run")
    assert "score 16, train on 16" in plan.stdout
    shown = invoke("bench", "--config", path, "--output", output).stdout
    assert "| TF-IDF + logistic regression | 16 |" in shown

    records = [json.loads(p.read_text()) for p in (output / "cells").glob("*tfidf*.json")]
    assert len(records) == 10
    for record in records:
        costs = record["training"]
        assert costs["labelled_texts"] <= record["variant"]["texts"]
        assert costs["cpu_seconds"] > 0 < costs["cpu_seconds_512"]

        # Metrics and predictions are those of the probabilities that the record keeps.
        probabilities_NC = np.array(record["probabilities"]["zero_shot"])
        predictions = record["predictions"]["zero_shot"]
        assert probabilities_NC.argmax(1).tolist() == predictions["predicted"]
        correct = np.equal(predictions["predicted"], predictions["targets"])
        assert record["metrics"]["accuracy"] == pytest.approx(correct.mean())
