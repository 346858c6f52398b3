"""`ABFTClassifier` as scikit-learn's users would drive it, on a tiny random model."""

import json
import math
import pickle
import random
import shutil
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import abft.classifier.estimator
import abft.model.loading
from abft import ABFTClassifier
from abft.classifier import estimator
from abft.classifier.sharing import base_model, forget_base_model
from abft.data.draws import demonstration_sets, split_held_out
from abft.data.prompts import training_prompts
from abft.data.splits import TaskData, text_key
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError
from abft.model.loading import absolute_model
from abft.readouts.probe import Probe
from abft.training.trainer import ABFTTrainer
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:training did not help")


@pytest.fixture(scope="module")
def texts(review_data):
    return [example.text for example in review_data.train[:40]]


@pytest.fixture(scope="module")
def labels(review_data):
    return [review_data.task.labels[example.label] for example in review_data.train[:40]]


@pytest.fixture(scope="module")
def new(model_folder):
    """A classifier on the tiny model."""

    def make(**settings):
        settings = {
            "model": str(model_folder),
            "device": "cpu",
            "steps": 0,
            "random_state": 0,
            "progress": False,
            **settings,
        }
        return ABFTClassifier(**settings)

    return make


@pytest.fixture(scope="module")
def trained(new, texts, labels):
    return new(objective="e2e", steps=16, learning_rate=0.01).fit(texts, labels)


