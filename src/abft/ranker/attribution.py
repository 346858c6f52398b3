"""Measure which spans of a prompt heads look at, and whether the answer depends on them."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from abft.method.head_statistics import span_sums
from abft.scoring.inspect import attention_rows

RANDOM_ORDERS = 8


@dataclass(frozen=True)
class DeletionCurve:
    """How removing spans changes the probability of the whole prompt's most probable next token.

    Attributes:
        by_attention: the token's log-probability after 0, 1, ... of the spans were removed, those
            that the heads look at most first, (K + 1,).
        at_random: the same for removal in random order, mean over several orders, (K + 1,).
    """

    by_attention: np.ndarray
    at_random: np.ndarray

    @property
    def faithfulness(self) -> float:
        """Return how much more removal by attention lowers the log-probability than removal at
        random, in nats: a mean over all steps but the first and the last, which are the same for
        every order.

        Above 0: the answer depends on what the heads look at.
        """
        return float((self.at_random - self.by_attention)[1:-1].mean())


def attribute(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    spans: Sequence[tuple[int, int]],
    heads: Collection[tuple[int, int]] | None = None,
) -> np.ndarray:
    """Return each span's share of the attention that the last token pays to all spans, (K,).

    Args:
        model: a causal LM.
        tokenizer: a fast one.
        prompt: the text, from whose last token the heads look.
        spans: (start, end) in characters, `end` excluded, in order.
        heads: (layer, head) pairs that are read; None = all.

    Raises:
        ValueError: spans that overlap, are empty or outside the prompt, or hold no token; no heads.
    """
    _check(prompt, spans)
    if heads is not None and not heads:
        raise ValueError("expected at least one head")
    encoding = tokenizer(prompt, return_offsets_mapping=True)
    starts, ends = zip(*(_tokens(encoding["offset_mapping"], span) for span in spans), strict=True)
    rows_LHS = attention_rows(model, [encoding["input_ids"]])[:, 0].cpu()
    sums_LHK = span_sums(rows_LHS, torch.tensor([starts]), torch.tensor([ends])).double()
    read = sums_LHK.flatten(0, 1)
    if heads is not None:
        read = torch.stack([sums_LHK[layer, head] for layer, head in heads])
    total_K = read.sum(0).numpy()
    return total_K / max(total_K.sum(), np.finfo(float).tiny)


def deletion_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    spans: Sequence[tuple[int, int]],
    heads: Collection[tuple[int, int]] | None = None,
    seed: int = 0,
) -> DeletionCurve:
    """Remove spans one after another, and measure how probable the answer stays.

    The answer is the most probable next token of the whole prompt. Arguments and errors are as for
    `attribute`; at least two spans.
    """
    if len(spans) < 2:
        raise ValueError(f"got {len(spans)} spans; expected at least 2")
    _check(prompt, spans)
    if not tokenizer(_without(prompt, spans))["input_ids"]:
        raise ValueError("nothing would be left of the prompt: leave its end out of the spans")
    shares_K = attribute(model, tokenizer, prompt, spans, heads)
    answer = int(_log_probabilities(model, tokenizer, prompt).argmax())

    def curve(order: Sequence[int]) -> list[float]:
        values = []
        for count in range(len(order) + 1):
            left = _without(prompt, [spans[i] for i in order[:count]])
            values.append(float(_log_probabilities(model, tokenizer, left)[answer]))
        return values

    generator = random.Random(seed)
    everything = range(len(spans))
    orders = [generator.sample(everything, len(spans)) for _ in range(RANDOM_ORDERS)]
    return DeletionCurve(
        np.array(curve(np.argsort(-shares_K, kind="stable").tolist())),
        np.mean([curve(order) for order in orders], 0),
    )


def _check(prompt: str, spans: Sequence[tuple[int, int]]) -> None:
    bounds = [bound for span in spans for bound in span]
    ordered = bounds == sorted(bounds) and all(start < end for start, end in spans)
    if not bounds or not ordered or bounds[0] < 0 or bounds[-1] > len(prompt):
        raise ValueError(
            f"spans {list(spans)}: expected non-empty ones in order inside of {len(prompt)} "
            "characters"
        )


def _tokens(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
    """Return the first token of a span and the one after its last.

    A token that begins before a span and ends in it, such as one with the space before a word,
    belongs to it.
    """
    inside = [i for i, (a, b) in enumerate(offsets) if b > max(a, span[0]) and b <= span[1]]
    if not inside:
        raise ValueError(f"span {span} holds no token")
    return inside[0], inside[-1] + 1


def _without(prompt: str, spans: Sequence[tuple[int, int]]) -> str:
    for start, end in sorted(spans, reverse=True):
        prompt = prompt[:start] + prompt[end:]
    return prompt


@torch.no_grad()
def _log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> torch.Tensor:
    """Return log-probabilities of the next token, (V,)."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=next(model.parameters()).device)
    return model.eval()(ids).logits[0, -1].cpu().double().log_softmax(-1)
