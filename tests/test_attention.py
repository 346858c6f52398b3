"""Rows equal eager rows, gradients equal eager gradients, for every family and padding."""

import copy
import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from abft.errors import AbftError
from abft.model.attention import IMPLEMENTATION, decoder, lock_of, read_rows, row_attention
from abft.model.capabilities import supported_implementation
from tiny import FAMILIES, LEGACY, USE_IT_NOW, tiny_model

LENGTHS = (9, 17, 13)


def padded(side: str):
    """Three prompts of different length: ids, mask, positions of their last tokens."""
    torch.manual_seed(1)
    longest = max(LENGTHS)
    lengths = [longest] * 3 if side == "none" else LENGTHS
    ids = torch.zeros(3, longest, dtype=torch.long)
    mask = torch.zeros(3, longest, dtype=torch.long)
    positions = torch.zeros(3, dtype=torch.long)
    for b, n in enumerate(lengths):
        where = slice(longest - n, longest) if side == "left" else slice(0, n)
        ids[b, where] = torch.randint(3, 600, (n,))
        mask[b, where] = 1
        positions[b] = where.stop - 1
    return ids, mask, positions


def eager_rows(model, ids, mask, positions):
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    with row_attention(model, "eager"):
        return read_rows(
            decoder(model),
            ids,
            positions,
            "eager",
            attention_mask=mask,
            **_positions(model, position_ids),
        )


def _positions(model, position_ids):
    return {} if model.config.model_type in ("opt", "bloom") else {"position_ids": position_ids}


