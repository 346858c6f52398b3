"""Attention rows of single query positions, without n x n matrices and without the LM head.

One function is registered with transformers under the name `abft_rows`, together with a mask function of the same
name (without it transformers would silently pass no padding mask). Its output is SDPA's; beside it, it returns only
the softmax rows of the asked query positions, which transformers collects into `outputs.attentions`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from abft.errors import AbftError

Implementation = Literal["abft_rows", "eager"]
IMPLEMENTATION: Literal["abft_rows"] = "abft_rows"


def softmax_rows(
    query: Tensor,
    key: Tensor,
    query_positions_BQ: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """softmax(q K^T) for some query positions only, causal, float32.

    Args:
        query: (B, H, N, D), after RoPE and QK-norm.
        key: (B, Hkv, S, D), before the repetition of grouped-query attention; S >= N (a cache may precede).
        query_positions_BQ: indices into N, (B, Q).
        attention_mask: bool (True = attend) or additive, (B or 1, H or 1, N, S); None = causal.
        sliding_window: keys further back than this many tokens get 0.
        softcap: scores are capped to `softcap * tanh(scores / softcap)` (Gemma 2).
        sinks_H: one extra score a head that takes part in the softmax and is then dropped (gpt-oss).

    Returns:
        (B, H, Q, S) float32; differentiable in query and key.
    """
    B, H, N, D = query.shape
    kv_heads, S = key.shape[1], key.shape[2]
    Q = query_positions_BQ.shape[1]
    scaling = D**-0.5 if scaling is None else scaling
    index = query_positions_BQ[:, None, :, None].expand(B, H, Q, D)
    query_BHQD = query.gather(2, index)
    grouped = query_BHQD.reshape(B, kv_heads, H // kv_heads * Q, D)
    scores = (grouped @ key.transpose(2, 3)).reshape(B, H, Q, S).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    lowest = torch.finfo(scores.dtype).min  # not -inf: rows of left padding see nothing and must not become NaN
    if attention_mask is not None:
        mask = attention_mask.expand(B, attention_mask.shape[1], N, attention_mask.shape[-1])[..., :S]
        at = query_positions_BQ[:, None, :, None].expand(B, mask.shape[1], Q, S)
        mask = mask.gather(2, at)
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask.float()
    else:
        keys_S = torch.arange(S, device=query.device)
        last_BQ1 = (query_positions_BQ + S - N)[..., None]
        visible = keys_S <= last_BQ1
        if sliding_window is not None:
            visible = visible & (keys_S > last_BQ1 - sliding_window)
        scores = scores.masked_fill(~visible[:, None], lowest)
    if sinks_H is not None:
        sinks = sinks_H.float().reshape(1, H, 1, 1).expand(B, H, Q, 1)
        return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    return torch.softmax(scores, dim=-1)


def _exact_output(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attention output for what SDPA refuses (softcap, sinks): every row, recomputed in backward, never stored."""
    every_row = torch.arange(query.shape[2], device=query.device).expand(query.shape[0], -1)
    rows = softmax_rows(query, key, every_row, attention_mask, scaling, sliding_window, softcap, sinks_H)
    groups = query.shape[1] // key.shape[1]
    return (rows.to(value.dtype) @ repeat_kv(value, groups)).transpose(1, 2).contiguous()


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    row_positions: Tensor | None = None,
    head_gates: dict[int, Tensor] | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: SDPA's output, and the rows of `row_positions` (B, Q) if asked.

    `head_gates`: by layer, a factor (H,) for each head's output; 0 switches the head off.
    """
    kwargs.pop("output_attentions", None)  # SDPA would warn that it has none
    if softcap is None and s_aux is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
        )
    else:
        arguments = (query, key, value, attention_mask, scaling, sliding_window, softcap, s_aux)
        output = checkpoint(_exact_output, *arguments, use_reentrant=False)
    if head_gates is not None and module.layer_idx in head_gates:
        output = output * head_gates[module.layer_idx].to(output.device, output.dtype)[:, None]
    if row_positions is None:
        return output, None
    rows = softmax_rows(query, key, row_positions, attention_mask, scaling, sliding_window, softcap, s_aux)
    return output, rows


AttentionInterface.register(IMPLEMENTATION, _forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def row_attention(model: nn.Module, implementation: Implementation = IMPLEMENTATION) -> Iterator[None]:
    """Changes `model` while the context is open: its attention returns rows. Stock attention is back afterwards."""
    if implementation not in (*ALL_ATTENTION_FUNCTIONS.valid_keys(), "eager"):
        raise RuntimeError(f"attention function {implementation!r} is not registered with transformers; import abft.attention")
    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        raise RuntimeError(
            f"no mask function named {implementation!r} is registered with transformers: padding would be attended to"
        )
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = implementation
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def causal_lm(model: nn.Module) -> nn.Module:
    """The causal LM itself, also where PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: nn.Module) -> nn.Module:
    """The part of a causal LM that ends in hidden states, without the LM head; unwraps PEFT models.

    Raises:
        AbftError: the family has no such part.
    """
    whole = causal_lm(model)
    inner = whole.get_decoder() if hasattr(whole, "get_decoder") else None
    if inner is None or inner is whole:
        inner = whole.base_model
    if inner is whole:
        raise AbftError(f"model family {whole.config.model_type!r} has no decoder apart from its LM head")
    return inner


