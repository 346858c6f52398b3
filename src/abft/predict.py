"""Label probabilities for encoded prompts, with head statistics from the same forward pass.

Only the label words' logits at the query position are computed; demonstrations that all prompts share are run once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from abft.attention import Implementation, causal_lm, decoder, read_rows, row_attention
from abft.errors import AbftError
from abft.objective import head_statistics
from abft.prompts import Batch, EncodedPrompt, collate

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


def label_logits(model: PreTrainedModel, hidden_BD: Tensor, label_tokens: Sequence[int]) -> Tensor:
    """Logits of the label tokens only, (B, C) float32, from the decoder's last hidden state.

    Applies what families put between LM head and logits: a scale (Cohere, Granite) and a soft cap (Gemma 2).
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    rows_CD = head.weight[list(label_tokens)]
    logits = hidden_BD.to(rows_CD.device, rows_CD.dtype) @ rows_CD.T
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[list(label_tokens)]
    logits = logits.float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: Sequence[int],
    implementation: Implementation,
    *,
    batch_size: int = 16,
    fixed_threshold: float | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, HeadReport]:
    """Label probabilities (N, C) float64 and head statistics of prompts with demonstrations, in one pass.

    Changes `model` to eval mode. `progress` is called with the number of prompts done by each batch.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    _check_label_logits(whole, inner, label_tokens)
    device = next(inner.parameters()).device
    probabilities = np.zeros((len(prompts), len(label_tokens)))
    totals: list[Tensor] | None = None
    with row_attention(model, implementation):
        for indices in bucketed(prompts, batch_size):
            batch = Batch(**{n: t.to(device) for n, t in collate([prompts[i] for i in indices]).items()})
            rows, hidden = read_rows(inner, batch.input_ids, batch.query_positions, implementation)
            probabilities[indices] = _at_positions(whole, hidden, batch.query_positions, label_tokens)
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
    _check_label_logits(whole, inner, label_tokens)
    device = next(inner.parameters()).device
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    prefix_cache = None
    if shared >= MIN_SHARED_TOKENS and _has_plain_cache(model):
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
        probabilities[indices] = _at_positions(whole, hidden, lengths - 1, label_tokens)
        if progress:
            progress(len(indices))
    return probabilities


def _at_positions(whole: PreTrainedModel, hidden_BSD: Tensor, positions_B: Tensor, label_tokens: Sequence[int]) -> np.ndarray:
    """Label probabilities (B, C) at one position of each prompt."""
    at_query = hidden_BSD[torch.arange(len(positions_B), device=hidden_BSD.device), positions_B.to(hidden_BSD.device)]
    return label_logits(whole, at_query, label_tokens).cpu().double().softmax(-1).numpy()


def common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """Tokens with which all prompts begin, at most one less than the shortest prompt."""
    first, last = min(p.input_ids for p in prompts), max(p.input_ids for p in prompts)
    limit = min(len(p.input_ids) for p in prompts) - 1
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same


def _has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether all layers keep every key and value (no sliding window, no recurrent state)."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


def _repeated(cache: DynamicCache, times: int) -> DynamicCache:
    copies = [(layer.keys.repeat(times, 1, 1, 1), layer.values.repeat(times, 1, 1, 1)) for layer in cache.layers]
    repeated = DynamicCache()
    for index, (keys, values) in enumerate(copies):
        repeated.update(keys, values, index)
    return repeated


def _check_label_logits(whole: PreTrainedModel, inner: nn.Module, label_tokens: Sequence[int]) -> None:
    """Raise AbftError where a family computes logits in a way that `label_logits` does not know; two tokens tell."""
    ids = torch.tensor([[3, 4]], device=next(inner.parameters()).device)
    full = whole(input_ids=ids, use_cache=False).logits[0, -1:, list(label_tokens)].float()
    ours = label_logits(whole, inner(input_ids=ids, use_cache=False)[0][:, -1], label_tokens).to(full.device)
    if (ours - full).abs().max() > 0.02 * max(1.0, full.abs().max().item()):
        raise AbftError(
            f"model family {whole.config.model_type!r} computes its logits in a way this package does not know; "
            "please report the family"
        )
