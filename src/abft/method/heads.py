"""The induction-head filter: which heads count, prompt by prompt (arXiv 2505.14233, section 3)."""

import torch
from torch import Tensor


def threshold(length_P: Tensor, demonstrations_P: Tensor, fixed: float | None = None) -> Tensor:
    """Return T = k / (k + ln n), the attention on labels above which a head is an induction head.

    Args:
        length_P: n, tokens in each prompt, (P,).
        demonstrations_P: k, demonstrations in each prompt, (P,).
        fixed: replaces T for all prompts.

    Returns:
        T, (P,) float32 in (0, 1).
    """
    k = demonstrations_P.float()
    if fixed is not None:
        return torch.full_like(k, fixed)
    return k / (k + torch.log(length_P.float()))


def induction_mask(label_attention_LPHK: Tensor, threshold_P: Tensor) -> Tensor:
    """Select the heads whose attention on all label tokens together, S = sum_I alpha, exceeds T.

    Args:
        label_attention_LPHK: alpha at the K label positions, (L, P, H, K); 0 where a prompt has
            fewer than K.
        threshold_P: T for each prompt, (P,).

    Returns:
        True where the head is an induction head *for that prompt*, (L, P, H) bool. No gradient
        flows through it.
    """
    mass_LPH = label_attention_LPHK.detach().sum(-1)
    return mass_LPH > threshold_P[None, :, None]
