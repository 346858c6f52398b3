"""Compute the perplexity of plain texts."""

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
    """Return exp of the mean negative log-likelihood of the texts' tokens, with stock attention.

    The mean is over tokens: longer texts count more. Changes `model` to eval mode. A text's first
    token is not predicted; texts are cut at `max_length` tokens.

    Raises:
        AbftError: no text of at least 2 tokens.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    capabilities(model).check_lm_head()
    device = next(inner.parameters()).device

    ids = [tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts]
    # Sorted by length, batches pad little.
    ids = sorted((text for text in ids if len(text) > 1), key=len, reverse=True)

    total, count = 0.0, 0
    for start in range(0, len(ids), batch_size):
        batch = ids[start : start + batch_size]
        padded_BS = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
        real_BS = torch.zeros_like(padded_BS, dtype=torch.bool)
        for b, text in enumerate(batch):
            padded_BS[b, : len(text)] = torch.tensor(text)
            real_BS[b, : len(text)] = True

        # The hidden state before each token predicts it.
        hidden_BSD = inner(input_ids=padded_BS.to(device), use_cache=False)[0]
        predicted_BS = real_BS[:, 1:]
        targets = padded_BS[:, 1:][predicted_BS]
        logits = output_logits(whole, hidden_BSD[:, :-1][predicted_BS.to(hidden_BSD.device)])

        loss = torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum")
        total += loss.item()
        count += len(targets)

    if count == 0:
        raise AbftError("perplexity needs a text of at least 2 tokens")
    return math.exp(total / count)
