"""What is read of a query next to its label probabilities: hidden states and attention rows."""

import numpy as np
import pytest
import torch

from abft.data.encoding import EncodedPrompt
from abft.model.loading import load_model
from abft.runs.predictor import Predictor
from abft.scoring import scorer
from abft.scoring.inspect import attention_rows
from abft.scoring.observer import Observer, query_start
from abft.scoring.scorer import LabelScorer
from tiny import tiny_model

LENGTHS = (30, 24, 27)
START = 20  # tokens that all prompts begin with


def prompts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(3, 600, (START,), generator=generator).tolist()
    return [
        EncodedPrompt(
            tuple(shared + torch.randint(3, 600, (n - START,), generator=generator).tolist()),
            (7, START - 1),
            (0, 1),
            0,
        )
        for n in LENGTHS
    ]


# Packed after kept keys and values, plain, eager attention.
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("labels", [[5, 6], [(5, 9), (5, 8), 7]], ids=["one token", "several"])
def test_an_observer_sees_the_states_and_rows_of_one_prompt_alone(family, labels):
    model = tiny_model(family)
    encoded = prompts()
    observer = Observer(encoded, layers=(0, 1, 2), look=lambda prompt, rows: rows.numpy())
    scorer = LabelScorer(model, labels)
    probabilities = scorer.observe(observer, shared=START, batch_size=2)
    np.testing.assert_allclose(probabilities, scorer(encoded), rtol=0, atol=1e-5)

    for i, prompt in enumerate(encoded):
        ids = torch.tensor([prompt.input_ids])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in range(3):
            mean, last = states[layer][0, START:].mean(0), states[layer][0, -1]
            np.testing.assert_allclose(observer.hidden[i, 0, layer], mean, rtol=0, atol=2e-5)
            np.testing.assert_allclose(observer.hidden[i, 1, layer], last, rtol=0, atol=2e-5)

        rows = attention_rows(model, [prompt.input_ids])[:, 0]
        np.testing.assert_allclose(observer.looks[i], rows, rtol=0, atol=2e-6)


def test_nothing_is_run_twice_where_nothing_is_asked(monkeypatch):
    model = tiny_model("gemma2")
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    scorer = LabelScorer(model, [5, 6])
    calls.clear()
    scorer(prompts())
    assert len(calls) == 1


def test_the_query_begins_after_the_last_label():
    (prompt, *_) = prompts()
    assert query_start(prompt) == START
    assert query_start(EncodedPrompt((1, 2, 3), (), (), 0)) == 0
    # The last label has three tokens, of which heads look at the first.
    longer = EncodedPrompt(tuple(range(9)), (1, 3), (0, 1), 0, label_words=((3, 6),))
    assert query_start(longer) == 6


def test_prompts_without_a_common_beginning_are_run_once(review_data, model_folder, monkeypatch):
    """Labels of one token: the pass that shows hidden states also scores."""
    model, tokenizer = load_model(str(model_folder), device="cpu")
    predictor = Predictor(model, tokenizer, review_data.task, [])
    texts = [example.text for example in review_data.train[:6]]
    plain = predictor.probabilities(texts)

    passes = []
    monkeypatch.setattr(scorer, "last_hidden", lambda *args: passes.append(args))
    probabilities, observer = predictor.observe(texts, layers=[0, 1])
    assert not passes
    assert observer.hidden.shape[:3] == (6, 2, 2)
    np.testing.assert_allclose(probabilities, plain, atol=1e-6)
