"""Compute logits at single positions from hidden states: only those go through the LM head."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def output_logits(
    model: PreTrainedModel, hidden_BD: Tensor, tokens: Sequence[int] | None = None
) -> Tensor:
    """Return logits of some tokens (default: all), (B, tokens) float32, from last hidden states.

    Applies what families put between LM head and logits: a scale (Cohere, Granite) and a soft cap
    (Gemma 2). The logits of some tokens are computed in float32: at 16 and above, bfloat16 rounds
    to multiples of 0.125, so that labels would often be equally probable.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    indices = slice(None) if tokens is None else list(tokens)

    rows = whole(head.weight)[indices]
    if tokens is not None:
        rows = rows.float()
    logits = hidden_BD.to(rows.device, rows.dtype) @ rows.T
    if getattr(head, "bias", None) is not None:
        logits = logits + whole(head.bias)[indices]

    # A family without a scale has no such entry, or None.
    factor = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    logits = logits.float() * factor / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def whole(parameter: Tensor) -> Tensor:
    """Return a whole parameter, also where FSDP2 leaves each process a part of it.

    All processes have to call this at once.
    """
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
