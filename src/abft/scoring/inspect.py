"""Read attention rows and induction heads of any model and prompt, to look inside."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from abft.method.heads import induction_mask, threshold
from abft.model.attention import decoder, lock_of, read_rows, row_attention
from abft.model.capabilities import (
    check_lengths,
    eval_mode,
    rotation_limit,
    supported_implementation,
)


class HeadScores(NamedTuple):
    """Holds what `induction_heads` returns."""

    mask_LBH: Tensor  # bool: the head is an induction head for the prompt
    label_mass_LBH: Tensor  # its attention on all candidate positions together
    threshold_B: Tensor  # T


@torch.no_grad()
def attention_rows(
    model: PreTrainedModel,
    prompts: Tensor | Sequence[Sequence[int]],
    positions: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Return every head's attention from one position of each prompt, without n x n matrices.

    Args:
        model: a decoder-only causal LM; its own attention is back afterwards.
        prompts: token ids, (B, S), or B lists of any length.
        positions: for each prompt the position to look from; default: its last token.

    Returns:
        softmax(q K^T), (L, B, H, S) float32: layers that have softmax attention, prompts, heads,
        tokens looked at. Rows sum to 1 (less where a model has attention sinks); tokens after the
        position, and padding of shorter prompts, have 0.

    Raises:
        AbftError: a family without softmax attention; see docs/families.md. Prompts that are too
            long for the model.
        ValueError: no prompts, an empty one, or a position outside its prompt.
    """
    # Tensors and lists, of ids and of positions, become lists of numbers.
    lists = [list(map(int, ids)) for ids in prompts]
    ends = [len(ids) - 1 for ids in lists] if positions is None else [int(at) for at in positions]
    if not lists or not all(lists) or len(ends) != len(lists):
        raise ValueError(
            f"expected prompts of at least one token and a position each, got {len(lists)} and "
            f"{len(ends)}"
        )
    for ids, at in zip(lists, ends, strict=True):
        if not 0 <= at < len(ids):
            raise ValueError(f"position {at} is outside of a prompt of {len(ids)} tokens")

    longest = max(map(len, lists))
    check_lengths(model, longest)
    implementation = supported_implementation(model)
    inner = decoder(model)
    device = next(inner.parameters()).device

    # Beyond a limit, some models rotate the keys of all prompts of a batch differently.
    limit = rotation_limit(model)
    beyond_B = torch.tensor([limit is not None and len(ids) > limit for ids in lists])
    rows_LBHS: Tensor | None = None
    with lock_of(model), eval_mode(model), row_attention(model, implementation):
        for numbers in (beyond_B.nonzero().flatten(), (~beyond_B).nonzero().flatten()):
            if not len(numbers):
                continue
            # Padding follows each prompt, where causal attention never looks.
            together = [lists[b] for b in numbers.tolist()]
            padded = torch.zeros(len(together), max(map(len, together)), dtype=torch.long)
            for ids, row in zip(together, padded, strict=True):
                row[: len(ids)] = torch.tensor(ids)
            positions = torch.tensor(ends)[numbers].to(device)
            rows, _ = read_rows(inner, padded.to(device), positions, implementation)

            # Layers may be spread over devices.
            if rows_LBHS is None:
                shape = len(rows), len(lists), rows[0].shape[1], longest
                rows_LBHS = torch.zeros(shape, device=device)
            for row_BHS, layer_BHS in zip(rows, rows_LBHS, strict=True):
                layer_BHS[numbers, :, : padded.shape[1]] = row_BHS.to(device)
    assert rows_LBHS is not None
    return rows_LBHS


def induction_heads(
    rows_LBHS: Tensor,
    label_positions: Sequence[Sequence[int]],
    lengths: Sequence[int],
    fixed_threshold: float | None = None,
) -> HeadScores:
    """Return which heads look at the candidates: S > T with T = k / (k + ln n).

    This is the filter of arXiv 2505.14233, section 3. It works on rows from any source, such as
    `attention_rows` or another library's attention patterns.

    Args:
        rows_LBHS: attention from one position of each prompt, (L, B, H, S).
        label_positions: for each prompt the positions of its k label tokens, or of any other
            candidates.
        lengths: n, tokens in each prompt up to and with the position that the rows are of.
        fixed_threshold: replaces T.

    Raises:
        ValueError: numbers of prompts that differ, a prompt without candidates, or a position
            outside of the rows.
    """
    _, B, _, S = rows_LBHS.shape
    if not len(label_positions) == len(lengths) == B:
        raise ValueError(
            f"rows of {B} prompts, but label positions of {len(label_positions)} and lengths of "
            f"{len(lengths)}"
        )

    inside = all(0 <= at < S for positions in label_positions for at in positions)
    if not inside or not all(map(len, label_positions)):
        raise ValueError(f"every prompt needs label positions, each from 0 to {S - 1}")

    # Attention on other positions is set to 0, so that sums over S are sums over candidates.
    device = rows_LBHS.device
    candidates_BS = torch.zeros(B, S, dtype=rows_LBHS.dtype, device=device)
    for b, positions in enumerate(label_positions):
        candidates_BS[b, list(positions)] = 1
    on_labels_LBHS = rows_LBHS * candidates_BS[None, :, None]

    k_B = torch.tensor([len(positions) for positions in label_positions], device=device)
    lengths_B = torch.tensor(list(lengths), device=device)
    threshold_B = threshold(lengths_B, k_B, fixed_threshold)
    mask_LBH = induction_mask(on_labels_LBHS, threshold_B)
    return HeadScores(mask_LBH, on_labels_LBHS.sum(-1), threshold_B)
