"""Label probabilities for encoded prompts, with head statistics from the same forward pass.

Only the label words' logits at the query position are computed; what all prompts begin with alike is run once.
"""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from abft.attention import (
    IMPLEMENTATION,
    Implementation,
    branch_mask,
    can_pack,
    causal_lm,
    decoder,
    positions_depend_on_length,
    read_rows,
    row_attention,
)
from abft.errors import AbftError
from abft.labels import LabelTree
from abft.logits import at_positions, check_output_logits, output_logits
from abft.objective import head_statistics
from abft.prompts import Batch, EncodedPrompt, LabelTokens, collate, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_SHARED_TOKENS = 16  # shorter common beginnings are not worth a cache
PACK_TOKENS = 2048  # in one packed sequence, whose mask grows with the square


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
    if batch_size < 1:
        raise AbftError(f"batch_size = {batch_size}: expected at least 1")
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def refuse_ruined(probabilities: np.ndarray) -> None:
    """Raise AbftError for probabilities that are not finite: whatever is made of them would mean nothing."""
    if not np.isfinite(probabilities).all():
        raise AbftError(
            "the label probabilities are not finite: the weights are ruined, or half precision is too narrow. Start over with "
            "a smaller learning rate, or in float32."
        )


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: LabelTokens,
    implementation: Implementation,
    *,
    batch_size: int = 16,
    fixed_threshold: float | None = None,
    head_gates: dict[int, Tensor] | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, HeadReport]:
    """Label probabilities (N, C) float64 and head statistics of prompts with demonstrations, in one pass.

    Changes `model` to eval mode. `implementation` is how rows are read: `supported_implementation(model)`. `fixed_threshold`
    replaces k / (k + ln n) for all prompts. `head_gates` are factors (H,) for the outputs of a layer's heads, 0 = off, by the
    layer's number in the model (not with eager attention). `progress` is called with the number of prompts done by each batch.

    Raises:
        AbftError: no prompts, or `head_gates` with a family whose heads cannot be switched off.
    """
    if not prompts:
        raise AbftError("no prompts to evaluate")
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    check_output_logits(whole, inner)
    device = next(inner.parameters()).device
    tree = LabelTree.of(label_tokens)
    nodes = len(tree.beginnings)
    together = nodes if nodes > 1 and implementation == IMPLEMENTATION and can_pack(model) else 1
    probabilities = np.zeros((len(prompts), len(label_tokens)))
    totals: list[Tensor] | None = None
    extra: dict[str, object] = {}
    if head_gates is not None:
        if implementation != IMPLEMENTATION:
            raise AbftError("heads cannot be switched off in a model family that ignores transformers' attention interface")
        extra["head_gates"] = head_gates
    with row_attention(model, implementation):
        for indices in bucketed(prompts, batch_size):
            asked = [prompts[i] for i in indices]
            batch = Batch(**{n: t.to(device) for n, t in collate(tree.extended(asked), together).items()})
            inputs = {**batch.model_inputs(), **extra}
            rows, hidden = read_rows(inner, batch.input_ids, batch.query_positions, implementation, **inputs)
            probabilities[indices] = tree.probabilities(whole, at_positions(hidden, batch.query_positions))
            plain = batch if nodes == 1 else Batch(**{n: t.to(device) for n, t in collate(asked).items()})
            heads = head_statistics(tuple(row[::nodes] for row in rows), plain, fixed_threshold)
            sums = [t.cpu().double().sum(1) for t in (heads.induction, heads.right, heads.wrong)]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
            if progress:
                progress(len(indices))
    assert totals is not None
    return probabilities, HeadReport(*(total.numpy() / len(prompts) for total in totals))


