"""The induction-head filter: which heads count, prompt by prompt (arXiv 2505.14233, section 3)."""

import torch
from torch import Tensor


def threshold(length_B: Tensor, demonstrations_B: Tensor) -> Tensor:
    """T = k / (k + ln n): the share of attention on label tokens above which a head is an induction
    head.

    Args:
        length_B: n, tokens in each prompt, (B,).
        demonstrations_B: k, demonstrations in each prompt, (B,).

    Returns:
        T, (B,) float32 in (0, 1).
    """
    k = demonstrations_B.float()
    return k / (k + torch.log(length_B.float()))


def induction_mask(label_attention_LBHK: Tensor, threshold_B: Tensor) -> Tensor:
    """Heads whose attention on all label tokens together, S = sum_I alpha, exceeds T.

    Args:
        label_attention_LBHK: alpha at the K label positions; 0 where a prompt has fewer than K, (L,
            B, H, K).
        threshold_B: T for each prompt, (B,).

    Returns:
        True where the head is an induction head *for that prompt*, (L, B, H) bool. No gradient
        flows through it.
    """
    mass_LBH = label_attention_LBHK.detach().sum(-1)
    return mass_LBH > threshold_B[None, :, None]
