"""Perplexity of plain texts."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from abft.errors import AbftError
from abft.model.attention import causal_lm, decoder
from abft.model.capabilities import capabilities
from abft.model.lm_head import output_logits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_length: int = 512,
) -> float:
    """exp of the mean negative log-likelihood of the texts' tokens, in which longer texts count
    more; stock attention.

    Changes `model` to eval mode. A text's first token is not predicted; texts are cut at
    `max_length` tokens.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    capabilities(model).check_lm_head()
    device = next(inner.parameters()).device
    ids = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    ids = sorted((row for row in ids if len(row) > 1), key=len, reverse=True)
    total, count = 0.0, 0
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        padded = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
        real = torch.zeros_like(padded, dtype=torch.bool)
        for b, row in enumerate(rows):
            padded[b, : len(row)], real[b, : len(row)] = torch.tensor(row), True
        hidden = inner(input_ids=padded.to(device), use_cache=False)[0]
        predicting, targets = real[:, 1:].to(hidden.device), padded[:, 1:][real[:, 1:]]
        logits = output_logits(whole, hidden[:, :-1][predicting])
        total += torch.nn.functional.cross_entropy(
            logits, targets.to(logits.device), reduction="sum"
        ).item()
        count += len(targets)
    if count == 0:
        raise AbftError("perplexity needs a text of at least 2 tokens")
    return math.exp(total / count)