def our_rows(model, ids, mask, positions):
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    with row_attention(model):
        return read_rows(
            decoder(model), ids, positions, attention_mask=mask, **_positions(model, position_ids)
        )


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_and_gradients_equal_eager(family, side):
    model = tiny_model(family)
    ids, mask, positions = padded(side)
    weights = [p for n, p in model.named_parameters() if p.dim() >= 2 and "embed" not in n]
    results = []
    for read in (eager_rows, our_rows):
        rows, hidden = read(model, ids, mask, positions)
        torch.manual_seed(2)
        loss = sum((r * torch.rand_like(r)).sum() for r in rows)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        flat = torch.cat([g.flatten() for g in gradients if g is not None])
        last = hidden[torch.arange(3), positions]
        results.append((torch.stack([r.detach() for r in rows]), flat, last.detach()))
    (eager, eager_gradient, eager_hidden), (ours, our_gradient, our_hidden) = results
    assert ours.dtype == torch.float32
    assert (ours - eager).abs().max() <= 2e-6
    torch.testing.assert_close(
        ours.sum(-1) <= 1 + 1e-5, torch.ones_like(ours.sum(-1), dtype=torch.bool)
    )
    assert eager_gradient.norm() > 0
    assert (our_gradient - eager_gradient).norm() <= 2e-5 * eager_gradient.norm()
    torch.testing.assert_close(our_hidden, eager_hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_needs_no_mask(family):
    model = tiny_model(family)
    ids, mask, positions = padded("right")
    with row_attention(model), torch.no_grad():
        masked, _ = read_rows(decoder(model), ids, positions, attention_mask=mask)
        free, _ = read_rows(decoder(model), ids, positions)
    for a, b in zip(masked, free, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
        for row, n in zip(b, LENGTHS, strict=True):
            assert row[:, n:].abs().max() == 0 if n < max(LENGTHS) else True


def test_sliding_window_gives_zero_outside():
    model = tiny_model("mistral")
    ids, _, positions = padded("none")
    with row_attention(model), torch.no_grad():
        rows, _ = read_rows(decoder(model), ids, positions)
    window = model.config.sliding_window
    assert all(r[..., : ids.shape[1] - window].abs().max() == 0 for r in rows)
    assert all((r[..., -window:] > 0).all() for r in rows)


def test_left_padding_gets_no_attention():
    model = tiny_model("llama")
    ids, mask, positions = padded("left")
    rows, _ = our_rows(model, ids, mask, positions)
    for row in rows:
        assert row.masked_select(~mask.bool()[:, None].expand_as(row)).abs().max() == 0


def test_missing_mask_registration_raises():
    model = tiny_model("llama")
    function = ALL_MASK_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    del type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping[IMPLEMENTATION]
    try:
        with pytest.raises(RuntimeError, match="mask function"), row_attention(model):
            pass
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, function)


def test_stock_attention_is_back_even_after_an_error():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with row_attention(model):
        assert model.config._attn_implementation == IMPLEMENTATION
    assert model.config._attn_implementation == before
    with pytest.raises(KeyError), row_attention(model):
        raise KeyError
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families(family):
    assert supported_implementation(tiny_model(family)) == IMPLEMENTATION


@pytest.mark.parametrize("family", LEGACY)
def test_legacy_families_fall_back_to_eager_rows(family):
    model = tiny_model(family)
    expected = IMPLEMENTATION if family in USE_IT_NOW else "eager"
    assert supported_implementation(model) == expected
    ids, _, positions = padded("right")
    with row_attention(model, "eager"), torch.no_grad():
        rows, _ = read_rows(decoder(model), ids, positions, "eager")
        alone, _ = read_rows(decoder(model), ids[:1, : LENGTHS[0]], positions[:1], "eager")
    for together, single in zip(rows, alone, strict=True):
        torch.testing.assert_close(together[:1, :, : LENGTHS[0]], single, rtol=0, atol=2e-6)
        torch.testing.assert_close(together.sum(-1), torch.ones_like(together.sum(-1)))


def test_sparse_indexers_and_recurrent_models_are_refused():
    model = tiny_model("llama")
    model.config.index_topk = 4
    with pytest.raises(AbftError, match="sparse indexer"):
        supported_implementation(model)
    minimax = tiny_model("minimax", **FAMILIES["llama"], num_local_experts=2)
    with pytest.raises(AbftError, match="not return attention weights from every layer"):
        supported_implementation(minimax)
    mamba = tiny_model("mamba", vocab_size=700, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(AbftError, match="not return attention weights"):
        supported_implementation(mamba)


def test_models_without_a_decoder_and_rows_outside_the_context_are_refused():
    llama4 = tiny_model(
        "llama4_text",
        **FAMILIES["llama"],
        intermediate_size_mlp=64,
        num_local_experts=2,
        head_dim=8,
    )
    with pytest.raises(AbftError, match="no decoder apart from its LM head"):
        supported_implementation(llama4)
    ids, _, positions = padded("none")
    with pytest.raises(RuntimeError, match="inside `with row_attention"):
        read_rows(decoder(tiny_model("llama")), ids, positions)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_non_reentrant_checkpointing_keeps_the_gradient(family):
    model = tiny_model(family)
    ids, _, positions = padded("right")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        with row_attention(model):
            rows, _ = read_rows(decoder(model), ids, positions)
            assert all(r.requires_grad for r in rows)
            weight = model.model.layers[0].self_attn.q_proj.weight
            (gradient,) = torch.autograd.grad(sum((r**2).sum() for r in rows), weight)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)


def test_no_square_matrix_is_saved_for_backward():
    """At 512 tokens no tensor kept for the backward pass has two dimensions of the length."""
    model = tiny_model("llama")
    ids = torch.randint(3, 600, (2, 512))
    positions = torch.tensor([511, 400])
    squares = []

    def pack(tensor):
        if sum(size >= 512 for size in tensor.shape) > 1:
            squares.append(tuple(tensor.shape))
        return tensor

    with row_attention(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        rows, _ = read_rows(decoder(model), ids, positions)
    assert rows[0].requires_grad
    assert [s for s in squares if s != (700, 32)] == []
    gc.collect()


def test_wrappers_share_a_lock_and_every_nested_configuration_is_changed():
    wrapped = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    assert lock_of(wrapped) is lock_of(wrapped.get_base_model())

    # Some families have a configuration of their own for the text model.
    model = tiny_model("llama")
    model.model.config = copy.deepcopy(model.config)
    before = model.config._attn_implementation
    with row_attention(model):
        for config in (model.config, model.model.config):
            assert config._attn_implementation == IMPLEMENTATION
    for config in (model.config, model.model.config):
        assert config._attn_implementation == before
