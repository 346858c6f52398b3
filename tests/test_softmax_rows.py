"""`softmax_rows` and the registered attention function against loops in plain Python."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from abft.model import attention
from abft.model.attention import decoder, read_rows, row_attention, softmax_rows
from tiny import tiny_model

B, H, KV, D, QUERIES = 2, 4, 2, 3, 5

# Positions at both ends and out of order.
POSITIONS = torch.tensor([[4, 0, 2], [1, 4, 3]])


def expected_row(scores, visible, softcap=None, sink=None):
    """Softmax over the visible scores of one row; the others are 0."""
    capped = [softcap * math.tanh(s / softcap) if softcap else s for s in scores]
    powers = [math.exp(s) if sees else 0.0 for s, sees in zip(capped, visible, strict=True)]
    total = sum(powers) + (math.exp(sink) if sink is not None else 0.0)
    return [power / total for power in powers]


def expected_rows(query, key, sees, scaling, softcap=None, sinks=None):
    """(B, H, Q, S) by loops; `sees(b, h, query index, key)` says what is visible."""
    S = key.shape[2]
    rows = torch.zeros(B, H, POSITIONS.shape[1], S)
    for b, h, q in itertools.product(range(B), range(H), range(POSITIONS.shape[1])):
        i = POSITIONS[b, q].item()
        keys = key[b, h // (H // KV)]
        scores = [scaling * (query[b, h, i] @ keys[j]).item() for j in range(S)]
        visible = [sees(b, h, i, j) for j in range(S)]
        sink = None if sinks is None else sinks[h].item()
        rows[b, h, q] = torch.tensor(expected_row(scores, visible, softcap, sink))
    return rows


def inputs(past=0, seed=0):
    torch.manual_seed(seed)
    query = 2 * torch.randn(B, H, QUERIES, D)
    key = 2 * torch.randn(B, KV, past + QUERIES, D)
    return query, key


# Keys that a cache holds come before the queries.
@pytest.mark.parametrize("past", [0, 1, 7])
@pytest.mark.parametrize("window", [None, 1, 2, 4, 100])
def test_causal_rows_and_windows(past, window):
    query, key = inputs(past)

    def sees(b, h, i, j):
        back = i + past - j
        return back >= 0 and (window is None or back < window)

    rows = softmax_rows(query, key, POSITIONS, sliding_window=window)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, expected_rows(query, key, sees, D**-0.5))


@pytest.mark.parametrize("mask_heads", [1, H])
@pytest.mark.parametrize("mask_rows", [1, B])
@pytest.mark.parametrize("past", [0, 3])
def test_masks_replace_the_causal_one(past, mask_rows, mask_heads):
    query, key = inputs(past)
    mask = torch.rand(mask_rows, mask_heads, QUERIES, past + QUERIES) < 0.6
    mask[..., 0] = True

    def place(b, h, i, j):
        return min(b, mask_rows - 1), min(h, mask_heads - 1), i, j

    expected = expected_rows(query, key, lambda *at: mask[place(*at)].item(), 0.7)
    torch.testing.assert_close(softmax_rows(query, key, POSITIONS, mask, scaling=0.7), expected)

    # As numbers that are added to the scores, and longer than the keys, as static caches give it.
    lowest = torch.finfo(torch.float32).min
    added = torch.zeros(mask.shape).masked_fill(~mask, lowest)
    longer = torch.cat([added, torch.full((*mask.shape[:3], 2), lowest)], dim=-1)
    for each in (added, longer):
        torch.testing.assert_close(softmax_rows(query, key, POSITIONS, each, scaling=0.7), expected)


def test_an_additive_mask_is_added_not_only_a_switch():
    """Some families put biases of distance (ALiBi) into the mask."""
    query, key = inputs()
    bias = torch.randn(B, H, QUERIES, QUERIES)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(H // KV, 1)) * D**-0.5
    whole = torch.softmax(scores + bias, dim=-1)
    expected = whole.gather(2, POSITIONS[:, None, :, None].expand(B, H, -1, QUERIES))
    torch.testing.assert_close(softmax_rows(query, key, POSITIONS, bias), expected)


@pytest.mark.parametrize("softcap", [0.5, 3.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_soft_cap_and_sinks(softcap, with_sinks):
    query, key = inputs()
    sinks = torch.tensor([-1.0, 0.0, 2.0, 5.0]) if with_sinks else None
    expected = expected_rows(query, key, lambda b, h, i, j: j <= i, D**-0.5, softcap, sinks)
    rows = softmax_rows(query, key, POSITIONS, softcap=softcap, sinks_H=sinks)
    torch.testing.assert_close(rows, expected)

    # Both matter here: without them the rows are others.
    plain = softmax_rows(query, key, POSITIONS)
    assert (rows - plain).abs().max() > 0.1


def test_rows_that_see_nothing_are_even_not_nan():
    query, key = inputs()
    nothing = torch.zeros(B, 1, QUERIES, QUERIES, dtype=torch.bool)
    rows = softmax_rows(query, key, POSITIONS, nothing)
    torch.testing.assert_close(rows, torch.full_like(rows, 1 / QUERIES))


def test_half_precision_rows_are_a_float32_softmax():
    query, key = (tensor.bfloat16() for tensor in inputs())
    rows = softmax_rows(query, key, POSITIONS)
    exact = softmax_rows(query.float(), key.float(), POSITIONS)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
    torch.testing.assert_close(rows, exact, atol=0.02, rtol=0.05)


def forward(query, key, value, **arguments):
    """The registered function on a module with what transformers reads from it."""
    module = SimpleNamespace(
        layer_idx=1, num_key_value_groups=H // KV, is_causal=True, training=False
    )
    return attention._forward(module, query, key, value, None, **arguments)


@pytest.mark.parametrize("capped", [False, True])
def test_the_output_is_every_row_times_the_values(capped):
    """With and without a soft cap, for which SDPA has no place; and its gradient."""
    query, key = (tensor.requires_grad_() for tensor in inputs())
    value = torch.randn(B, KV, QUERIES, D, requires_grad=True)
    softcap = 1.5 if capped else None

    output, rows = forward(query, key, value, softcap=softcap, scaling=0.7)
    assert rows is None
    everyone = torch.arange(QUERIES).expand(B, -1)
    matrix = softmax_rows(query, key, everyone, scaling=0.7, softcap=softcap)
    expected = (matrix @ value.repeat_interleave(H // KV, 1)).transpose(1, 2)
    torch.testing.assert_close(output, expected)

    weights = torch.randn_like(expected)
    leaves = (query, key, value)
    ours = torch.autograd.grad((output * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_gates_scale_the_heads_of_their_layer_only():
    query, key = inputs()
    value = torch.randn(B, KV, QUERIES, D)
    gates = torch.tensor([0.0, 1.0, 0.5, -2.0])
    plain, _ = forward(query, key, value)
    gated, rows = forward(query, key, value, head_gates={1: gates}, row_positions=POSITIONS)
    torch.testing.assert_close(gated, plain * gates[:, None])
    torch.testing.assert_close(rows, softmax_rows(query, key, POSITIONS))
    other, _ = forward(query, key, value, head_gates={0: gates})
    torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("per_sequence", [1, 3])
@pytest.mark.parametrize("implementation", ["abft_rows", "eager"])
def test_rows_of_several_queries_of_a_sequence_keep_their_order(implementation, per_sequence):
    """P rows of B sequences: those of the first sequence come first."""
    model = tiny_model("llama")
    torch.manual_seed(3)
    ids = torch.randint(3, 600, (2, 8))
    places = torch.tensor([[7, 2, 5], [6, 0, 3]])[:, :per_sequence]
    with row_attention(model, implementation), torch.no_grad():
        rows, hidden = read_rows(decoder(model), ids, places.flatten(), implementation)
    assert hidden.shape == (2, 8, 32)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        matrices = model(ids, output_attentions=True).attentions
    for layer, matrix in zip(rows, matrices, strict=True):
        assert layer.shape == (2 * per_sequence, 4, 8)
        for p, (b, q) in enumerate(itertools.product(range(2), range(per_sequence))):
            torch.testing.assert_close(layer[p], matrix[b, :, places[b, q]], atol=2e-6, rtol=1e-4)


def test_packed_prompts_are_refused_by_eager_attention():
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with row_attention(model, "eager"), pytest.raises(ValueError, match="packed prompts need"):
        read_rows(decoder(model), ids, torch.tensor([2]), "eager", attention_mask=mask)


def test_a_soft_cap_and_layers_of_both_kinds_agree_with_transformers():
    """Gemma 2: the cap is small enough to matter, layers alternate, prompts exceed the window."""
    model = tiny_model("gemma2", attn_logit_softcapping=0.7)
    uncapped = tiny_model("gemma2", attn_logit_softcapping=None)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    torch.manual_seed(3)
    ids = torch.randint(3, 600, (1, 12))
    found = {}
    for name, each in (("capped", model), ("uncapped", uncapped)):
        for implementation in ("abft_rows", "eager"):
            with row_attention(each, implementation), torch.no_grad():
                found[name, implementation] = read_rows(
                    decoder(each), ids, torch.tensor([11]), implementation
                )
        ours, theirs = found[name, "abft_rows"], found[name, "eager"]
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-4)
        for a, b in zip(ours[0], theirs[0], strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
    sliding, full = found["capped", "abft_rows"][0]
    assert not sliding[..., :6].any()
    assert sliding[..., 6:].all()
    assert full.all()
    assert (full - found["uncapped", "abft_rows"][0][1]).abs().max() > 0.05
