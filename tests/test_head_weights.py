"""Weighted heads: the fit on made-up attention, and what a fitted ranker reads."""

import json

import numpy as np
import pytest
import torch

from abft.method.losses import contrastive_loss
from abft.ranker.head_weights import (
    PENALTIES,
    HeadWeights,
    _Data,
    _path,
    fit_head_weights,
    layers_read,
)
from tiny import tiny_model

LAYERS, HEADS = 2, 3


def looks(groups, each, seed=0, most=8):
    """Attention of six heads: head 1 likes relevant documents, head 4 others; the rest is noise."""
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(groups):
        documents = int(generator.integers(2, most + 1))
        group = []
        for _ in range(each):
            right = int(generator.integers(documents))
            look_KD = generator.normal(size=(LAYERS * HEADS, documents))
            look_KD[1, right] += 2
            look_KD[4, right] -= 2
            group.append((look_KD * [[1], [0.1], [1], [5], [0.01], [1]], {right}))
        drawn.append(group)
    return drawn


def recall(scorer, groups):
    every = [example for group in groups for example in group]
    return np.mean([int(np.argmax(scorer(look_KD))) in right for look_KD, right in every])


def test_the_fit_finds_heads_for_and_against():
    fitted = fit_head_weights(looks(30, 4), LAYERS)
    assert fitted.layers == [0, 1]
    assert fitted.weights_LH.shape == fitted.spread_LH.shape == (LAYERS, HEADS)
    order = np.argsort(fitted.weights_LH.ravel())
    assert (order[0], order[-1]) == (4, 1)

    unseen = looks(100, 4, seed=1)
    ours = recall(fitted.scores, unseen)
    best_alone = max(recall(lambda look, k=k: look[k], unseen) for k in range(LAYERS * HEADS))
    assert ours >= best_alone + 0.1
    assert ours >= recall(lambda look: look.mean(0), unseen) + 0.3


def test_the_weights_are_where_the_penalized_loss_has_no_slope():
    """Of the loss that training uses, with one of the penalties."""
    groups = looks(30, 4)
    fitted = fit_head_weights(groups, LAYERS)
    every = [example for group in groups for example in group]
    spread = np.sqrt(np.mean([look.var(1) for look, _ in every], 0))
    assert fitted.spread_LH.ravel() == pytest.approx(spread)

    weights = torch.tensor(fitted.weights_LH.ravel(), requires_grad=True)
    losses = []
    for look, right in every:
        centred = look - look.mean(1, keepdims=True)
        scaled = torch.tensor(centred / ((spread + look.std(1)) / 2)[:, None])
        relevant = torch.tensor([[i in right for i in range(look.shape[1])]])
        losses.append(contrastive_loss((weights @ scaled)[None], relevant, ~relevant, 1.0))
        assert fitted.scores(look) == pytest.approx((weights @ scaled).detach().numpy())
    torch.stack(losses).mean().backward()
    slopes = [
        (weights.grad + 2 * penalty * weights.detach()).abs().max().item() for penalty in PENALTIES
    ]
    assert min(slopes) < 1e-4
    assert sorted(slopes)[1] > 1e-3  # of no other one


def test_weak_penalties_fit_better_and_grow():
    data = _Data.of([e for group in looks(20, 4) for e in group], np.ones(LAYERS * HEADS))
    fitted = _path(data)
    losses = [float(data.loss(weights)) for weights in fitted]
    assert losses == sorted(losses, reverse=True)
    sizes = [float(weights.norm()) for weights in fitted]
    assert sizes == sorted(sizes)


def test_noise_is_weighed_little():
    """Cross-validation prefers strong penalties if heads say nothing of relevance."""
    generator = np.random.default_rng(0)
    noise = [
        [(generator.normal(size=(60, 8)), {int(generator.integers(8))}) for _ in range(4)]
        for _ in range(10)
    ]
    informative = fit_head_weights(looks(10, 4), LAYERS)
    assert np.linalg.norm(fit_head_weights(noise, 6).weights_LH) < 0.2
    assert np.linalg.norm(informative.weights_LH) > 1


def test_units_of_a_head_do_not_matter():
    groups, units = looks(20, 4), np.array([3.0, 1e-4, 7, 1, 1e3, 1])[:, None]
    scaled = [[(look * units, right) for look, right in group] for group in groups]
    plain, other = fit_head_weights(groups, LAYERS), fit_head_weights(scaled, LAYERS)
    look, _ = looks(1, 1, seed=2)[0][0]
    assert other.scores(look * units) == pytest.approx(plain.scores(look), abs=1e-6)


def test_heads_that_never_look_and_single_documents_count_nothing():
    groups = looks(10, 4)
    for group in groups:
        for look, _ in group:
            look[2] = 0
    fitted = fit_head_weights(groups, LAYERS)
    assert fitted.weights_LH[0, 2] == 0
    assert np.isfinite(fitted.weights_LH).all()
    assert fitted.scores(np.ones((LAYERS * HEADS, 1))) == pytest.approx([0])
    look = looks(1, 1, seed=3)[0][0][0]
    assert fitted.scores(look).mean() == pytest.approx(0, abs=1e-9)


def test_one_group_is_split_by_query():
    (group,) = looks(1, 12)
    assert np.isfinite(fit_head_weights([group], LAYERS).weights_LH).all()
    pair = fit_head_weights([group[:2]], LAYERS)
    assert np.abs(pair.weights_LH).max() > 0


@pytest.mark.parametrize(
    ("depth", "trained", "expected"),
    [(30, (), 20), (30, [(24, 3), (8, 0)], 25), (30, [(8, 0)], 20), (1, (), 1), (2, [(1, 0)], 2)],
)
def test_two_thirds_of_the_layers_are_read_or_all_that_were_trained(depth, trained, expected):
    model = tiny_model("llama", num_hidden_layers=depth)
    assert layers_read(model, trained) == list(range(expected))


def test_json_keeps_every_digit():
    fitted = fit_head_weights(looks(5, 4), LAYERS)
    again = HeadWeights.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(again.weights_LH, fitted.weights_LH)
    np.testing.assert_array_equal(again.spread_LH, fitted.spread_LH)
