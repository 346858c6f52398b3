"""Logits at single positions, from hidden states: only what is asked for is multiplied with the LM
head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def output_logits(
    model: PreTrainedModel, hidden_BD: Tensor, tokens: Sequence[int] | None = None
) -> Tensor:
    """Logits of some tokens (all by default), (B, tokens) float32, from the decoder's last hidden
    state.

    Applies what families put between LM head and logits: a scale (Cohere, Granite) and a soft cap
    (Gemma 2).
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    chosen = slice(None) if tokens is None else list(tokens)
    rows = whole(head.weight)[chosen]
    logits = hidden_BD.to(rows.device, rows.dtype) @ rows.T
    if getattr(head, "bias", None) is not None:
        logits = logits + whole(head.bias)[chosen]
    logits = logits.float()
    logits = (
        logits
        * (getattr(config, "logit_scale", None) or 1.0)
        / (getattr(config, "logits_scaling", None) or 1.0)
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def whole(parameter: Tensor) -> Tensor:
    """A parameter of which FSDP2 may have left this process a part; all processes have to ask at
    once.
    """
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