def test_training_helps_and_the_best_weights_are_kept(trained, texts, labels):
    assert trained.classes_.tolist() == ["negative", "positive"]
    before, best = trained.validation_[0], trained.validation_[trained.best_step_]
    assert trained.best_step_ > 0
    assert best["accuracy"] > before["accuracy"] or best["log_loss"] < before["log_loss"]
    probabilities = trained.predict_proba(texts)
    assert probabilities.shape == (40, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (trained.predict(texts) == trained.classes_[probabilities.argmax(1)]).all()
    assert trained.score(texts, labels) == np.mean(trained.predict(texts) == np.array(labels))
    held_out = 8
    shown = {text for demonstrations in trained.demonstrations_ for text, _ in demonstrations}
    assert len(shown) <= 40 - held_out


def test_training_that_does_not_help_leaves_the_model_as_it_was(new, texts, labels):
    with pytest.warns(UserWarning, match="untouched model is kept"):
        stuck = new(steps=4, learning_rate=0.0).fit(texts, labels)
    assert stuck.best_step_ == 0
    untouched = dict(new().fit(texts, labels)._opened()[0].model.named_parameters())
    for name, parameter in stuck._opened()[0].model.named_parameters():
        assert parameter.equal(untouched[name]), name
    harmed = new(steps=4, learning_rate=10.0, objective="e2e").fit(texts, labels)
    assert harmed.best_step_ == 0


def test_a_training_that_is_rejected_leaves_the_shared_model(new, texts, labels, monkeypatch):
    """Where a step was better by label words alone, but the untouched read-out was better."""

    def run(training, model, tokenizer, data, validate):
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
        return 2, {0: validate(), 2: validate()}

    monkeypatch.setattr("abft.classifier.training.Training.run", run)
    real, losses = estimator.fit_readout, iter([0.1, 0.9, 0.5])

    def fit_readout(*given):
        fitted = real(*given)
        scores = {**fitted.scores[fitted.name], "log_loss": next(losses)}
        return replace(fitted, scores={fitted.name: scores})

    monkeypatch.setattr(estimator, "fit_readout", fit_readout)
    rejected = new(steps=2, readout="label_words").fit(texts, labels)
    assert rejected.best_step_ == 0
    shared, _ = base_model(rejected.model, "cpu", own=False)
    assert rejected._opened()[0].model is shared


def test_training_leaves_the_global_generators_alone(new, texts, labels):
    numbers = []
    for seed in (1, 1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        new(steps=1, learning_rate=1e-4).fit(texts, labels)
        numbers.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert numbers[0] == numbers[1]
    assert all(a != b for a, b in zip(numbers[0], numbers[2], strict=True))


def test_texts_that_are_equal_once_cut_are_not_held_out_and_trained_on(new, monkeypatch):
    texts = [f"{i} " + "great " * 300 + end for i in range(30) for end in ("good end", "bad end")]
    seen = []

    def run(training, model, tokenizer, data, validate):
        seen.append(data)
        return 0, {0: validate()}

    monkeypatch.setattr("abft.classifier.training.Training.run", run)
    with pytest.warns(UserWarning, match="only their beginning is read"):
        new(steps=1).fit(texts, [i // 2 % 2 for i in range(60)])
    (data,) = seen
    training, held_out = ({text_key(e.text) for e in part} for part in (data.train, data.test))
    assert len(training) + len(held_out) == 30
    assert not training & held_out


@pytest.mark.parametrize("state", range(4))
@pytest.mark.parametrize("steps", [0, 1])
def test_repeated_demonstrations_fit_too(new, steps, state):
    """A rare class's texts are shown several times in a set: their length counts as often."""
    texts = ["word " * 188, "words " * 188, "bad", "sad", *(f"good {i}" for i in range(38))]
    labels = [*["rare"] * 4, *["common"] * 38]
    with pytest.warns(UserWarning, match="only their beginning is read"):
        fitted = new(k=8, steps=steps, learning_rate=1e-4, random_state=state).fit(texts, labels)
    assert fitted.predict_proba(["word " * 100]).shape == (1, 2)


def test_long_texts_are_cut_without_demonstrations_too(new):
    texts = [f"{i} " + "great " * 700 * (i % 2) for i in range(20)]
    with pytest.warns(UserWarning, match="10 texts have more than [0-9]+ tokens"):
        new().fit(texts, ["a", "b"] * 10)


def test_predicting_warns_of_texts_that_are_cut(trained):
    long = "great " * 1000
    for predict in (trained.predict, trained.predict_proba, trained.explain):
        with pytest.warns(UserWarning, match="1 texts are longer than fits") as caught:
            predict([long, "bad"])
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.predict(["bad"])


def test_a_folder_named_like_the_embedded_model_is_not_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SmolLM2-135M-Instruct").mkdir()
    (tmp_path / "gpt2").write_text("")
    for name in ("SmolLM2-135M-Instruct", "gpt2", "org/model"):
        assert absolute_model(name) == name
    (tmp_path / "mine").mkdir()
    assert absolute_model("mine") == str(tmp_path / "mine")
    with pytest.raises(AbftError, match="model = None"):
        ABFTClassifier(None).fit(["a", "b"], [0, 1])


def test_a_fold_without_texts_that_a_set_does_not_show(new):
    for seed in (8, 11, 20):
        fitted = new(k=4, random_state=seed).fit(
            ["a b", "c d", "e f", "g h", "i j", "k l", "m n", "o p"],
            ["abcd"[i % 4] for i in range(8)],
        )
        assert np.isfinite(fitted.predict_proba(["q r"])).all()
    none = Probe.fit(np.zeros((0, 2, 3), np.float32), np.zeros(0, int), 4, 0.3)
    np.testing.assert_allclose(none.log_probabilities(np.ones((1, 2, 3))), np.log(0.25))


def test_few_texts_are_shown_where_attention_on_them_is_read(new, texts, labels):
    fitted = new(readout="attention").fit(texts[:20], labels[:20])
    assert len(fitted.demonstrations_[0]) == 4


def test_a_base_model_may_be_elsewhere(new, texts, labels, bpe, tmp_path, monkeypatch):
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    bpe.save_pretrained(base)
    monkeypatch.chdir(tmp_path)
    fitted = new(model="base").fit(texts, labels)
    fitted.save("saved")
    kept, expected = pickle.dumps(fitted), fitted.predict_proba(texts[:3])

    # From another folder, where it is, and where it went.
    monkeypatch.chdir("/")
    for again in (pickle.loads(kept), ABFTClassifier.load(tmp_path / "saved")):
        np.testing.assert_allclose(again.predict_proba(texts[:3]), expected, atol=1e-6)
        assert again.random_state == 0
    base.rename(tmp_path / "away")
    moved = ABFTClassifier.load(tmp_path / "saved", model=tmp_path / "away")
    np.testing.assert_allclose(moved.predict_proba(texts[:3]), expected, atol=1e-6)

    opened = pickle.loads(kept).set_params(model=tmp_path / "away")
    opened.predict(texts[:3])
    opened.save(tmp_path / "saved")
    again = ABFTClassifier.load(tmp_path / "saved")
    np.testing.assert_allclose(again.predict_proba(texts[:3]), expected, atol=1e-6)


def test_every_kind_of_column(new, texts, labels):
    import datasets
    import pandas

    expected = new().fit(texts, labels).predict_proba(texts)
    frame = pandas.DataFrame({"text": texts, "label": labels}, index=range(100, 140))
    table = datasets.Dataset.from_pandas(frame, preserve_index=False)
    for X, y in (
        (np.array(texts), np.array(labels)),
        (np.array(texts, dtype=object), tuple(labels)),
        (frame["text"], frame["label"]),
        (frame["text"].astype("string"), frame["label"].astype("category")),
        (table["text"], table["label"]),
    ):
        np.testing.assert_array_equal(new().fit(X, y).predict_proba(X), expected)
    numbers = [int(label == "positive") for label in labels]
    classifier = new(label_words={0: "negative", 1: "positive"}).fit(texts, numbers)
    assert classifier.classes_.tolist() == [0, 1]
    np.testing.assert_array_equal(classifier.predict_proba(texts), expected)
    assert set(classifier.predict(texts).tolist()) <= {0, 1}
    whole = new().fit(
        texts, np.array(numbers) + 9
    )  # 9 and 10: one is two tokens, none begins the other
    np.testing.assert_allclose(whole.predict_proba(texts).sum(1), 1)


def test_saved_and_pickled_classifiers_are_the_same(trained, new, texts, labels, tmp_path):
    expected = trained.predict_proba(texts)
    trained.save(tmp_path / "saved")
    loaded = ABFTClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_proba(texts), expected)
    assert loaded.validation_ == trained.validation_
    assert loaded.best_step_ == trained.best_step_
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(
        ABFTClassifier.load(tmp_path / "again").predict_proba(texts), expected
    )
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(trained)).predict_proba(texts), expected
    )
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(loaded)).predict_proba(texts), expected)
    np.testing.assert_array_equal(
        trained.predict_proba(texts), expected
    )  # pickling changed nothing
    plain = new(label_words={0: "bad", 1: "good"}).fit(
        texts, [int(label == "positive") for label in labels]
    )
    plain.save(tmp_path / "plain")
    loaded = ABFTClassifier.load(tmp_path / "plain")
    np.testing.assert_array_equal(loaded.predict_proba(texts), plain.predict_proba(texts))
    assert loaded.classes_.dtype == plain.classes_.dtype