def read_rows(
    module: nn.Module,
    input_ids: Tensor,
    query_positions_P: Tensor,
    implementation: Implementation = IMPLEMENTATION,
    **inputs: object,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run `module` (a decoder, or a whole model) once and return its rows; needs an open `row_attention`.

    Args:
        module: what to call; `decoder(model)` leaves out the LM head.
        input_ids: (B, S), right-padded (no mask needed: attention is causal) or with `attention_mask` in `inputs`.
        query_positions_P: which rows, (P,); P is B or a multiple of it: then each sequence gives P / B of them, in order.
        implementation: what `supported_implementation` returned for the model.

    Returns:
        One (P, H, S) float32 row tensor per attention layer, and the first element of the module's output
        (hidden states (B, S, D) for a decoder, logits for a causal LM).
    """
    B, P = input_ids.shape[0], query_positions_P.shape[0]
    mask = inputs.get("attention_mask")
    if implementation != IMPLEMENTATION and isinstance(mask, Tensor) and mask.dim() == 4 and mask.dtype == torch.bool:
        raise ValueError(
            "packed prompts need the implementation 'abft_rows': eager attention would add a bool mask to its scores"
        )
    if implementation == IMPLEMENTATION:
        inputs = {**inputs, "row_positions": query_positions_P.view(B, P // B)}
    output = module(input_ids=input_ids, output_attentions=True, use_cache=False, return_dict=True, **inputs)
    attentions = [rows for rows in output.get("attentions") or () if rows is not None]
    if not attentions and implementation == IMPLEMENTATION:
        raise RuntimeError("the model returned no rows: read them inside `with row_attention(model):`")
    if implementation == IMPLEMENTATION:
        rows = tuple(rows_BHQS.transpose(1, 2).flatten(0, 1) for rows_BHQS in attentions)
    else:
        sequence = torch.arange(P, device=input_ids.device) // (P // B)
        rows = tuple(matrix[sequence, :, query_positions_P.to(matrix.device)].float() for matrix in attentions)
    return rows, output[0]


@torch.no_grad()
def supported_implementation(model: nn.Module) -> Implementation:
    """Compare our rows with eager attention's on a few tokens and say which way is right for this model.

    Returns:
        "abft_rows" where both agree; "eager" (slower, n x n matrices, the same rows) where the family ignores
        transformers' attention interface.

    Raises:
        AbftError: the family gives no softmax rows at all, or rows that differ.
    """
    config = model.config.get_text_config()
    family = config.model_type
    if getattr(config, "index_topk", None):
        raise AbftError(
            f"model family {family!r} selects keys with a sparse indexer: its attention rows are no plain softmax. "
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
                f"model family {family!r} does not return attention weights from every layer, not even with eager attention. "
                "ABFT needs a decoder-only model with softmax attention."
            )
        with row_attention(model):
            ours = [r for r in _interface_attentions(inner, ids, positions) if r is not None]
    finally:
        model.train(was_training)
    expected = [(1, rows.shape[1], 1, ids.shape[1]) for rows in eager]
    if [tuple(rows.shape) for rows in ours] != expected:
        return "eager"
    tolerance = 1e-3 if next(inner.parameters()).dtype == torch.float32 else 5e-2  # peaked rows of trained models: 1.1e-4
    difference = torch.stack([(a.squeeze(2) - b).abs().max().cpu() for a, b in zip(ours, eager, strict=True)]).max().item()
    if math.isnan(difference):
        raise AbftError("the model's attention is not finite: its weights are ruined, or half precision is too narrow for it")
    if not difference <= tolerance:
        raise AbftError(
            f"model family {family!r}: our attention rows differ from eager attention by {difference:.1e}, "
            f"expected at most {tolerance:.0e}. Refusing to train on wrong rows; please report the family."
        )
    return IMPLEMENTATION


def branch_mask(branch_ends_BS: Tensor) -> Tensor:
    """Causal attention within the branches of a token tree written depth first: (B, 1, S, S) bool, True = attend.

    Token i attends to token j if j is an ancestor of i, or i itself: j <= i < branch_ends[j].
    """
    at = torch.arange(branch_ends_BS.shape[1], device=branch_ends_BS.device)
    return ((at[None, :] <= at[:, None]) & (at[:, None] < branch_ends_BS[:, None, :]))[:, None]


def attends_to_everything(model: nn.Module) -> bool:
    """Whether every layer attends to all keys before it: no sliding window, no recurrent state."""
    config = causal_lm(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


def positions_depend_on_length(model: nn.Module) -> bool:
    """Whether a longer prompt turns the keys of its beginning another way (rotary scaling "dynamic" and "longrope")."""
    parameters = getattr(causal_lm(model).config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [value for value in parameters.values() if isinstance(value, dict)]
    return any(each.get("rope_type") in ("dynamic", "longrope") for each in [parameters, *by_layer])


@torch.no_grad()
def can_pack(model: nn.Module) -> bool:
    """Whether packed prompts (`abft.prompts.pack`) give the rows and hidden states of plain ones; a few tokens tell.

    Families with sliding windows, recurrent layers, positions of their own (ALiBi) or without transformers' attention
    interface do not.
    """
    if not attends_to_everything(model):
        return False
    was_training = model.training
    model.eval()
    try:
        return _packs_like_plain(model)
    except Exception:  # refused keywords, masks, positions: in any way of its own, a family that does not pack
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
        plain = _interface_output(inner, torch.stack([ids[places] for places in own]), torch.full_like(positions.T, n - 1))
        packed = _interface_output(inner, ids[None], positions, position_ids=depths, attention_mask=branch_mask(ends))
    rows = [each for each in plain["attentions"] if each is not None]
    packed_rows = [each for each in packed["attentions"] if each is not None]
    if not rows or any(each.shape[2:] != (1, n) for each in rows):
        return False
    tolerance = 1e-3 if plain[0].dtype == torch.float32 else 5e-2
    hidden = plain[0][:, -1]
    differences = [(packed[0][0, last] - hidden).abs().max().item() / max(1.0, hidden.abs().max().item())]
    for plain_BH1S, packed_BHQS in zip(rows, packed_rows, strict=True):
        for prompt, places in enumerate(own):
            differences.append((packed_BHQS[0, :, prompt][:, places] - plain_BH1S[prompt, :, 0]).abs().max().item())
    return max(differences) <= tolerance


def _interface_output(inner: nn.Module, ids: Tensor, row_positions_BQ: Tensor, **inputs: object) -> Any:
    """What a model returns under our function. Raises TypeError where a legacy family refuses the extra keyword."""
    return inner(
        input_ids=ids, output_attentions=True, use_cache=False, return_dict=True, row_positions=row_positions_BQ, **inputs
    )


def _interface_attentions(inner: nn.Module, ids: Tensor, positions: Tensor) -> tuple[Tensor | None, ...]:
    """What a model returns as attentions under our function; nothing where it refuses the extra keyword."""
    try:
        return _interface_output(inner, ids, positions[:, None]).get("attentions") or ()
    except TypeError:
        return ()
