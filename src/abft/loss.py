"""Eq. 1 of the paper: the loss on one head's attention to the demonstrations' label tokens."""

from torch import Tensor


def label_mass(label_attention_LBHK: Tensor, correct_BK: Tensor, wrong_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Attention on right label tokens (sum over I+) and on wrong ones (sum over I-), each (L, B, H)."""
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