class LabelScorer:
    """Label probabilities of prompts, with stock attention, on one model. Changes `model` to eval mode.

    What all prompts of a call begin with alike, the demonstrations above all, is run once. Its keys and values are kept for
    the next call, if that begins in the same way, and the rests follow them packed in one sequence. They are run again after
    weights were trained or loaded; after switching a PEFT adapter, or writing through `.data`, call `forget()`.

    Args:
        model: a causal LM.
        label_tokens: the token, or tokens, of every class.
    """

    def __init__(self, model: PreTrainedModel, label_tokens: LabelTokens) -> None:
        model.eval()
        self.model, self.labels = model, LabelTree.of(label_tokens)
        self.inner, self.whole = decoder(model), causal_lm(model)
        check_output_logits(self.whole, self.inner)
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Drop what is kept: the next call runs it again."""
        self._kept: tuple[object, ...] = ()
        self._keys_values: list[tuple[Tensor, Tensor]] = []  # of what is kept, for every layer, each (1, Hkv, len, D)

    @functools.cached_property
    def keeps(self) -> bool:
        """Whether this model family allows to run a common beginning once."""
        return can_pack(self.model) and not positions_depend_on_length(self.model)

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[EncodedPrompt],
        *,
        shared: int | None = None,
        batch_size: int = 16,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Label probabilities (N, C) float64.

        `shared`: keep no more than so many tokens, because later prompts will share no more; default: all that these prompts
        begin with alike, and nothing of a single one. `progress` is called with the number of prompts done by each batch.

        Raises:
            AbftError: probabilities that are not finite.
        """
        probabilities = np.zeros((len(prompts), len(self.labels.labels)))
        if not prompts:
            return probabilities
        if shared is None:
            shared = 0 if len(prompts) == 1 else len(prompts[0].input_ids)
        shared = min(shared, common_prefix(prompts))
        worth = shared >= max(MIN_SHARED_TOKENS, max(len(prompt.input_ids) for prompt in prompts) // 4)
        with self._lock:
            self.model.eval()
            if keeping := worth and self.keeps:
                self._keep(prompts[0].input_ids[:shared])
            for indices in bucketed(prompts, batch_size):
                batch = self.labels.extended([prompts[i] for i in indices])
                hidden_PD = self._after_shared(batch, shared) if keeping else self._alone(batch, batch_size)
                probabilities[indices] = self.labels.probabilities(self.whole, hidden_PD)
                if progress:
                    progress(len(indices))
        refuse_ruined(probabilities)
        return probabilities

    @property
    def _device(self) -> torch.device:
        return next(self.inner.parameters()).device

    def _alone(self, prompts: Sequence[EncodedPrompt], batch_size: int) -> Tensor:
        """Hidden states of the query positions, (P, D), of right-padded prompts."""
        found = []
        for start in range(0, len(prompts), batch_size):
            batch = collate(prompts[start : start + batch_size])
            hidden = self.inner(input_ids=batch["input_ids"].to(self._device), use_cache=False)[0]
            found.append(at_positions(hidden, batch["query_positions"]))
        return torch.cat(found)

    def _after_shared(self, prompts: Sequence[EncodedPrompt], start: int) -> Tensor:
        """The same, of prompts whose first `start` tokens are kept."""
        rests = [dataclasses.replace(prompt, input_ids=prompt.input_ids[start:], label_positions=()) for prompt in prompts]
        nodes = len(self.labels.beginnings)  # a prompt's own tokens stand once, a label's beginnings after them
        longest = max(len(rest.input_ids) for rest in rests) + sum(map(len, self.labels.beginnings))
        size = max(1, PACK_TOKENS // longest) * nodes
        return torch.cat([self._packed(rests[i : i + size], start) for i in range(0, len(rests), size)])

    def _packed(self, prompts: Sequence[EncodedPrompt], start: int) -> Tensor:
        rests = pack(prompts)
        own = branch_mask(torch.tensor([rests.branch_ends], device=self._device))
        mask = torch.cat([own.new_ones(1, 1, own.shape[2], start), own], dim=-1)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._keys_values):
            cache.update(keys, values, layer)
        stock = self.whole.config._attn_implementation == "sdpa"
        with contextlib.nullcontext() if stock else row_attention(self.model):  # SDPA: eager attention wants another mask
            hidden = self.inner(
                input_ids=torch.tensor([rests.input_ids], device=self._device),
                position_ids=torch.tensor([rests.position_ids], device=self._device) + start,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )[0]
        return hidden[0, [places[-1] for places in rests.places]]

    def _keep(self, ids: tuple[int, ...]) -> None:
        weights = tuple((id(p), p._version, p.device) for p in self.inner.parameters())  # writing in place raises the version
        if (ids, weights) != self._kept:
            inputs = torch.tensor([ids], device=self._device)
            cache = self.inner(input_ids=inputs, use_cache=True, past_key_values=DynamicCache()).past_key_values
            self._keys_values = [(layer.keys, layer.values) for layer in cache.layers]
            self._kept = (ids, weights)


def label_probabilities(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: LabelTokens,
    *,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Label probabilities (N, C) float64, with stock attention, once: see `LabelScorer`. Changes `model` to eval mode."""
    return LabelScorer(model, label_tokens)(prompts, batch_size=batch_size, progress=progress)


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


def common_prefix(prompts: Sequence[EncodedPrompt]) -> int:
    """Tokens with which all prompts begin, at most one less than the shortest prompt."""
    first, last = min(p.input_ids for p in prompts), max(p.input_ids for p in prompts)
    limit = min(len(p.input_ids) for p in prompts) - 1  # the query position itself is always run
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same
