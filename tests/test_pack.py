"""Packed prompts against the same prompts one by one."""

from dataclasses import replace

import pytest
import torch

from abft.data.batches import Batch, PseudoBatchSampler, collate
from abft.data.encoding import encode, label_tokens, with_answers
from abft.data.packing import pack
from abft.data.prompts import training_prompts
from abft.errors import AbftError
from abft.method.objectives import ABFTObjective, E2EObjective, VoteObjective
from abft.method.pid import PIDController
from abft.model.attention import decoder, row_attention
from abft.model.capabilities import capabilities
from tiny import FAMILIES, LEGACY, USE_IT_NOW, tiny_model

PACKING = {"llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "olmo2", "deepseek_v3"}


@pytest.fixture(scope="module")
def prompts(bpe, review_data):
    encoded = encode(bpe, training_prompts(review_data, 8, 4, seed=3, queries=4))
    return with_answers(encoded, label_tokens(bpe, review_data.task))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", sorted(PACKING))
@pytest.mark.parametrize("kind", ["abft", "vote", "e2e"])
def test_loss_and_gradients_equal_those_of_plain_prompts(prompts, family, kind):
    model = tiny_model(family)
    objective = {
        "abft": ABFTObjective(PIDController(), fixed_threshold=0.03),
        "vote": VoteObjective(fixed_threshold=0.03),
        "e2e": E2EObjective(model, fixed_threshold=0.03),
    }[kind]
    results = []
    for queries in (1, 4):
        model.zero_grad()
        with row_attention(model):
            loss, metrics = objective(decoder(model), Batch(**collate(prompts, queries)))
        loss.backward()
        results.append(
            (loss.item(), {name: m.item() for name, m in metrics.items()}, gradients(model))
        )
    (plain, plain_metrics, expected), (packed, packed_metrics, got) = results
    assert packed == pytest.approx(plain, rel=1e-5)
    assert packed_metrics == pytest.approx(plain_metrics, rel=1e-4)
    assert expected
    assert all(gradient.isfinite().all() for gradient in expected.values())
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-3), name


@pytest.mark.parametrize("family", sorted(FAMILIES) + sorted(LEGACY))
def test_only_families_that_pack_are_packed(family):
    model = tiny_model(family)
    assert capabilities(model).packs == (family in PACKING | USE_IT_NOW)


def test_a_pack_is_the_tree_of_its_prompts(prompts):
    packed = pack(prompts[:4])
    shared = min(prompts[0].label_positions[-1:])
    assert len(packed.input_ids) < sum(len(p.input_ids) for p in prompts[:4]) - 3 * shared
    for prompt, places in zip(prompts[:4], packed.places, strict=True):
        assert tuple(packed.input_ids[at] for at in places) == prompt.input_ids
        assert tuple(packed.position_ids[at] for at in places) == tuple(range(len(places)))
        ancestors = tuple(j for j in range(places[-1] + 1) if packed.branch_ends[j] > places[-1])
        assert ancestors == places


def test_prompts_that_share_nothing_or_everything(prompts):
    a, b = prompts[0], prompts[4]
    assert a.input_ids[:30] != b.input_ids[:30]
    assert len(pack([a, a]).input_ids) == len(a.input_ids)
    model = tiny_model("llama")
    objective = ABFTObjective(PIDController(), fixed_threshold=0.03)
    with row_attention(model), torch.no_grad():
        for pair in ([a, b], [a, a]):
            plain, _ = objective(decoder(model), Batch(**collate(pair)))
            packed, _ = objective(decoder(model), Batch(**collate(pair, 2)))
            assert packed.item() == pytest.approx(plain.item(), rel=1e-5)


def test_prompts_that_begin_with_one_another(prompts):
    """Every demonstration as a query of its own: the tree is one branch."""
    whole = prompts[0]
    shorter = [
        replace(
            whole,
            input_ids=whole.input_ids[:at],
            label_positions=whole.label_positions[:i],
            label_classes=classes[:i],
        )
        for classes in [whole.label_classes]
        for i, at in list(enumerate(whole.label_positions))[1:]
    ]
    group = [*shorter, whole]
    assert pack(group).input_ids == whole.input_ids
    model = tiny_model("llama")
    objective = ABFTObjective(PIDController(), fixed_threshold=0.03)
    with row_attention(model), torch.no_grad():
        plain, _ = objective(decoder(model), Batch(**collate(group)))
        packed, _ = objective(decoder(model), Batch(**collate(group, len(group))))
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)


def test_lengths_are_those_of_the_prompts(prompts):
    for queries in (1, 4):
        assert Batch(**collate(prompts, queries)).lengths.tolist() == [
            len(prompt.input_ids) for prompt in prompts
        ]


def test_eager_attention_refuses_packed_prompts(prompts):
    model = tiny_model("llama")
    objective = ABFTObjective(PIDController(), implementation="eager")
    with row_attention(model, "eager"), pytest.raises(ValueError, match="packed prompts"):
        objective(decoder(model), Batch(**collate(prompts, 4)))


def test_queries_share_their_demonstrations_and_never_repeat(review_data):
    written = training_prompts(review_data, 12, 4, seed=0, queries=3)
    for start in range(0, 12, 3):
        group = written[start : start + 3]
        assert len({p.text[: p.label_spans[-1][1]] for p in group}) == 1
        assert len({p.text for p in group}) == 3
    assert training_prompts(review_data, 5, 4, seed=0) == training_prompts(
        review_data, 5, 4, seed=0, queries=1
    )
    with pytest.raises(AbftError, match="queries need"):
        training_prompts(review_data, 2000, 4, seed=0, queries=2000)


def test_the_sampler_keeps_packs_together():
    order = list(PseudoBatchSampler([9, 4, 30, 7, 1], 4, seed=0, queries=2))
    assert len(order) == 8
    assert all(a % 2 == 0 and b == a + 1 for a, b in zip(order[::2], order[1::2], strict=True))
    with pytest.raises(AbftError, match="cannot be packed"):
        PseudoBatchSampler([5] * 5, 5, seed=0, queries=2)
