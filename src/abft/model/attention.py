"""Read attention rows of single query positions, without n x n matrices and without the LM head.

One function is registered with transformers under the name `abft_rows`, together with a mask
function of the same name (without it transformers would silently pass no padding mask). Its output
is SDPA's; in addition it returns the softmax rows of chosen query positions only, which
transformers collects into `outputs.attentions`.
"""

import threading
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from abft.data.batches import Batch, at_positions
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
    """Return softmax(q K^T) for some query positions only, causal, float32.

    Args:
        query: (B, H, S - past, D), after RoPE and QK-norm; a cache holds the `past` tokens before.
        key: (B, Hkv, S, D), before the repetition of grouped-query attention.
        query_positions_BQ: indices into the S - past queries, (B, Q).
        attention_mask: bool (True = attend) or additive, (B or 1, H or 1, S - past, S); None =
            causal.
        scaling: of the scores; default: 1 / sqrt(D).
        sliding_window: keys further back than this many tokens get 0.
        softcap: scores are capped to `softcap * tanh(scores / softcap)` (Gemma 2).
        sinks_H: one extra score for each head, which takes part in the softmax and is then dropped
            (gpt-oss).

    Returns:
        (B, H, Q, S) float32; differentiable in query and key.
    """
    B, H, queries, D = query.shape
    kv_heads, S = key.shape[1], key.shape[2]
    Q = query_positions_BQ.shape[1]
    past = S - queries
    scaling = D**-0.5 if scaling is None else scaling

    # The heads that share keys are folded into the query axis: no key is repeated.
    positions_B1Q1 = query_positions_BQ[:, None, :, None]
    query_BHQD = query.gather(2, positions_B1Q1.expand(B, H, Q, D))
    grouped = query_BHQD.reshape(B, kv_heads, H // kv_heads * Q, D)
    scores = (grouped @ key.transpose(2, 3)).reshape(B, H, Q, S).float() * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)

    # Not -inf: rows of left padding see nothing and must not become NaN.
    lowest = torch.finfo(scores.dtype).min
    if attention_mask is not None:
        mask_heads, mask_keys = attention_mask.shape[1], attention_mask.shape[-1]
        mask = attention_mask.expand(B, mask_heads, queries, mask_keys)[..., :S]
        mask = mask.gather(2, positions_B1Q1.expand(B, mask_heads, Q, S))
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, lowest)
        else:
            scores = scores + mask.float()
    else:
        keys_S = torch.arange(S, device=query.device)
        last_BQ1 = (query_positions_BQ + past)[..., None]
        visible_BQS = keys_S <= last_BQ1
        if sliding_window is not None:
            visible_BQS = visible_BQS & (keys_S > last_BQ1 - sliding_window)
        scores = scores.masked_fill(~visible_BQS[:, None], lowest)

    # A sink takes part of the softmax: the rows then sum to less than 1.
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
    """Return the attention output where SDPA cannot (softcap, sinks), from every softmax row.

    The rows are recomputed in the backward pass, never stored.
    """
    every_row = torch.arange(query.shape[2], device=query.device).expand(query.shape[0], -1)
    rows = softmax_rows(
        query, key, every_row, attention_mask, scaling, sliding_window, softcap, sinks_H
    )
    groups = query.shape[1] // key.shape[1]
    output = rows.to(value.dtype) @ repeat_kv(value, groups)

    # transformers expects (B, S, H, D).
    return output.transpose(1, 2).contiguous()


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
    """Return SDPA's output and, if `row_positions` (B, Q) are given, their rows.

    This is the registered attention function. `row_layers`: which layers give rows; None = all.
    `head_gates`: by layer, a factor (H,) for each head's output; 0 switches the head off.
    """
    # SDPA would warn that it returns none.
    kwargs.pop("output_attentions", None)
    row_layers: Collection[int] | None = kwargs.pop("row_layers", None)  # type: ignore[assignment]

    if softcap is None and s_aux is None:
        output, _ = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout,
            scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    else:
        # SDPA has neither a soft cap nor sinks.
        arguments = (query, key, value, attention_mask, scaling, sliding_window, softcap, s_aux)
        output = checkpoint(_exact_output, *arguments, use_reentrant=False)

    if head_gates is not None and module.layer_idx in head_gates:
        output = output * head_gates[module.layer_idx].to(output.device, output.dtype)[:, None]
    if row_positions is None or (row_layers is not None and module.layer_idx not in row_layers):
        return output, None

    rows = softmax_rows(
        query, key, row_positions, attention_mask, scaling, sliding_window, softcap, s_aux
    )
    return output, rows


AttentionInterface.register(IMPLEMENTATION, _forward)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def lock_of(model: nn.Module) -> "threading.RLock":
    """Return a model's lock: only one thread at a time may read, as `row_attention` changes it.

    Wrappers of the same causal LM have one lock.
    """
    with _MAKING:
        return _LOCKS.setdefault(causal_lm(model), threading.RLock())


