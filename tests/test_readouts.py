"""What predictions are read from: probes, blends, and the choice between them."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax as scipy_log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from abft.data.splits import text_key
from abft.readouts.blend import Blend
from abft.readouts.fitted import (
    READOUTS,
    FittedReadout,
    _best,
    _cross_fitted,
    _cross_validated,
    fit_readout,
    stratified_folds,
)
from abft.readouts.probe import STRENGTHS, Probe, log_loss, log_softmax
from abft.readouts.readings import LAST_DEPTHS, MEAN_DEPTHS, Readings, read_texts
from abft.runs.predictor import Predictor
from abft.scoring.inspect import attention_rows
from abft.scoring.observer import query_start
from tiny import tiny_model

S, N, V, D = 2, 60, 3, 5


def readings(classes, seed=0, signal=1.0, words=0.0):
    """Hidden states, and label words, that tell the classes apart as much as asked for."""
    random = np.random.default_rng(seed)
    labels_N = random.permutation(np.arange(N) % classes)
    means_CD = random.normal(size=(classes, D)) * signal
    views = random.normal(size=(S, N, V, D)) + means_CD[labels_N][None, :, None]
    logits = random.normal(size=(S, N, classes))
    logits[:, np.arange(N), labels_N] += words
    shares = np.exp(log_softmax(logits))
    votes = np.exp(log_softmax(random.normal(size=(S, N, classes))))
    known = np.ones((S, N), bool)
    return Readings(shares, votes, views.astype(np.float32), known, 4), labels_N


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_the_mean_of_scikit_learns_regressions(classes):
    given, labels_N = readings(classes)
    views_NVD = given.views[0]
    probe = Probe.fit(views_NVD, labels_N, classes, 0.3)
    each = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=100, tol=1e-3))
        .fit(views_NVD[:, v], labels_N)
        .predict_log_proba(views_NVD[:, v])
        for v in range(V)
    ]
    expected = scipy_log_softmax(np.mean(each, axis=0), axis=1)
    np.testing.assert_allclose(probe.log_probabilities(views_NVD), expected, rtol=0, atol=1e-4)


def test_a_class_without_texts_is_improbable_and_the_rest_as_without_it():
    given, labels_N = readings(2)
    views_NVD = given.views[0]
    two = Probe.fit(views_NVD, labels_N, 2, 0.3).log_probabilities(views_NVD)
    three = Probe.fit(views_NVD, 2 * labels_N, 3, 0.3).log_probabilities(views_NVD)
    assert three[:, 1].max() < np.log(0.02)
    np.testing.assert_array_equal(2 * two.argmax(1), three.argmax(1))

    alone = Probe.fit(views_NVD, np.ones(N, int), 3, 0.3).log_probabilities(views_NVD)
    assert (alone.argmax(1) == 1).all()


def test_a_blend_is_the_minimum_of_what_it_says():
    given, labels_N = readings(3, words=1.0)
    sources = ("label_words", "attention")
    log_NRC = np.stack([given.log_probabilities(source) for source in sources], axis=1)
    blend = Blend.fit(log_NRC, labels_N)

    def total(weights_R, bias_C):
        log_NC = scipy_log_softmax((log_NRC * weights_R[:, None]).sum(1) + bias_C, axis=1)
        distance = ((weights_R - 1 / 2) ** 2).sum() + (bias_C**2).sum()
        return -log_NC[np.arange(N), labels_N].sum() + distance / 2

    least = total(blend.weights, blend.bias)
    for i in range(2):
        for step in (-0.02, 0.02):
            assert total(blend.weights + step * np.eye(2)[i], blend.bias) > least
    for c in range(3):
        for step in (-0.02, 0.02):
            assert total(blend.weights, blend.bias + step * np.eye(3)[c]) > least

    # Noise counts little; the source that knows counts more.
    assert blend.weights[0] > 0.5 > abs(blend.weights[1])


def test_few_texts_leave_a_blend_near_the_mean():
    given, labels_N = readings(2, words=1.0)
    log_NRC = np.stack([given.log_probabilities("label_words")] * 2, axis=1)
    blend = Blend.fit(log_NRC[:1], labels_N[:1])
    np.testing.assert_allclose(blend.weights, 0.5, atol=0.5)


@pytest.mark.parametrize(
    ("signal", "words", "good"),
    [(2.0, 0.0, {"probe", "blend"}), (0.0, 4.0, {"label_words", "blend"})],
)
def test_what_knows_the_classes_is_chosen(signal, words, good):
    given, labels_N = readings(3, signal=signal, words=words)
    fitted = fit_readout(given, labels_N, 3, list(READOUTS), stratified_folds(labels_N, 0), 0)
    assert set(fitted.scores) == set(READOUTS)
    assert fitted.name in good

    fresh, labels_fresh = given, labels_N
    probabilities_NC = fitted.probabilities(fresh)
    np.testing.assert_allclose(probabilities_NC.sum(1), 1)
    assert (probabilities_NC.argmax(1) == labels_fresh).mean() > 0.8


def test_the_blend_stays_unless_another_is_better_than_luck():
    """Log losses of 100 texts that differ by 0.01 (a), 0.3 (b) and noise of about 0.5."""
    random = np.random.default_rng(0)
    labels_N = random.integers(2, size=100)
    rows = np.arange(100)

    def log_probabilities(gain):
        correct_N = 1 / (1 + np.exp(-random.normal(gain, 1, size=100)))
        log_NC = np.log(np.stack([1 - correct_N, 1 - correct_N], axis=1))
        log_NC[rows, labels_N] = np.log(correct_N)
        return log_NC

    blend = log_probabilities(0.0)
    slightly, clearly = blend.copy(), blend.copy()
    slightly[rows, labels_N] += random.normal(0, 0.5, size=100)
    slightly[rows, labels_N] += 0.01 - (slightly - blend)[rows, labels_N].mean()
    clearly[rows, labels_N] += 0.3
    for other, best in ((slightly, "blend"), (clearly, "probe")):
        held_out = {"probe": other, "blend": blend}
        scores = {name: {"log_loss": log_loss(each, labels_N)} for name, each in held_out.items()}
        assert scores["probe"]["log_loss"] < scores["blend"]["log_loss"]
        assert _best(held_out, scores, labels_N) == best


def test_noise_scores_no_better_than_chance():
    """A score on texts that were fitted on would be far better: 75 numbers know 60 texts."""
    losses = []
    for seed in range(4):
        given, labels_N = readings(2, seed, signal=0.0)
        fitted = fit_readout(
            given, labels_N, 2, list(READOUTS), stratified_folds(labels_N, seed), seed
        )
        losses.append(fitted.log_loss)
        in_sample = log_loss(np.log(fitted.probabilities(given)), labels_N)
        assert in_sample < fitted.log_loss + 0.02
    assert np.mean(losses) > 0.66


def test_a_set_says_nothing_of_the_texts_that_it_shows():
    given, labels_N = readings(2)
    known = given.known.copy()
    known[0, :5] = False
    folds = stratified_folds(labels_N, 0)

    def fitted(views, words, votes):
        return fit_readout(
            Readings(words, votes, views, known, 4), labels_N, 2, list(READOUTS), folds, 0
        )

    plain = fitted(given.views, given.label_words, given.attention)
    views, words, votes = (
        each.copy() for each in (given.views, given.label_words, given.attention)
    )
    views[0, :5], words[0, :5], votes[0, :5] = 1e6, 0.9, 0.9
    changed = fitted(views, words, votes)
    assert plain.scores == changed.scores
    np.testing.assert_array_equal(plain.blends["blend"].weights, changed.blends["blend"].weights)


def test_probes_of_a_fold_never_see_its_labels():
    given, labels_N = readings(2)
    folds = stratified_folds(labels_N, 0)
    _, held_out = folds[0]
    flipped = labels_N.copy()
    flipped[held_out] = 1 - flipped[held_out]
    before = _cross_fitted(given, labels_N, np.ones(N), 2, 0.3, folds)
    after = _cross_fitted(given, flipped, np.ones(N), 2, 0.3, folds)
    np.testing.assert_array_equal(before[held_out], after[held_out])
    others = np.setdiff1d(np.arange(N), held_out)
    assert np.abs(before[others] - after[others]).max() > 0.01


def test_saved_numbers_predict_the_same(tmp_path):
    given, labels_N = readings(3)
    fitted = fit_readout(
        given, labels_N, 3, ["label_words", "blend"], stratified_folds(labels_N, 0), 0
    )
    fitted.save(tmp_path)
    loaded = FittedReadout.load(tmp_path, fitted.name, fitted.scores)
    np.testing.assert_array_equal(loaded.probabilities(given), fitted.probabilities(given))


def test_texts_are_read_as_the_model_sees_them(review_data, bpe):
    model, tokenizer = tiny_model("llama", num_hidden_layers=6), bpe
    task, pool = review_data.task, review_data.train
    sets = [list(pool[:3]), list(pool[3:6])]
    predictors = [Predictor(model, tokenizer, task, shown) for shown in sets]
    texts = [example.text for example in pool[:8]]
    shown = [{text_key(example.text) for example in each} for each in sets]
    read = read_texts(predictors, texts, shown=shown)

    assert read.views.shape[:2] == (2, 8)
    assert read.known[0].tolist() == [False] * 3 + [True] * 5
    assert read.known[1].tolist() == [True] * 3 + [False] * 3 + [True] * 2
    for s, predictor in enumerate(predictors):
        np.testing.assert_allclose(read.label_words[s], predictor.probabilities(texts), atol=1e-6)

    # Hidden states: means over the query's tokens, and the last token, at several depths.
    _, observer = predictors[0].observe(texts[6:7])
    (prompt,) = observer.prompts
    with torch.no_grad():
        states = model(torch.tensor([prompt.input_ids]), output_hidden_states=True).hidden_states
    own = query_start(prompt)
    expected = [states[round(share * 6)][0, own:].mean(0) for share in MEAN_DEPTHS]
    expected += [states[round(share * 6)][0, -1] for share in LAST_DEPTHS]
    np.testing.assert_allclose(read.views[0, 6], torch.stack(expected), atol=2e-5)

    # All heads' attention on the labels of a prompt, by class.
    rows = attention_rows(model, [prompt.input_ids])[:, 0].sum((0, 1)).numpy()
    by_class = np.zeros(len(task.labels))
    for at, label in zip(prompt.label_positions, prompt.label_classes, strict=True):
        by_class[label] += rows[at]
    np.testing.assert_allclose(read.attention[0, 6], by_class / by_class.sum(), rtol=1e-4)


def test_fewer_texts_than_folds_of_a_class():
    labels_N = np.arange(6)
    folds = stratified_folds(labels_N, 0)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(6))


def test_the_strength_of_a_probe_is_that_of_the_least_loss():
    chosen = set()
    for signal in (0.0, 2.0):
        given, labels_N = readings(3, signal=signal)
        folds = stratified_folds(labels_N, 0)
        losses = {
            strength: log_loss(
                _cross_fitted(given, labels_N, np.ones(N), 3, strength, folds), labels_N
            )
            for strength in STRENGTHS
        }
        best = min(losses, key=losses.get)
        chosen.add(best)
        fitted = fit_readout(given, labels_N, 3, ["probe"], folds, 0)
        expected = Probe.fit(given.views[0], labels_N, 3, best, np.ones(N))
        np.testing.assert_allclose(fitted.probes[0].weight, expected.weight)
    assert len(chosen) > 1


def test_a_blend_is_scored_on_texts_that_it_was_not_fitted_on():
    """Five folds of 60 texts, three of 300; each text's weight counts where it is fitted on."""
    for texts, folds in ((60, 5), (300, 3)):
        generator = np.random.default_rng(texts)
        labels_N = generator.permutation(np.arange(texts) % 2)
        log_NRC = log_softmax(generator.normal(size=(texts, 2, 2)))
        weights_N = generator.uniform(0.5, 1.5, size=texts)
        parts = stratified_folds(labels_N, 7)
        assert len(parts) == folds
        found = _cross_validated(log_NRC, labels_N, weights_N, 7)
        for fitted, held_out in parts:
            assert not set(fitted) & set(held_out)
            blend = Blend.fit(log_NRC[fitted], labels_N[fitted], weights_N[fitted])
            np.testing.assert_allclose(found[held_out], blend.log_probabilities(log_NRC[held_out]))
