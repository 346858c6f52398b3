"""Label probabilities for encoded prompts, with head statistics from the same forward pass.

Only the label words' logits at the query position are computed; demonstrations that all prompts share are run once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from abft.attention import IMPLEMENTATION, Implementation, attends_to_everything, causal_lm, decoder, read_rows, row_attention
from abft.errors import AbftError
from abft.logits import at_positions, check_output_logits, output_logits
from abft.objective import head_statistics
from abft.prompts import Batch, EncodedPrompt, collate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_SHARED_TOKENS = 16  # shorter common beginnings are not worth a cache


@dataclass(frozen=True)
class HeadReport:
    """Means over prompts, for each layer and head."""

    induction_rate_LH: np.ndarray  # share of prompts for which the head passes the filter
    right_mass_LH: np.ndarray  # attention on right label tokens
    wrong_mass_LH: np.ndarray  # attention on wrong label tokens

    @property
    def heads(self) -> float:
        """Heads over the threshold, mean over prompts."""
        return float(self.induction_rate_LH.sum())


def bucketed(prompts: Sequence[EncodedPrompt], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts in batches of similar length, longest first (memory trouble shows at once)."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: Sequence[int],
    implementation: Implementation,
    *,
    batch_size: int = 16,
    fixed_threshold: float | None = None,
    head_gates: dict[int, Tensor] | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, HeadReport]:
    """Label probabilities (N, C) float64 and head statistics of prompts with demonstrations, in one pass.

    Changes `model` to eval mode. `head_gates` are factors (H,) for the outputs of a layer's heads, 0 = off, by the layer's
    number in the model (not with eager attention). `progress` is called with the number of prompts done by each batch.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    check_output_logits(whole, inner)
    device = next(inner.parameters()).device
    probabilities = np.zeros((len(prompts), len(label_tokens)))
    totals: list[Tensor] | None = None
    extra: dict[str, object] = {}
    if head_gates is not None:
        if implementation != IMPLEMENTATION:
            raise AbftError("heads cannot be switched off in a model family that ignores transformers' attention interface")
        extra["head_gates"] = head_gates
    with row_attention(model, implementation):
        for indices in bucketed(prompts, batch_size):
            batch = Batch(**{n: t.to(device) for n, t in collate([prompts[i] for i in indices]).items()})
            rows, hidden = read_rows(inner, batch.input_ids, batch.query_positions, implementation, **extra)
            probabilities[indices] = _scores(whole, hidden, batch.query_positions, label_tokens)
            heads = head_statistics(rows, batch, fixed_threshold)
            sums = [t.cpu().double().sum(1) for t in (heads.induction, heads.right, heads.wrong)]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
            if progress:
                progress(len(indices))
    assert totals is not None, "no prompts"
    return probabilities, HeadReport(*(total.numpy() / len(prompts) for total in totals))


@torch.no_grad()
def label_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: Sequence[int],
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Label probabilities (N, C) float64, with stock attention. Changes `model` to eval mode.

    The longest common beginning of all prompts (the demonstrations, when they are shared) is run once and its
    key-value cache reused.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    check_output_logits(whole, inner)
    device = next(inner.parameters()).device
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    prefix_cache = None
    if shared >= MIN_SHARED_TOKENS and attends_to_everything(model):
        prefix = torch.tensor([prompts[0].input_ids[:shared]], device=device)
        prefix_cache = inner(input_ids=prefix, use_cache=True, past_key_values=DynamicCache()).past_key_values
    else:
        shared = 0
    probabilities = np.zeros((len(prompts), len(label_tokens)))
    for indices in bucketed(prompts, batch_size):
        tails = [prompts[i].input_ids[shared:] for i in indices]
        lengths = torch.tensor([len(tail) for tail in tails], device=device)
        ids = torch.zeros(len(tails), int(lengths.max()), dtype=torch.long, device=device)
        for b, tail in enumerate(tails):
            ids[b, : len(tail)] = torch.tensor(tail, device=device)
        cache = _repeated(prefix_cache, len(tails)) if prefix_cache is not None else None
        hidden = inner(input_ids=ids, past_key_values=cache, use_cache=cache is not None)[0]
        probabilities[indices] = _scores(whole, hidden, lengths - 1, label_tokens)
        if progress:
            progress(len(indices))
    return probabilities


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    max_length: int = 512,
) -> float:
    """exp of the mean negative log-likelihood of the texts' tokens, in which longer texts count more; stock attention.

    Changes `model` to eval mode. A text's first token is not predicted; texts are cut at `max_length` tokens.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    check_output_logits(whole, inner)
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
        total += torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum").item()
        count += len(targets)
    if count == 0:
        raise AbftError("perplexity needs a text of at least 2 tokens")
    return math.exp(total / count)


def _scores(whole: PreTrainedModel, hidden_BSD: Tensor, positions_B: Tensor, label_tokens: Sequence[int]) -> np.ndarray:
    """Label probabilities (B, C) at one position of each prompt."""
    logits = output_logits(whole, at_positions(hidden_BSD, positions_B), label_tokens)
    return logits.cpu().double().softmax(-1).numpy()


def common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """Tokens with which all prompts begin, at most one less than the shortest prompt."""
    first, last = min(p.input_ids for p in prompts), max(p.input_ids for p in prompts)
    limit = min(len(p.input_ids) for p in prompts) - 1
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same


def _repeated(cache: DynamicCache, times: int) -> DynamicCache:
    copies = [(layer.keys.repeat(times, 1, 1, 1), layer.values.repeat(times, 1, 1, 1)) for layer in cache.layers]
    repeated = DynamicCache()
    for index, (keys, values) in enumerate(copies):
        repeated.update(keys, values, index)
    return repeated
