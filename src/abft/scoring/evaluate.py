"""Compute label probabilities of encoded prompts, and head statistics from the same forward pass.

Only the label tokens' logits at the query position are computed. If a label is several tokens, a
prompt and the beginnings of labels after it are packed into one sequence.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from abft.data.batches import Batch, at_positions, collate
from abft.data.encoding import EncodedPrompt, LabelTokens
from abft.errors import AbftError
from abft.method.head_statistics import head_statistics
from abft.method.settings import Readout
from abft.model.attention import (
    IMPLEMENTATION,
    causal_lm,
    decoder,
    lock_of,
    read_batch,
    row_attention,
)
from abft.model.capabilities import capabilities, check_lengths, rotation_limit
from abft.scoring.label_tree import LabelTree
from abft.scoring.votes import vote


@dataclass(frozen=True)
class HeadReport:
    """Holds means over prompts, for each layer and head."""

    induction_rate_LH: np.ndarray  # share of prompts for which the head passes the filter
    correct_mass_LH: np.ndarray  # attention on correct label tokens
    incorrect_mass_LH: np.ndarray  # attention on incorrect label tokens

    @property
    def heads(self) -> float:
        """Return the number of heads over the threshold, mean over prompts."""
        return float(self.induction_rate_LH.sum())


def bucketed(
    prompts: Sequence[EncodedPrompt], batch_size: int, rotation_limit: int | None = None
) -> Iterator[list[int]]:
    """Yield indices of prompts in batches of similar length, longest first.

    So a batch that is too large for the memory fails at once. `rotation_limit`: length above which
    the model rotates keys differently; prompts below and above it are not batched together, so that
    padding changes none.
    """
    if batch_size < 1:
        raise AbftError(f"batch_size = {batch_size}: expected at least 1")

    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids))
    limit = math.inf if rotation_limit is None else rotation_limit
    longer = sum(len(prompt.input_ids) > limit for prompt in prompts)
    for kind in (order[:longer], order[longer:]):
        for start in range(0, len(kind), batch_size):
            yield kind[start : start + batch_size]


def last_hidden(
    inner: nn.Module,
    prompts: Sequence[EncodedPrompt],
    batch_size: int,
    rotation_limit: int | None = None,
    **inputs: object,
) -> Tensor:
    """Return the decoder's hidden states at the query positions, (P, D); see `bucketed`.

    `inputs`: what the decoder is called with besides the ids.
    """
    device = next(inner.parameters()).device
    order: list[int] = []
    hidden = []
    for indices in bucketed(prompts, batch_size, rotation_limit):
        batch = collate([prompts[i] for i in indices])
        hidden_BSD = inner(input_ids=batch["input_ids"].to(device), use_cache=False, **inputs)[0]
        hidden.append(at_positions(hidden_BSD, batch["query_positions"]))
        order += indices

    # Back in the order of the prompts.
    return torch.cat(hidden)[torch.tensor(order).argsort()]


def check_finite(probabilities: np.ndarray) -> None:
    """Raise AbftError unless all probabilities are finite; otherwise metrics mean nothing."""
    if not np.isfinite(probabilities).all():
        raise AbftError(
            "the label probabilities are not finite: the weights are corrupted, or half precision "
            "is too narrow. Start over with a smaller learning rate, or in float32."
        )


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    label_tokens: LabelTokens,
    *,
    batch_size: int = 16,
    fixed_threshold: float | None = None,
    head_gates: dict[int, Tensor] | None = None,
    readout: Readout = "label_words",
    heads_LH: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, HeadReport]:
    """Return label probabilities (N, C) float64 and head statistics, from one forward pass.

    Changes `model` to eval mode.

    Args:
        model: a causal LM, or a PEFT model around one.
        prompts: encoded prompts with demonstrations.
        label_tokens: the token, or tokens, of every class; see `label_tokens`.
        batch_size: prompts in a forward pass.
        fixed_threshold: replaces T = k / (k + ln n) for all prompts.
        head_gates: factors (H,) for the outputs of a layer's heads, 0 = off, by the layer's number
            in the model (not with eager attention).
        readout: "attention": the share of each class in the attention on labels takes the place of
            the probability of its label word.
        heads_LH: the heads whose attention is read, bool; None = all.
        progress: called after each batch with its number of prompts.

    Raises:
        AbftError: no prompts, or `head_gates` with a family whose heads cannot be switched off.
    """
    if not prompts:
        raise AbftError("no prompts to evaluate")

    supported = capabilities(model)
    supported.check_lm_head()
    check_lengths(model, max(len(prompt.input_ids) for prompt in prompts))
    implementation = supported.implementation
    if head_gates is not None and implementation != IMPLEMENTATION:
        raise AbftError(
            "heads cannot be switched off in a model family that ignores transformers' attention "
            "interface"
        )
    extra: dict[str, object] = {} if head_gates is None else {"head_gates": head_gates}

    # Rows and hidden states come from the decoder; the LM head is applied to label tokens only.
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    device = next(inner.parameters()).device

    # A label of several tokens needs the hidden states after each of its beginnings too.
    tree = LabelTree.of(label_tokens)
    nodes = len(tree.beginnings) if readout == "label_words" else 1
    # The beginnings of labels follow a prompt in one sequence if the model packs, and if that
    # changes no rotation.
    limit = rotation_limit(model)
    packed = nodes > 1 and implementation == IMPLEMENTATION and supported.packs and limit is None

    probabilities = np.zeros((len(prompts), len(label_tokens)))
    totals: list[Tensor] | None = None
    with lock_of(model), row_attention(model, implementation):
        for indices in bucketed(prompts, batch_size, limit):
            bucket = [prompts[i] for i in indices]
            extended = tree.extended(bucket) if nodes > 1 else bucket
            batch = Batch.of(extended if packed else bucket, nodes if packed else 1, device)
            rows, hidden = read_batch(inner, batch, implementation, **extra)

            if packed or nodes == 1:
                hidden_PD = at_positions(hidden, batch.query_positions)
            else:
                hidden_PD = last_hidden(inner, extended, batch_size, limit, **extra)
            if readout == "label_words":
                probabilities[indices] = tree.probabilities(whole, hidden_PD)

            # Head statistics are of the prompts alone: each prompt is the first of its nodes.
            plain = Batch.of(bucket, 1, device) if packed else batch
            plain_rows = tuple(rows_PHS[::nodes] for rows_PHS in rows) if packed else rows
            heads = head_statistics(plain_rows, plain, fixed_threshold)
            statistics = (heads.induction, heads.correct, heads.incorrect)
            if readout == "attention":
                for p, i in enumerate(indices):
                    shown = prompts[i].label_classes
                    on_labels_LHK = heads.labels[:, p, :, : len(shown)]
                    probabilities[i] = vote(on_labels_LHK, shown, len(label_tokens), heads_LH)

            # Sums in float64, divided at the end: batches differ in size.
            sums = [values_LPH.cpu().double().sum(1) for values_LPH in statistics]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]

            if progress:
                progress(len(indices))

    assert totals is not None
    return probabilities, HeadReport(*(total.numpy() / len(prompts) for total in totals))
