"""The scorer, prompt by prompt against stock models: prompts that begin alike, tokens kept from
earlier calls, and what is run at all.
"""

import random
import warnings

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from abft.data.encoding import EncodedPrompt
from abft.errors import AbftError
from abft.model.cache import cache_arguments
from abft.model.capabilities import capabilities
from abft.scoring.evaluate import bucketed, evaluate
from abft.scoring.label_tree import LabelTree
from abft.scoring.scorer import MIN_SHARED_TOKENS, LabelScorer, common_prefix, label_probabilities
from test_predict import LONG_LABELS, chain_rule, count_tokens, full_model_probabilities
from tiny import tiny_model

WORDS = [3, 4, 300]


def tokens(count, seed):
    return tuple(random.Random(seed).choices(range(5, 700), k=count))


def encoded(*ids):
    return [EncodedPrompt(each, (), (), 0) for each in ids]


def after(start, *lengths):
    """Prompts that begin with `start`, followed by so many tokens of their own."""
    return encoded(*(start + tokens(length, seed) for seed, length in enumerate(lengths, 100)))


def counted(model):
    """A list that gets the number of tokens of every later call, without the model's probes."""
    assert capabilities(model).keeps_prefix
    LabelScorer(model, WORDS)
    return count_tokens(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_that_begins_another_is_scored_as_alone(family):
    """Also where it is all that the prompts share, so that only its last token is its own."""
    model, start = tiny_model(family), tokens(40, 0)
    prompts = encoded((*start, 9, 8), start, (*start, 9), (*start, 7), start)
    assert common_prefix(prompts) == 39
    expected = full_model_probabilities(model, prompts, WORDS)
    assert np.ptp(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(LabelScorer(model, WORDS)(prompts), expected, atol=1e-5)
    by_labels = chain_rule(model, prompts, LONG_LABELS)
    np.testing.assert_allclose(LabelScorer(model, LONG_LABELS)(prompts), by_labels, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_a_cache_is_given_by_the_name_that_the_model_knows(family):
    """transformers renames the argument family by family, and warns of the old name."""
    prompts = after(tokens(40, 0), 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelScorer(tiny_model(family), WORDS)(prompts)


def test_a_cache_has_one_of_two_names():
    class New(torch.nn.Module):
        def forward(self, input_ids, cache=None, use_cache=None): ...

    class Old(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None, use_cache=None): ...

    cache = DynamicCache()
    assert cache_arguments(New(), cache) == {"cache": cache, "use_cache": True}
    assert cache_arguments(Old(), cache) == {"past_key_values": cache, "use_cache": True}


def test_the_common_prefix_leaves_a_token_to_every_prompt():
    generator = random.Random(0)
    lengths = set()
    for _ in range(300):
        some = [tuple(generator.choices((5, 6), k=generator.randint(1, 6))) for _ in range(3)]
        for ids in (some, some[:2], some[:1], [some[0], some[0]]):
            alike = [n for n in range(min(map(len, ids))) if len({each[:n] for each in ids}) == 1]
            expected = max(alike)
            assert common_prefix(encoded(*ids)) == expected
            lengths.add(expected)
    assert lengths == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tokens_kept_from_another_beginning_are_not_used(family):
    """One scorer, call after call, gives what every prompt alone gives."""
    model, start = tiny_model(family), tokens(44, 0)
    changed = (*start[:20], 4, *start[21:])  # tokens() draws no 4
    score = LabelScorer(model, WORDS)
    calls = [
        (after(start, 3, 9), 44),
        (after(changed, 3, 9), 44),  # as long, and begins with the same tokens
        (after(start, 3, 9), 44),
        (after(start, 2), 30),  # fewer tokens of the same beginning
        (after(start, 2, 5), 38),  # more of them
        (after(start[:30] + changed[:10], 4, 1), 38),  # as many, but others
        (after(tokens(44, 1), 3), 44),
        (after(start, 3, 9, 2), None),
    ]
    seen = []
    for prompts, shared in calls:
        expected = full_model_probabilities(model, prompts, WORDS)
        np.testing.assert_allclose(score(prompts, shared=shared), expected, atol=1e-5)
        seen.append(expected[0])
    assert np.abs(seen[0] - seen[1]).max() > 1e-3  # the one changed token matters
    assert np.array_equal(seen[0], seen[2])


def test_only_beginnings_that_pay_are_kept():
    """At least 16 tokens, and a quarter of the longest prompt."""
    model = tiny_model("llama")
    counts = counted(model)

    def run(shared, *lengths):
        counts.clear()
        LabelScorer(model, WORDS)(after(tokens(shared, 0), *lengths), shared=shared)
        return counts[:]

    least = MIN_SHARED_TOKENS
    assert run(least, 2, 5) == [least, 2 + 5]
    assert run(least - 1, 2, 5) == [2 * (least - 1 + 5)]  # padded
    assert run(25, 75, 5) == [25, 75 + 5]
    assert run(24, 76, 5) == [2 * 100]

    # A single prompt shares nothing, unless the caller knows that later ones will.
    counts.clear()
    LabelScorer(model, WORDS)(after(tokens(40, 0), 5))
    assert counts == [45]
    assert run(40, 5) == [40, 5]


def test_a_pack_holds_prompts_whole(monkeypatch):
    """The beginnings of labels follow their prompt in one pack, and none of its tokens twice."""
    model = tiny_model("llama")
    assert LabelTree.of(LONG_LABELS).beginnings == ((), (40,), (55,), (300,), (300, 20))
    counts = counted(model)
    prompts = after(tokens(30, 0), 12, 12, 12, 12)
    longest = 12 + 2 + 5  # what the packs are sized by
    for packs in (1, 2, 4):
        monkeypatch.setattr("abft.scoring.scorer.PACK_TOKENS", longest * 4 // packs)
        counts.clear()
        measured = LabelScorer(model, LONG_LABELS)(prompts, shared=30)
        assert counts == [30, *[4 // packs * (12 + 4)] * packs]
        np.testing.assert_allclose(measured, chain_rule(model, prompts, LONG_LABELS), rtol=1e-3)


LABELS_THAT_BEGIN_OTHERS = [(7,), (7, 9), (30, 9), (7, 9, 12), (7, 12)]


def test_labels_that_begin_other_labels_follow_the_chain_rule():
    tree = LabelTree.of([7, (7, 9), (30, 9), (7, 9, 12), (7, 12)])
    assert tree.labels == tuple(LABELS_THAT_BEGIN_OTHERS)
    assert tree.beginnings == ((), (7,), (7, 9), (30,))
    model = tiny_model("llama")
    prompts = after(tokens(30, 0), 4, 9, 1)
    expected = chain_rule(model, prompts, LABELS_THAT_BEGIN_OTHERS)
    assert (np.ptp(expected[:, 1:], axis=0) > 0.05 * expected[:, 1:].mean(0)).all()
    for measured in (
        label_probabilities(model, prompts, tree.labels),
        label_probabilities(model, [prompts[1]], tree.labels),
        evaluate(model, with_candidates(prompts), tree.labels, batch_size=2)[0][[1]],
    ):
        rows = expected if len(measured) == 3 else expected[[1]]
        np.testing.assert_allclose(measured, rows, rtol=1e-3)


def with_candidates(prompts):
    return [EncodedPrompt(prompt.input_ids, (3, 6), (0, 1), 1) for prompt in prompts]


def test_one_prompt_without_finite_probabilities_is_enough_to_stop():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[6] = torch.nan
    prompts = encoded((5, 9, 8), (5, 6, 8), (5, 7))
    with pytest.raises(AbftError, match="are not finite"):
        label_probabilities(model, prompts, WORDS)
    assert np.isfinite(label_probabilities(model, [prompts[0], prompts[2]], WORDS)).all()


def test_batches_hold_every_prompt_once_and_the_longest_first():
    lengths = [5, 9, 1, 7, 3, 8, 2]
    prompts = encoded(*(tokens(length, length) for length in lengths))
    batches = list(bucketed(prompts, 3))
    assert [[lengths[i] for i in batch] for batch in batches] == [[9, 8, 7], [5, 3, 2], [1]]
    assert list(map(len, bucketed(prompts, 1))) == [1] * 7
    with pytest.raises(AbftError, match="batch_size = 0"):
        list(bucketed(prompts, 0))


@pytest.mark.parametrize("labels", [WORDS, LONG_LABELS])
def test_progress_counts_prompts(labels):
    model, prompts = tiny_model("llama"), after(tokens(30, 0), *range(1, 8))
    for measure in (
        lambda **options: label_probabilities(model, prompts, labels, **options),
        lambda **options: evaluate(model, with_candidates(prompts), labels, **options),
    ):
        done = []
        measure(batch_size=3, progress=done.append)
        assert done == [3, 3, 1]


def test_no_prompts_have_no_statistics():
    model = tiny_model("llama")
    with pytest.raises(AbftError, match="no prompts to evaluate"):
        evaluate(model, [], WORDS)
    assert label_probabilities(model, [], WORDS).shape == (0, 3)
