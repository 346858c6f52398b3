"""Explanations say where the heads looked, in the attention rows' own numbers."""

import json

import numpy as np
import pytest

from abft import ABFTClassifier
from abft.model.loading import load_model
from abft.runs.predictor import Predictor
from abft.scoring.inspect import attention_rows, induction_heads
from command_line import invoke, refused
from tiny import tiny_model

EMOJI = "fine 👩‍🔬 naïve"  # characters of several tokens each


@pytest.fixture(scope="module")
def predictor(review_data, model_folder):
    model, tokenizer = load_model(str(model_folder), device="cpu")
    return Predictor(model, tokenizer, review_data.task, review_data.train[:4])


def test_shares_are_those_of_the_rows(predictor, review_data):
    texts = [example.text for example in review_data.train[4:7]]
    explanations = predictor.explain(texts)
    probabilities = predictor.probabilities(texts)
    _, observer = predictor.observe(texts)
    for explanation, row, prompt in zip(explanations, probabilities, observer.prompts, strict=True):
        assert list(explanation.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-6)
        assert explanation.label == review_data.task.labels[row.argmax()]

        rows = attention_rows(predictor.model, [prompt.input_ids])
        n = len(prompt.input_ids)
        mask = induction_heads(rows, [prompt.label_positions], [n]).mask_LBH[:, 0].numpy()
        assert explanation.heads == mask.sum()
        on_labels = rows[:, 0, :, list(prompt.label_positions)].numpy()
        summed = on_labels[mask].sum(0) if mask.any() else on_labels.sum((0, 1))
        np.testing.assert_allclose(explanation.shares, summed / summed.sum(), rtol=1e-4)

        shown = [(e.text, review_data.task.labels[e.label]) for e in review_data.train[:4]]
        assert list(explanation.demonstrations) == shown
        assert "".join(explanation.tokens) == explanation.text
        assert explanation.token_shares.sum() == pytest.approx(1)

        # The mean over all heads, on each token of the text.
        written = predictor.prompt(explanation.text)
        start = written.rindex(explanation.text)
        end = start + len(explanation.text)
        offsets = predictor.tokenizer(written, return_offsets_mapping=True)["offset_mapping"][:n]
        inside = [i for i, (a, b) in enumerate(offsets) if max(a, start) < min(b, end)]
        expected = rows[:, 0].mean((0, 1)).numpy()[inside]
        expected = expected / expected.sum()
        np.testing.assert_allclose(explanation.token_shares, expected, rtol=1e-4)


def test_characters_of_several_tokens_are_shown_once(predictor):
    (explanation,) = predictor.explain([EMOJI])
    assert "".join(explanation.tokens) == EMOJI
    assert explanation.token_shares.sum() == pytest.approx(1)


def test_a_text_that_follows_it_too(predictor, review_data):
    """A text that is also what the template says after it."""
    after = review_data.task.template.pattern.split("{text}")[1].split("{label}")[0].strip()
    for text in (after, after.rstrip(":")):
        (explanation,) = predictor.explain([text])
        assert "".join(explanation.tokens) == text


def test_long_texts_are_explained_as_far_as_they_are_read(predictor, review_data):
    """The beginning of a text that is cut, with the shares of its own tokens."""
    short = Predictor(
        predictor.model,
        predictor.tokenizer,
        review_data.task,
        predictor.demonstrations,
        max_text_tokens=6,
    )
    long = "good and great and bad and poor and sad and great again"
    (explanation,) = short.explain([long])
    (read,) = short.fit([long])
    assert read != long
    (expected,) = predictor.explain([read])
    assert explanation.text == read
    assert explanation.tokens == expected.tokens
    np.testing.assert_allclose(explanation.token_shares, expected.token_shares, rtol=1e-4)


def test_a_text_that_a_demonstration_repeats(predictor, review_data):
    (explanation,) = predictor.explain([review_data.train[0].text])
    assert "".join(explanation.tokens) == review_data.train[0].text


def test_without_demonstrations_there_are_tokens_alone(predictor, review_data):
    bare = Predictor(predictor.model, predictor.tokenizer, review_data.task, [])
    (explanation,) = bare.explain(["good"])
    assert explanation.demonstrations == ()
    assert explanation.shares.shape == (0,)
    assert explanation.token_shares.sum() == pytest.approx(1)