def test_saving_that_fails_leaves_what_was_saved(
    trained, new, texts, labels, tmp_path, monkeypatch
):
    folder = tmp_path / "saved"
    trained.save(folder)

    def files():
        return {path.name: path.read_bytes() for path in folder.rglob("*.*")}

    before = files()
    assert len(before) == 3  # record, weights, read-out
    assert len({path.stat().st_mode for path in folder.rglob("*.*")}) == 1

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("abft.model.checkpoints.save_full_rank", full)
    with pytest.raises(OSError, match="no space"):
        trained.save(folder)
    assert files() == before
    (folder / "classifier.json").unlink()  # as if the process had been killed at first
    (folder / ".weights-1.partial").mkdir()
    monkeypatch.undo()
    for _ in range(3):
        trained.save(folder)
        assert files().keys() == before.keys()
        assert len(list(folder.iterdir())) == 2


def test_scikit_learn_drives_it(new, texts, labels):
    assert clone(new(k=3)).get_params() == new(k=3).get_params()
    assert len(cross_val_score(new(), texts, labels, cv=2)) == 2
    search = GridSearchCV(new(), {"k": [2, 4]}, cv=2).fit(texts, labels)
    assert search.best_params_["k"] in (2, 4)
    steps = [
        ("strip", FunctionTransformer(lambda X: [text.strip() for text in X])),
        ("classify", new()),
    ]
    assert set(Pipeline(steps).fit(texts, labels).predict(texts)) <= {"negative", "positive"}
    calibrated = CalibratedClassifierCV(new(), cv=2).fit(texts, labels)
    np.testing.assert_allclose(calibrated.predict_proba(texts).sum(1), 1)


def test_the_random_state_decides(new, texts, labels):
    def shown(state):
        return new(random_state=state).fit(texts, labels).demonstrations_

    assert shown(1) == shown(1) != shown(2)
    assert shown(np.random.RandomState(1)) == shown(1)


def test_every_one_of_77_classes_is_shown(new, texts):
    labels = [f"c{i % 77}" for i in range(154)]
    classifier = new(steps=1, learning_rate=1e-4).fit([f"good {i}" for i in range(154)], labels)
    assert [len(shown) for shown in classifier.demonstrations_] == [16] * 5  # k stays 16
    assert {label for shown in classifier.demonstrations_ for _, label in shown} == set(labels)
    assert classifier.predict_proba(texts[:3]).shape == (3, 77)
    assert (
        len(
            new(demonstration_sets=3)
            .fit(texts, [f"class {i % 5}" for i in range(40)])
            .demonstrations_
        )
        == 3
    )


def test_demonstrations_are_balanced_and_parts_keep_every_class():
    examples = [Example(f"text {i}", i % 7 if i < 63 else 0) for i in range(90)]
    sets = demonstration_sets(examples, 5, 9, random.Random(0))
    assert all(len(shown) == 5 == len({example.label for example in shown}) for shown in sets)
    counts = Counter(example.label for shown in sets for example in shown)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert (
        len({example.text for shown in sets for example in shown}) == 45
    )  # no text twice while there are others
    rare = [Example("a", 0), Example("b", 0), *(Example(f"c{i}", 1) for i in range(30))]
    for share in (0.1, 0.3, 0.5):
        training, held_out = split_held_out(rare, share, random.Random(1))
        assert {example.label for example in training} == {0, 1}
        assert Counter(training) + Counter(held_out) == Counter(rare)
        assert len(held_out) >= 8


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a", "b"], ["x"], "inconsistent numbers of samples"),
        (["a", None], ["x", "y"], r"X\[1\] is None; expected a text"),
        (["a", float("nan")], ["x", "y"], r"X\[1\] is nan; expected a text"),
        (["a", " "], ["x", "y"], r"X\[1\] is empty"),
        ("a text", ["x"], "X is one text"),
        (np.zeros((3, 2)), ["x", "y", "z"], r"X has shape \(3, 2\)"),
        (["a", "b"], ["x", "x"], "one class only"),
        (["a", "b", "c"], ["x", "x", "y"], r"classes with one text: \['y'\]"),
        (["a", "b"], ["x", 1], "y mixes number, text"),
        (["a", "b"], ["x", None], "y mixes NoneType, text"),
        (["a", "b", "c"], [0.5, 0.1, 0.2], "continuous"),
    ],
)
def test_bad_input(new, X, y, message):
    with pytest.raises(ValueError, match=message):
        new().fit(X, y)