@contextmanager
def row_attention(
    model: nn.Module, implementation: Implementation = IMPLEMENTATION
) -> Iterator[None]:
    """Changes `model` while the context is open: its attention returns rows.

    Stock attention is back afterwards.
    """
    if implementation not in (*ALL_ATTENTION_FUNCTIONS.valid_keys(), "eager"):
        raise RuntimeError(
            f"attention function {implementation!r} is not registered with transformers; import "
            f"abft.model.attention"
        )
    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        raise RuntimeError(
            f"no mask function named {implementation!r} is registered with transformers: "
            f"padding would be attended to"
        )

    # Nested models share a configuration or have one of their own; each is changed once.
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
    """Return the causal LM itself, also where PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: nn.Module) -> nn.Module:
    """Return the part of a causal LM that ends in hidden states; unwraps PEFT models.

    Raises:
        AbftError: the family has no such part.
    """
    whole = causal_lm(model)
    inner = whole.get_decoder() if hasattr(whole, "get_decoder") else None

    # Some families return nothing, or themselves.
    if inner is None or inner is whole:
        inner = whole.base_model
    if inner is whole:
        raise AbftError(
            f"model family {whole.config.model_type!r} has no decoder apart from its LM head"
        )
    return inner


def read_rows(
    module: nn.Module,
    input_ids: Tensor,
    query_positions_P: Tensor,
    implementation: Implementation = IMPLEMENTATION,
    **inputs: object,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run a decoder, or a whole model, once and return its attention rows.

    Needs an open `row_attention`.

    Args:
        module: what to call; `decoder(model)` leaves out the LM head.
        input_ids: (B, S), right-padded (no mask needed: attention is causal) or with
            `attention_mask` in `inputs`.
        query_positions_P: which rows, (P,); P is B or a multiple of it: then each sequence gives P
            / B of them, in order.
        implementation: what `supported_implementation` returned for the model.

    Returns:
        One (P, H, S) float32 row tensor per attention layer, and the first element of the module's
        output (hidden states (B, S, D) for a decoder, logits for a causal LM).
    """
    rows, output = read_output(module, input_ids, query_positions_P, implementation, **inputs)
    return rows, output[0]


def read_batch(
    module: nn.Module,
    batch: Batch,
    implementation: Implementation = IMPLEMENTATION,
    **inputs: object,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Run a batch as `read_rows` does; return one row of each prompt, and the hidden states.

    Where several tokens of a prompt look, its row is their mean.
    """
    inputs = {**batch.model_inputs(), **inputs}
    if batch.looking is None:
        positions_P = batch.query_positions
        return read_rows(module, batch.input_ids, positions_P, implementation, **inputs)

    P, T = batch.looking.shape
    positions = batch.looking.clamp_min(0).flatten()
    rows, hidden = read_rows(module, batch.input_ids, positions, implementation, **inputs)

    looks_PT = (batch.looking >= 0).float()
    weights_PT11 = (looks_PT / looks_PT.sum(1, keepdim=True))[..., None, None]
    means = ((each.unflatten(0, (P, T)) * weights_PT11.to(each.device)).sum(1) for each in rows)
    return tuple(means), hidden


@contextmanager
def up_to_layer(inner: nn.Module, last: int | None) -> Iterator[None]:
    """Changes a decoder while open: it ends after layer `last`; None = after all.

    The hidden states that it returns are then no input for an LM head. Whole models, and decoders
    without a module list named `layers`, run all layers.
    """
    layers = getattr(inner, "layers", None)
    if last is None or not isinstance(layers, nn.ModuleList):
        yield
        return
    try:
        inner.layers = layers[: last + 1]
        yield
    finally:
        inner.layers = layers


def read_output(
    module: nn.Module,
    input_ids: Tensor,
    query_positions_P: Tensor,
    implementation: Implementation = IMPLEMENTATION,
    **inputs: object,
) -> tuple[tuple[Tensor, ...], Any]:
    """Return the attention rows as `read_rows` does, and the module's whole output.

    With a cache in `inputs`, the rows are as long as the cached tokens and the ids together.
    """
    B, P = input_ids.shape[0], query_positions_P.shape[0]
    mask = inputs.get("attention_mask")
    packed = isinstance(mask, Tensor) and mask.dim() == 4 and mask.dtype == torch.bool
    if packed and implementation != IMPLEMENTATION:
        raise ValueError(
            "packed prompts need the implementation 'abft_rows': eager attention would add a "
            "bool mask to its scores"
        )

    if implementation == IMPLEMENTATION:
        inputs = {**inputs, "row_positions": query_positions_P.view(B, P // B)}
    inputs = {"use_cache": False, **inputs}
    output = module(input_ids=input_ids, output_attentions=True, return_dict=True, **inputs)

    # Layers without attention, such as recurrent ones, have None.
    attentions = [rows for rows in output.get("attentions") or () if rows is not None]
    if not attentions and implementation == IMPLEMENTATION:
        raise RuntimeError(
            "the model returned no rows: read them inside `with row_attention(model):`"
        )

    # Eager attention returns whole matrices, of which the rows are picked here.
    if implementation == IMPLEMENTATION:
        rows = tuple(rows_BHQS.transpose(1, 2).flatten(0, 1) for rows_BHQS in attentions)
    else:
        rows = tuple(
            at_positions(matrix_BHSS.transpose(1, 2), query_positions_P).float()
            for matrix_BHSS in attentions
        )
    return rows, output