def test_a_classifier_explains_what_it_predicts(review_data, model_folder):
    texts = [example.text for example in review_data.train[:40]]
    labels = [example.label for example in review_data.train[:40]]
    classifier = ABFTClassifier(
        str(model_folder), device="cpu", steps=0, random_state=0, progress=False
    ).fit(texts, labels)
    explanations = classifier.explain(texts[:3])
    rows = classifier.predict_proba(texts[:3])
    for explanation, row in zip(explanations, rows, strict=True):
        assert list(explanation.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-6)
        assert explanation.label == str(classifier.classes_[row.argmax()])
        assert len(explanation.demonstrations) == len(explanation.shares) == 8
        assert explanation.shares.sum() == pytest.approx(1)
        assert explanation.record()["demonstrations"][0]["text"] in texts


def test_explained_attention_is_that_which_is_read(review_data, model_folder):
    """Read from attention, all heads count, and the shares of a class sum to its probability."""
    texts = [example.text for example in review_data.train[:40]]
    labels = [str(example.label) for example in review_data.train[:40]]
    classifier = ABFTClassifier(
        str(model_folder), device="cpu", readout="attention", random_state=0, progress=False
    ).fit(texts, labels)
    readings = classifier._read(texts[:3], ["attention"])
    explanations = classifier.explain(texts[:3])
    for n, explanation in enumerate(explanations):
        assert explanation.heads == 8
        for c, label in enumerate(classifier.classes_):
            of_class = [shown == label for _, shown in explanation.demonstrations]
            read = readings.attention[:, n, c].mean()
            assert explanation.shares[of_class].sum() == pytest.approx(read, abs=1e-5)

    # Behind each set, in its order.
    by_set = [p.explain(texts[:1])[0] for p in classifier._opened()]
    shown = [pair for each in by_set for pair in each.demonstrations]
    assert list(explanations[0].demonstrations) == shown
    tokens = np.mean([each.token_shares for each in by_set], axis=0)
    np.testing.assert_allclose(explanations[0].token_shares, tokens, rtol=1e-4)


def test_the_command_line_explains(finished, tmp_path):
    text = "<script>alert(1)</script> & good"
    given = ("predict", "--run", finished, "--text", text, "--explain")
    printed = invoke(*given).stdout
    assert "tokens looked at most" in printed
    assert "demonstration" in printed

    (record,) = map(json.loads, invoke(*given, "--json").stdout.splitlines())
    assert record["text"] == text
    assert sum(each["share"] for each in record["demonstrations"]) == pytest.approx(1, abs=1e-3)
    label = json.loads(invoke(*given[:-1], "--json").stdout.splitlines()[0])["label"]
    assert record["label"] == label

    assert invoke(*given, "--output", tmp_path / "why.jsonl").exit_code == 0
    assert json.loads((tmp_path / "why.jsonl").read_text(encoding="utf-8")) == record
    assert invoke(*given, "--output", tmp_path / "why.html").exit_code == 0
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "default-src 'none'" in page

    assert "expected a file ending in .jsonl, .html" in refused(*given, "--output", "a.csv")
    assert "expected a file ending in .csv" in refused(*given[:-1], "--output", "a.html")


def test_tokens_of_the_staicc_style_are_those_of_its_rows(review_data, bpe):
    """Its prompts end in a space, which this tokenizer gives no characters: it is read too."""
    predictor = Predictor(
        tiny_model("llama"), bpe, review_data.task, review_data.train[:4], prompt_style="staicc"
    )
    (explanation,) = predictor.explain(["a film to remember"])
    _, observer = predictor.observe(["a film to remember"])
    (prompt,) = observer.prompts
    rows_S = attention_rows(predictor.model, [prompt.input_ids])[:, 0].mean((0, 1)).numpy()
    written = predictor.prompt("a film to remember")
    offsets = bpe(written, return_offsets_mapping=True)["offset_mapping"]
    start = written.rindex("a film to remember")
    end = start + len("a film to remember")
    inside = [i for i, (a, b) in enumerate(offsets) if max(a, start) < min(b, end)]
    expected = rows_S[inside] / rows_S[inside].sum()
    np.testing.assert_allclose(explanation.token_shares, expected, rtol=1e-4)
    assert offsets[-1][0] == offsets[-1][1]