def test_equal_texts_count_once(new, texts, labels, monkeypatch):
    """A held-out text must not be trained on in another spelling."""
    parts = []

    def recorded(*given):
        parts.append(split_held_out(*given))
        return parts[-1]

    monkeypatch.setattr("abft.classifier.estimator.split_held_out", recorded)
    new(steps=1).fit([*texts, *(text.upper() + "!" for text in texts)], [*labels, *labels])
    training, held_out = ({text_key(example.text) for example in part} for part in parts[0])
    assert not training & held_out
    assert len(training) + len(held_out) == len({text_key(text) for text in texts})
    signs = [f"{number} {sign}" for number in range(20) for sign in (":)", ":(")]
    new(steps=1).fit(signs, ["glad", "sad"] * 20)
    assert sum(map(len, parts[1])) == 40  # equal but for signs, which tell the classes apart


def test_contradicting_texts_are_not_held_out_and_trained_on(new, texts, monkeypatch):
    """Of 12 held-out texts 6 were trained on, with the other class."""
    parts = []

    def recorded(*given):
        parts.append(split_held_out(*given))
        return parts[-1]

    monkeypatch.setattr("abft.classifier.estimator.split_held_out", recorded)
    some = texts[:20]
    new(steps=1).fit([*some, *some], ["good", "bad"] * 20)
    new(steps=1).fit([*some, *some], ["good"] * 20 + ["bad"] * 20)
    assert len(parts) == 2
    for training, held_out in parts:
        assert len(held_out) >= 6
        training_texts = {text_key(example.text) for example in training}
        assert not training_texts & {text_key(example.text) for example in held_out}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_fit_leaves_the_classifier_as_it_was(
    new, texts, labels, monkeypatch, tmp_path, error
):
    """Half-trained weights stayed in a classifier that counted as untrained: off by 0.26 after
    saving and loading.
    """

    fresh, fitted = new(steps=4), new(steps=0).fit(texts, labels)
    before = fitted.predict_proba(texts[:5])
    with monkeypatch.context() as patch:
        finish = ABFTTrainer.finish_pseudo_batch

        def interrupted(trainer):
            finish(trainer)
            if trainer.state.global_step == 1:
                raise error

        patch.setattr(ABFTTrainer, "finish_pseudo_batch", interrupted)
        for classifier in (fresh, fitted.set_params(steps=4)):
            with pytest.raises(error):
                classifier.fit(texts, labels)

    with pytest.raises(NotFittedError):
        fresh.predict(texts[:5])
    np.testing.assert_array_equal(fitted.predict_proba(texts[:5]), before)
    fitted.save(tmp_path / "saved")
    after = ABFTClassifier.load(tmp_path / "saved").predict_proba(texts[:5])
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_bad_use(new, trained, texts, labels, tmp_path):
    with pytest.raises(NotFittedError):
        new().predict(["a"])
    with pytest.raises(NotFittedError):
        new().save(tmp_path / "x")
    with pytest.raises(ValueError, match=r"classes that fit has not seen: \['neutral'\]"):
        trained.score(texts[:2], ["positive", "neutral"])
    with pytest.raises(ValueError, match="unknown labels"):
        new(label_words={"nobody": "word"}).fit(texts, labels)
    with pytest.raises(AbftError, match="no model at"):
        new(model="./nowhere").fit(texts, labels)
    for settings, message in (
        ({"objective": "Vote"}, "objective = 'Vote': expected one of vote, contrastive, abft, e2e"),
        ({"objective": "e2e", "cross_entropy": 1.0}, "e2e is nothing but cross-entropy"),
        ({"batch_size": -1}, "batch_size = -1"),
        ({"k": -1}, "k = -1"),
        ({"k": 37}, "40 texts are left for training, prompts of k = 37"),
        ({"k": 0, "steps": 1}, "k = 0: without demonstrations nothing is trained"),
        ({"k": 0, "readout": "attention"}, "'attention' reads the attention on demonstrations"),
        ({"demonstration_sets": 0}, "demonstration_sets = 0"),
        ({"steps": -1}, "steps = -1"),
        ({"steps": "many"}, "steps = 'many'"),
        ({"max_minutes": 0}, "max_minutes = 0"),
        ({"readout": "probes"}, "readout 'probes' is none of .*did you mean 'probe'"),
        ({"held_out": 1.5}, "held_out = 1.5"),
        ({"held_out": None}, "held_out = None"),
        ({"steps": 1.7}, "steps = 1.7"),
        ({"batch_size": 16.0}, "batch_size = 16.0"),
        ({"max_minutes": float("nan")}, "max_minutes = nan"),
        ({"label_words": ["bad", "good"]}, "expected a dictionary"),
        ({"label_words": {"negative": 0}}, "label_words.*= 0: expected a word"),
        ({"k": 1, "cross_entropy": 0, "steps": 1}, "k = 1 shows one"),
        ({"objective": "e2e", "learning_rate": 1e20, "steps": 1}, "probabilities are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            new(**settings).fit(texts, labels)
    with pytest.raises(AbftError, match="device"):
        new(device="tpu").fit(texts, labels)
    with pytest.raises(AbftError, match="no saved classifier"):
        ABFTClassifier.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(AbftError, match="no saved classifier"):
        trained.save(tmp_path)
    folder = tmp_path / "saved"
    trained.save(folder)
    record = json.loads((folder / "classifier.json").read_text())
    for change, message in (
        ({"format": 99}, "newer; update abft"),
        ({"settings": {**record["settings"], "model": str(tmp_path / "gone")}}, "no model at"),
        ({"classes": None, "settings": 3}, "damaged"),
    ):
        (folder / "classifier.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(AbftError, match=message):
            ABFTClassifier.load(folder)


@pytest.mark.parametrize("readout", ["label_words", "attention", "probe", "blend"])
def test_every_readout_predicts_and_is_kept(readout, new, texts, labels, tmp_path):
    fitted = new(readout=readout).fit(texts, labels)
    assert fitted.readout_ == readout
    assert list(fitted.readouts_) == [readout]
    probabilities_NC = fitted.predict_proba(texts)
    np.testing.assert_allclose(probabilities_NC.sum(1), 1)

    fitted.save(tmp_path / "saved")
    loaded = ABFTClassifier.load(tmp_path / "saved")
    assert loaded.readouts_ == fitted.readouts_
    np.testing.assert_allclose(loaded.predict_proba(texts), probabilities_NC, atol=1e-6)


def test_the_best_readout_is_taken(new, texts, labels):
    """The tiny model has no idea of label words; its hidden states tell the texts apart."""
    chosen = new().fit(texts, labels)
    assert list(chosen.readouts_) == ["label_words", "attention", "probe", "blend"]
    assert chosen.readout_ in ("probe", "blend")


def test_of_few_texts_none_is_shown(new, texts, labels):
    assert new().fit(texts[:31], labels[:31]).demonstrations_ == [[]]
    assert len(new().fit(texts[:32], labels[:32]).demonstrations_[0]) == 4
    assert len(new(k=2).fit(texts[:31], labels[:31]).demonstrations_[0]) == 2


def test_every_readout_says_what_it_predicts(new, texts, labels):
    chosen = new().fit(texts, labels)
    by_readout = chosen.readout_probabilities(texts[:5])
    assert list(by_readout) == list(chosen.readouts_)
    best = by_readout[chosen.readout_]
    np.testing.assert_allclose(best, chosen.predict_proba(texts[:5]), atol=1e-6)

    # As if each had been asked for alone; probes of the same strength.
    for name in ("label_words", "attention", "probe"):
        alone = new(readout=name).fit(texts, labels)
        assert alone.readouts_[name] == chosen.readouts_[name]
        expected = alone.predict_proba(texts[:5])
        np.testing.assert_allclose(by_readout[name], expected, atol=1e-6)


def test_without_demonstrations_a_text_is_read_alone(new, texts, labels, tmp_path):
    alone = new(k=0).fit(texts, labels)
    assert alone.demonstrations_ == [[]]
    assert list(alone.readouts_) == ["label_words", "probe", "blend"]
    assert alone._readout.blends["blend"].weights.shape == (2,)

    alone.save(tmp_path / "alone")
    loaded = ABFTClassifier.load(tmp_path / "alone")
    expected = alone.predict_proba(texts[:5])
    np.testing.assert_allclose(loaded.predict_proba(texts[:5]), expected, atol=1e-6)
    (explanation,) = alone.explain(texts[:1])
    assert explanation.demonstrations == ()
    assert explanation.token_shares.sum() == pytest.approx(1)


def test_a_class_that_is_never_predicted_is_named(new, texts):
    """The rare class has texts like all others: predicting it would be a mistake each time."""
    labels = ["rare" if i % 10 == 0 else "common" for i in range(len(texts))]
    with pytest.warns(UserWarning, match=r"for none of the texts .*\['rare'\]; macro-F1 0\.4"):
        fitted = new(readout="label_words").fit(texts, labels)
    assert fitted.readouts_["label_words"]["accuracy"] > 0.85
    assert fitted.readouts_["label_words"]["macro_f1"] < 0.5


def test_training_ends_by_itself_or_with_its_time(new, texts, labels):
    automatic = new(steps="auto", objective="e2e", learning_rate=0.01).fit(texts, labels)
    steps = list(automatic.validation_)
    assert steps[:2] == [0, 4]
    losses = [scores["log_loss"] for scores in automatic.validation_.values()]
    # Ended after three validations without a better one.
    assert steps[-1] == 64 or steps[-1] - steps[losses.index(min(losses))] == 12

    short = new(steps="auto", objective="e2e", learning_rate=0.01, max_minutes=1e-9)
    assert list(short.fit(texts, labels).validation_) == [0, 1]


def test_scikit_learns_own_checks(new):
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(new(), on_fail=None)
    assert {result["check_name"] for result in results if result["status"] == "failed"} == set()
    assert any(result["status"] == "passed" for result in results)


def test_clones_share_one_base_model(new, texts, labels, monkeypatch):
    forget_base_model()
    loaded = []
    real = abft.model.loading.load_model
    monkeypatch.setattr(
        "abft.model.loading.load_model", lambda *a, **k: loaded.append(a) or real(*a, **k)
    )
    plain = new(steps=0)
    assert len(cross_val_score(plain, texts, labels, cv=5)) == 5
    GridSearchCV(plain, {"k": [2, 4]}, cv=2).fit(texts, labels)
    first = plain.fit(texts, labels)
    before = first.predict_proba(texts)

    # One that trains has weights of its own.
    trained = new(steps=4, learning_rate=0.02, readout="attention").fit(texts, labels)
    assert trained.best_step_ > 0
    np.testing.assert_array_equal(first.predict_proba(texts), before)
    assert len(loaded) == 1

    frozen = CalibratedClassifierCV(FrozenEstimator(first)).fit(texts, labels)
    np.testing.assert_allclose(frozen.predict_proba(texts).sum(1), 1)
    forget_base_model()
    new(steps=0).fit(texts, labels)
    assert len(loaded) == 2


def test_a_model_that_is_written_anew_is_loaded_anew(new, texts, labels, model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    first = new(steps=0, model=str(folder)).fit(texts, labels).predict_proba(texts[:4])
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    second = new(steps=0, model=str(folder)).fit(texts, labels).predict_proba(texts[:4])
    assert not np.allclose(first, second)


def test_long_texts_are_cut_with_a_warning(new, texts, labels):
    long = [text if i else "great " * 3000 for i, text in enumerate(texts)]
    with pytest.warns(UserWarning, match="1 texts have more than [0-9]+ tokens"):
        fitted = new(steps=0).fit(long, labels)
    assert fitted.predict_proba(["bad " * 5000]).shape == (1, 2)


def test_sample_weights_count_where_readouts_are_fitted(new, texts, labels):
    """Equal weights change nothing; texts of weight 0 are as if they were not there."""
    plain = new().fit(texts, labels).predict_proba(texts)
    equal = new().fit(texts, labels, sample_weight=[3.0] * len(texts)).predict_proba(texts)
    np.testing.assert_allclose(equal, plain, atol=1e-9)
    part = new().fit(texts[:30], labels[:30]).predict_proba(texts)
    zeros = [1.0] * 30 + [0.0] * (len(texts) - 30)
    np.testing.assert_allclose(
        new().fit(texts, labels, sample_weight=zeros).predict_proba(texts), part, atol=1e-9
    )

    # Texts of one class that count ten times make it more probable.
    tilted = [10.0 if label == "positive" else 1.0 for label in labels]
    for readout in ("probe", "label_words", "blend"):
        before = new(readout=readout).fit(texts, labels)
        after = new(readout=readout).fit(texts, labels, sample_weight=tilted)
        means = [c.predict_proba(texts)[:, 1].mean() for c in (before, after)]
        assert means[1] > means[0] + 0.02


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "shape"),
        ([-1.0] * 40, "at least 0"),
        ([0.0] * 40, "above 0"),
        ([math.nan] * 40, "finite"),
    ],
)
def test_weights_that_mean_nothing_are_refused(new, texts, labels, weights, message):
    with pytest.raises(ValueError, match=message):
        new().fit(texts, labels, sample_weight=weights)


def test_weights_decide_how_often_a_text_is_asked():
    examples = tuple(Example(f"text {i}", i % 2) for i in range(12))
    task = Task("notes", Template("note: {text} kind: {label}\n"), ("a", "b"), ("a", "b"))
    weights = tuple(8.0 if i < 3 else 1.0 for i in range(12))
    data = TaskData(task, examples, examples, examples, weights=weights)
    prompts = training_prompts(data, 4000, 2, seed=0, queries=2)
    asked = Counter(p.text.rsplit("note: ", 1)[1].split(" kind")[0] for p in prompts)
    heavy = sum(asked[f"text {i}"] for i in range(3)) / len(prompts)

    # Two of twelve without repetition: the exact share of the first three.
    first = [w / sum(weights) for w in weights]
    share = 0.0
    for i, p in enumerate(first):
        rest = sum(weights) - weights[i]
        both = [p * weights[j] / rest for j in range(12) if j != i]
        share += (
            sum(
                b * ((i < 3) + (j < 3))
                for b, j in zip(both, [j for j in range(12) if j != i], strict=True)
            )
            / 2
        )
    assert heavy == pytest.approx(share, abs=0.02)

    # Demonstrations do not follow the weights: of the texts that are not asked, all alike. The
    # first three are asked more often, and so shown less often.
    shown = Counter(
        part.split(" kind")[0] for p in prompts for part in p.text.split("note: ")[1:-1]
    )
    light = sum(shown[f"text {i}"] for i in range(3, 12)) / 9
    assert 0.5 * light < shown["text 0"] < 0.95 * light
    for prompt in prompts[:50]:
        query = prompt.text.rsplit("note: ", 1)[1].split(" kind")[0]
        assert prompt.text.count(f"note: {query} ") == 1
    with pytest.raises(AbftError, match="natural"):
        training_prompts(data, 8, 2, seed=0, sampling="balanced")
    left = data.without({text_key("text 0")})
    assert left.weights == weights[1:]


def test_rare_classes_keep_texts_to_fit_on(new, texts):
    """With two texts, and with as many as two sets of demonstrations show."""
    for rare, k in ((2, 4), (4, 8)):
        labels = ["rare"] * rare + ["common"] * (len(texts) - rare)
        fitted = new(k=k, readout="label_words").fit(texts, labels)
        shown = [{text for text, _ in some} for some in fitted.demonstrations_]
        both = set.intersection(*shown)
        assert not both & set(texts[:rare])
        for some in fitted.demonstrations_:  # balanced all the same
            assert sum(name == "rare" for _, name in some) == k // 2

    # One set shows half of them at most.
    labels = ["rare"] * 6 + ["common"] * (len(texts) - 6)
    fitted = new(k=12, demonstration_sets=1, readout="label_words").fit(texts, labels)
    assert len({text for text, name in fitted.demonstrations_[0] if name == "rare"}) == 3


def test_no_set_shows_more_than_half_of_a_class():
    """However many demonstrations there are; the classes stay balanced."""
    examples = [Example(f"text {i}", int(i < 8)) for i in range(60)]
    for count in (1, 2, 3):
        sets = demonstration_sets(examples, 16, count, random.Random(0), spare=True)
        rare = [[e.text for e in shown if e.label] for shown in sets]
        assert [len(texts) for texts in rare] == [8] * count
        assert [len(set(texts)) for texts in rare] == [4] * count
        if count > 1:
            assert not set(rare[0]) & set(rare[1])
    # With enough texts they are those that are drawn without it.
    plain = demonstration_sets(examples[:8] * 4, 4, 3, random.Random(0))
    assert plain == demonstration_sets(examples[:8] * 4, 4, 3, random.Random(0), spare=True)


def test_another_base_model_is_noticed(new, texts, labels, bpe, tmp_path):
    """Also where nothing was trained, from a folder and from a pickle."""
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    bpe.save_pretrained(base)
    fitted = new(model=str(base)).fit(texts, labels)
    fitted.save(tmp_path / "saved")
    kept = pickle.dumps(fitted)
    expected = fitted.predict_proba(texts[:3])
    np.testing.assert_allclose(pickle.loads(kept).predict_proba(texts[:3]), expected, atol=1e-6)

    # A model that cannot be loaded now may be loaded later.
    again = pickle.loads(kept)
    base.rename(tmp_path / "away")
    with pytest.raises(ValueError, match="no model|no such"):
        again.predict(texts[:3])
    (tmp_path / "away").rename(base)
    np.testing.assert_allclose(again.predict_proba(texts[:3]), expected, atol=1e-6)

    # Where it is may have changed too.
    moved = pickle.loads(kept).set_params(model=str(tmp_path / "elsewhere"))
    shutil.copytree(base, tmp_path / "elsewhere")
    np.testing.assert_allclose(moved.predict_proba(texts[:3]), expected, atol=1e-6)

    tiny_model("llama", seed=1).save_pretrained(base)
    with pytest.raises(ValueError, match="fitted with another model"):
        ABFTClassifier.load(tmp_path / "saved")
    with pytest.raises(ValueError, match="fitted with another model"):
        pickle.loads(kept).predict(texts[:3])


def test_settings_of_later_do_not_change_what_was_fitted(new, texts, labels, tmp_path):
    fitted = new().fit(texts, labels)
    expected = fitted.predict_proba(texts[:4])
    fitted.set_params(template="quite: {text} different: {label}\n", k=7)
    fitted.save(tmp_path / "saved")
    for other in (pickle.loads(pickle.dumps(fitted)), ABFTClassifier.load(tmp_path / "saved")):
        np.testing.assert_allclose(other.predict_proba(texts[:4]), expected, atol=1e-6)


def test_numbers_of_numpy_and_paths_are_saved(new, texts, tmp_path, model_folder):
    classes = np.array([1, 5] * (len(texts) // 2))
    words = dict(zip(np.unique(classes), ["bad", "good"], strict=True))
    fitted = new(model=model_folder, label_words=words, k=np.int64(4)).fit(texts, classes)
    fitted.save(tmp_path / "saved")
    loaded = ABFTClassifier.load(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(
        loaded.predict_proba(texts[:3]), fitted.predict_proba(texts[:3]), atol=1e-6
    )
    # An empty class has a word that is none.
    odd = ["", "x"] * (len(texts) // 2)
    assert set(new(label_words={"": "none"}).fit(texts, odd).predict(texts[:3])) <= {"", "x"}


def test_texts_are_read_in_parts(new, texts, labels, monkeypatch):
    fitted = new().fit(texts, labels)
    expected = fitted.predict_proba(texts[:5])
    explained = fitted.explain(texts[:5])
    monkeypatch.setattr("abft.classifier.estimator.PART", 2)
    np.testing.assert_allclose(fitted.predict_proba(texts[:5]), expected, atol=1e-6)
    every = fitted.readout_probabilities(texts[:5])
    np.testing.assert_allclose(every[fitted.readout_], expected, atol=1e-6)
    assert [each.label for each in fitted.explain(texts[:5])] == [e.label for e in explained]
    assert fitted.predict_proba([]).shape == (0, 2)
    assert fitted.explain([]) == []


def test_threads_that_share_a_model_get_their_own_answers(new, texts, labels):
    fitted = new().fit(texts, labels)
    expected = [fitted.predict_proba([text])[0] for text in texts[:6]]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: fitted.predict_proba([text])[0], texts[:6] * 3))
    for row, right in zip(rows, expected * 3, strict=True):
        np.testing.assert_allclose(row, right, atol=1e-6)


def test_the_scale_of_weights_does_not_matter(review_data):
    """Not even where u^(1 / w) would be 0."""
    data = [
        replace(review_data, weights=tuple([weight] * len(review_data.train)))
        for weight in (1.0, 1e-8, 1e12)
    ]
    prompts = [training_prompts(each, 24, 3, seed=0) for each in data]
    assert prompts[0] == prompts[1] == prompts[2]


def test_every_class_is_held_out_where_there_is_room():
    for counts in ([400, *[2] * 19], [200] * 4 + [3] * 10):
        examples = [Example(f"{c} {i}", c) for c, n in enumerate(counts) for i in range(n)]
        _, held_out = split_held_out(examples, 0.2, random.Random(0))
        assert {example.label for example in held_out} == set(range(len(counts)))


def test_one_text_is_no_list(new, texts, labels):
    fitted = new(readout="label_words").fit(texts, labels)
    with pytest.raises(AbftError, match="got one text"):
        fitted._predictors[0].predict("good")
    for changes in ({"demonstration_sets": "auto"}, {"batch_size": None}, {"steps": None}):
        with pytest.raises(ValueError, match="expected a whole number"):
            new(**changes).fit(texts, labels)


def test_read_outs_are_fitted_on_texts_that_a_set_does_not_show(new, texts, labels, monkeypatch):
    """Their labels would be copied."""
    seen, real = [], abft.classifier.estimator.fit_readout

    def fit_readout(readings, *others):
        seen.append(readings)
        return real(readings, *others)

    monkeypatch.setattr("abft.classifier.estimator.fit_readout", fit_readout)
    shown = [{text for text, _ in each} for each in new().fit(texts, labels).demonstrations_]
    in_all = set.intersection(*shown)
    unknown = (~seen[0].known).sum(1).tolist()
    assert unknown == [len(each - in_all) for each in shown]
    assert max(unknown) > 0


def test_a_training_is_judged_on_texts_that_it_was_not_fitted_on(new, texts, labels, monkeypatch):
    judged, real = [], abft.classifier.estimator.fit_readout

    def fit_readout(readings, labels_N, classes, names, folds, *others):
        judged.append(folds)
        return real(readings, labels_N, classes, names, folds, *others)

    monkeypatch.setattr("abft.classifier.estimator.fit_readout", fit_readout)
    fitted = new(steps=2).fit(texts, labels)
    ((fitted_on, scored),) = judged[0]
    assert not set(fitted_on) & set(scored)
    assert len(scored) == 8
    shown = {text for each in fitted.demonstrations_ for text, _ in each}
    assert len(shown) <= 32


def test_sample_weights_decide_what_training_asks(new, texts, labels, monkeypatch):
    """Of equal texts the first weight counts."""
    seen = []

    def run(self, model, tokenizer, data, validate):
        seen.append(data)
        return 0, {0: (0.0, 0.5)}

    monkeypatch.setattr("abft.classifier.estimator.Training.run", run)
    weight = {text: 1.0 + i for i, text in enumerate(texts)}
    twice = ([*texts, texts[0]], [*labels, labels[0]], [*weight.values(), 99.0])
    new(steps=1).fit(*twice)
    (data,) = seen
    assert data.weights == tuple(weight[example.text] for example in data.train)


def test_few_texts_of_many_classes_are_trained_on_with_fewer_demonstrations(new):
    """Of 16 texts 8 are held out, and a prompt has 4 queries."""
    texts = [f"good {'abcdef'[i % 6]} {i}" for i in range(16)]
    fitted = new(steps=1, learning_rate=1e-4).fit(texts, [f"class{i % 6}" for i in range(16)])
    assert {len(shown) for shown in fitted.demonstrations_} == {4}
