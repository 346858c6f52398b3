"""What a model supports, measured on a few tokens: attention rows, packing, its LM head."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from abft.data.packing import branch_mask
from abft.errors import AbftError
from abft.model.attention import (
    IMPLEMENTATION,
    Implementation,
    causal_lm,
    decoder,
    read_rows,
    row_attention,
)


@torch.no_grad()
def supported_implementation(model: nn.Module) -> Implementation:
    """Compare our rows with eager attention's on a few tokens and say which way is right for this
    model.

    Returns:
        "abft_rows" where both agree; "eager" (slower, n x n matrices, the same rows) where the
        family ignores transformers' attention interface.

    Raises:
        AbftError: the family gives no softmax rows at all, or rows that differ.
    """
    config = model.config.get_text_config()
    family = config.model_type
    if getattr(config, "index_topk", None):
        raise AbftError(
            f"model family {family!r} selects keys with a sparse indexer: its attention rows "
            f"are no plain softmax. "
            "Use a model with dense softmax attention."
        )
    inner = decoder(model)
    device = next(inner.parameters()).device
    ids = torch.arange(3, 3 + 9, device=device).remainder(config.vocab_size)[None]
    positions = torch.tensor([ids.shape[1] - 2], device=device)
    was_training = model.training
    model.eval()
    try:
        with row_attention(model, "eager"):
            eager, _ = read_rows(inner, ids, positions, "eager")
        if not eager or any(rows.shape[-1] != ids.shape[1] for rows in eager):
            raise AbftError(
                f"model family {family!r} does not return attention weights from every layer, "
                f"not even with eager attention. "
                "ABFT needs a decoder-only model with softmax attention."
            )
        with row_attention(model):
            ours = [r for r in _interface_attentions(inner, ids, positions) if r is not None]
    finally:
        model.train(was_training)
    expected = [(1, rows.shape[1], 1, ids.shape[1]) for rows in eager]
    if [tuple(rows.shape) for rows in ours] != expected:
        return "eager"
    tolerance = (
        1e-3 if next(inner.parameters()).dtype == torch.float32 else 5e-2
    )  # peaked rows of trained models: 1.1e-4
    difference = (
        torch.stack(
            [(a.squeeze(2) - b).abs().max().cpu() for a, b in zip(ours, eager, strict=True)]
        )
        .max()
        .item()
    )
    if math.isnan(difference):
        raise AbftError(
            "the model's attention is not finite: its weights are ruined, or half precision is "
            "too narrow for it"
        )
    if not difference <= tolerance:
        raise AbftError(
            f"model family {family!r}: our attention rows differ from eager attention by "
            f"{difference:.1e}, "
            f"expected at most {tolerance:.0e}. Refusing to train on wrong rows; please report "
            f"the family."
        )
    return IMPLEMENTATION


def attends_to_everything(model: nn.Module) -> bool:
    """Whether every layer attends to all keys before it: no sliding window, no recurrent state."""
    config = causal_lm(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


def positions_depend_on_length(model: nn.Module) -> bool:
    """Whether a longer prompt turns the keys of its beginning another way (rotary scaling "dynamic"
    and "longrope").
    """
    parameters = getattr(causal_lm(model).config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    return any(each.get("rope_type") in ("dynamic", "longrope") for each in [parameters, *by_layer])


@torch.no_grad()
def can_pack(model: nn.Module) -> bool:
    """Whether packed prompts give the rows and hidden states of plain ones; a
    few tokens tell.

    Families with sliding windows, recurrent layers, positions of their own (ALiBi) or without
    transformers' attention interface do not.
    """
    if not attends_to_everything(model):
        return False
    was_training = model.training
    model.eval()
    try:
        return _packs_like_plain(model)
    except (
        Exception
    ):  # refused keywords, masks, positions: in any way of its own, a family that does not pack
        return False
    finally:
        model.train(was_training)


def _packs_like_plain(model: nn.Module) -> bool:
    inner, vocabulary = decoder(model), causal_lm(model).config.get_text_config().vocab_size
    trunk, tip = 5, 3  # two prompts: five tokens that they share, three of their own each
    n, whole = trunk + tip, trunk + 2 * tip
    own = [[*range(n)], [*range(trunk), *range(n, whole)]]  # where each prompt's tokens stand
    last = [places[-1] for places in own]
    device = next(inner.parameters()).device
    ids = torch.arange(3, 3 + whole, device=device).remainder(vocabulary)
    depths = torch.tensor([[*range(n), *range(trunk, n)]], device=device)
    ends = torch.tensor([[*[whole] * trunk, *[n] * tip, *[whole] * tip]], device=device)
    positions = torch.tensor([last], device=device)
    with row_attention(model):
        plain = _interface_output(
            inner, torch.stack([ids[places] for places in own]), torch.full_like(positions.T, n - 1)
        )
        packed = _interface_output(
            inner, ids[None], positions, position_ids=depths, attention_mask=branch_mask(ends)
        )
    rows = [each for each in plain["attentions"] if each is not None]
    packed_rows = [each for each in packed["attentions"] if each is not None]
    if not rows or any(each.shape[2:] != (1, n) for each in rows):
        return False
    tolerance = 1e-3 if plain[0].dtype == torch.float32 else 5e-2
    hidden = plain[0][:, -1]
    differences = [
        (packed[0][0, last] - hidden).abs().max().item() / max(1.0, hidden.abs().max().item())
    ]
    for plain_BH1S, packed_BHQS in zip(rows, packed_rows, strict=True):
        for prompt, places in enumerate(own):
            differences.append(
                (packed_BHQS[0, :, prompt][:, places] - plain_BH1S[prompt, :, 0]).abs().max().item()
            )
    return max(differences) <= tolerance


def _interface_output(
    inner: nn.Module, ids: Tensor, row_positions_BQ: Tensor, **inputs: object
) -> Any:
    """What a model returns under our function. Raises TypeError where a legacy family refuses the
    extra keyword.
    """
    return inner(
        input_ids=ids,
        output_attentions=True,
        use_cache=False,
        return_dict=True,
        row_positions=row_positions_BQ,
        **inputs,
    )


def _interface_attentions(
    inner: nn.Module, ids: Tensor, positions: Tensor
) -> tuple[Tensor | None, ...]:
    """What a model returns as attentions under our function; nothing where it refuses the extra
    keyword.
    """
    try:
        return _interface_output(inner, ids, positions[:, None]).get("attentions") or ()
    except TypeError:
        return ()
