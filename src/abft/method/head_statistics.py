"""Compute attention on correct and incorrect labels, head by head, from a batch's rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from abft.data.batches import Batch
from abft.method.heads import induction_mask, threshold
from abft.method.losses import label_mass


@dataclass
class HeadStatistics:
    """Where the heads of a batch look from the query positions, (L, P, H) each."""

    correct: Tensor  # attention on correct label tokens
    incorrect: Tensor  # attention on incorrect label tokens
    induction: Tensor  # bool: the head passes the filter for the prompt
    labels: Tensor  # attention on each label token, (L, P, H, K)


def head_statistics(
    rows: tuple[Tensor, ...], batch: Batch, fixed_threshold: float | None = None
) -> HeadStatistics:
    """Read the attention on labels from rows, (P, H, S) for each layer, and filter the heads."""
    label_attention_LPHK = label_attention(rows, batch)
    device = label_attention_LPHK.device
    candidates_PK = batch.candidates.to(device)

    threshold_P = threshold(batch.lengths.to(device), candidates_PK.sum(-1), fixed_threshold)

    correct, incorrect = label_mass(
        label_attention_LPHK, batch.correct.to(device), batch.incorrect.to(device)
    )
    induction = induction_mask(label_attention_LPHK, threshold_P)
    return HeadStatistics(correct, incorrect, induction, label_attention_LPHK)


def label_attention(rows: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """Return alpha_i of Eq. 1, the entries of the rows at the label positions, (L, P, H, K).

    For candidates that are spans, it is summed over their tokens. 0 where a prompt has fewer than K
    candidates.
    """
    device = rows[0].device  # layers may be on several
    alphas = []
    for rows_PHS in rows:
        if batch.label_ends is None:
            values_PHK = _at(rows_PHS, batch.label_positions)
        else:
            values_PHK = span_sums(rows_PHS, batch.label_positions, batch.label_ends)
        alphas.append(values_PHK.to(device))
    return torch.stack(alphas) * batch.candidates.to(device)[None, :, None, :]


def span_sums(rows_PHS: Tensor, starts_PK: Tensor, ends_PK: Tensor) -> Tensor:
    """Return the attention of every head on spans of tokens, summed over their tokens, (P, H, K).

    If `starts_PK` has only one row, its spans are used for all prompts.
    """
    running = torch.nn.functional.pad(rows_PHS.cumsum(-1), (1, 0))
    return _at(running, ends_PK) - _at(running, starts_PK)


def _at(rows_PHS: Tensor, positions_PK: Tensor) -> Tensor:
    """Return the entries of every head's row at each prompt's positions, (P, H, K)."""
    positions_P1K = positions_PK.to(rows_PHS.device)[:, None, :]
    return rows_PHS.gather(-1, positions_P1K.expand(len(rows_PHS), rows_PHS.shape[1], -1))


@torch.no_grad()
def mass_metrics(heads: HeadStatistics, counted_LPH: Tensor) -> dict[str, Tensor]:
    """Return means over prompts, for the log.

    They are the number of heads over the threshold, and the attention of the counted heads on
    correct and on incorrect labels, summed over heads.
    """
    prompts = counted_LPH.shape[1]
    return {
        "heads": heads.induction.sum() / prompts,
        "correct_mass": (heads.correct * counted_LPH).sum() / prompts,
        "incorrect_mass": (heads.incorrect * counted_LPH).sum() / prompts,
    }
