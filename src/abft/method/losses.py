"""Eq. 1 of the paper, the loss on one head's attention to the demonstrations' label tokens, and the
vote of all heads.
"""

import torch
from torch import Tensor


def label_mass(
    label_attention_LBHK: Tensor, correct_BK: Tensor, wrong_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention on right label tokens (sum over I+) and on wrong ones (sum over I-), each (L, B,
    H).
    """
    right = (label_attention_LBHK * correct_BK[None, :, None, :]).sum(-1)
    wrong = (label_attention_LBHK * wrong_BK[None, :, None, :]).sum(-1)
    return right, wrong


def head_loss(right_LBH: Tensor, wrong_LBH: Tensor, A: float, B: float) -> Tensor:
    """L = A * sum_{I-} alpha + B * (1 - sum_{I+} alpha), for every head (Eq. 1).

    Args:
        right_LBH: attention on label tokens equal to the query's label, (L, B, H).
        wrong_LBH: attention on the other label tokens, (L, B, H).
        A: weight of the punishment of wrong labels, >= 0.
        B: weight of the reward of right labels, >= 0.

    Returns:
        (L, B, H), before the head filter.
    """
    return A * wrong_LBH + B * (1 - right_LBH)


def vote_loss(right_LBH: Tensor, wrong_LBH: Tensor, divided_B: Tensor) -> Tensor:
    """Mean over prompts of -log(R / (R + W)), with R and W the attention of all heads and layers on
    right and wrong labels.

    Args:
        right_LBH, wrong_LBH: what `label_mass` returned, (L, B, H).
        divided_B: prompts that show both kinds of label, (B,) bool; the others count 0.

    Returns:
        A scalar. A model that looks at all demonstrations alike has -log of the share of right
        ones.
    """
    tiny = torch.finfo(right_LBH.dtype).tiny
    right, wrong = right_LBH.sum((0, 2)), wrong_LBH.sum((0, 2))
    # Prompts without a vote become 1 : 0 before the logarithm, so that no gradient of theirs is
    # infinite.
    right = torch.where(divided_B.to(right.device), right.clamp_min(tiny), 1.0)
    wrong = torch.where(divided_B.to(right.device), wrong, 0.0)
    return (torch.log(right + wrong) - torch.log(right)).mean()
