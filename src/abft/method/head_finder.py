"""Find the heads that already look at correct demonstrations, to train or read only a few.

The score is QRHead's (arXiv 2506.09944) with a contrast as in CoRe (arXiv 2510.02219): attention on
a correct label minus attention on an incorrect one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from abft.data.batches import Batch
from abft.data.encoding import EncodedPrompt
from abft.method.head_statistics import label_attention
from abft.model.attention import Implementation, decoder, read_batch, row_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FINDER_PROMPTS = 256


@torch.no_grad()
def head_scores(
    model: "PreTrainedModel",
    prompts: Sequence[EncodedPrompt],
    implementation: Implementation,
    queries: int = 1,
) -> Tensor:
    """Return the mean attention on a correct label minus that on an incorrect one, (L, H).

    Args:
        prompts: training prompts; those whose labels are all correct, or all incorrect, are not
            counted.
        implementation: how attention rows are read.
        queries: how many consecutive prompts are packed into one sequence.
    """
    inner = decoder(model)
    device = next(inner.parameters()).device
    total, count = None, 0
    with row_attention(model, implementation):
        for start in range(0, len(prompts), queries):
            batch = Batch.of(prompts[start : start + queries], queries, device)
            rows, _ = read_batch(inner, batch, implementation)
            scores_LPH = _contrast(label_attention(rows, batch), batch).cpu()
            both_P = (batch.correct.any(-1) & batch.incorrect.any(-1)).cpu()
            sums_LH = scores_LPH[:, both_P].sum(1)
            total = sums_LH if total is None else total + sums_LH
            count += int(both_P.sum())
    assert total is not None
    return total / max(count, 1)


def _contrast(alpha_LPHK: Tensor, batch: Batch) -> Tensor:
    """Return the difference of the mean attention on the two kinds of label, (L, P, H)."""

    def mean(kind_PK: Tensor) -> Tensor:
        kind_P1K = kind_PK[:, None].to(alpha_LPHK.device)
        return (alpha_LPHK * kind_P1K).sum(-1) / kind_P1K.sum(-1).clamp_min(1)

    return mean(batch.correct) - mean(batch.incorrect)


def best_heads(scores_LH: Tensor, count: int) -> Tensor:
    """Return the `count` heads with the highest scores, (L, H) bool."""
    chosen = torch.zeros_like(scores_LH, dtype=torch.bool)
    chosen.view(-1)[scores_LH.flatten().topk(min(count, scores_LH.numel())).indices] = True
    return chosen


def best_layer(scores_LH: Tensor) -> Tensor:
    """Return all heads of the layer whose heads score highest together, (L, H) bool.

    Only the middle third of the layers is considered, from which BlockRank (arXiv 2510.05396) takes
    its one layer.
    """
    depth = len(scores_LH)
    first, last = depth // 3, max(2 * depth // 3, depth // 3 + 1)
    chosen = torch.zeros_like(scores_LH, dtype=torch.bool)
    chosen[first + int(scores_LH[first:last].sum(1).argmax())] = True
    return chosen
