"""Losses on attention to the demonstrations' labels: Eq. 1 of the paper, the vote, InfoNCE."""

import torch
from torch import Tensor


def label_mass(
    label_attention_LPHK: Tensor, correct_PK: Tensor, incorrect_PK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the attention on correct labels (sum over I+) and on incorrect ones (sum over I-).

    Both are (L, P, H).
    """
    correct = (label_attention_LPHK * correct_PK[None, :, None, :]).sum(-1)
    incorrect = (label_attention_LPHK * incorrect_PK[None, :, None, :]).sum(-1)
    return correct, incorrect


def head_loss(correct_LPH: Tensor, incorrect_LPH: Tensor, A: float, B: float) -> Tensor:
    """Return L = A * sum_{I-} alpha + B * (1 - sum_{I+} alpha) for every head (Eq. 1).

    Args:
        correct_LPH: attention on label tokens equal to the query's label, (L, P, H).
        incorrect_LPH: attention on the other label tokens, (L, P, H).
        A: weight of the punishment of incorrect labels, >= 0.
        B: weight of the reward of correct labels, >= 0.

    Returns:
        (L, P, H), before the head filter.
    """
    return A * incorrect_LPH + B * (1 - correct_LPH)


def vote_loss(correct_LPH: Tensor, incorrect_LPH: Tensor, both_P: Tensor) -> Tensor:
    """Return the mean over prompts of -log(R / (R + W)).

    R and W are the attention of all heads of all layers on correct and on incorrect labels.

    Args:
        correct_LPH, incorrect_LPH: what `label_mass` returned, (L, P, H).
        both_P: prompts that show both kinds of label, (P,) bool; the others count 0.

    Returns:
        A scalar. Uniform attention gives -log(fraction of correct demonstrations).
    """
    tiny = torch.finfo(correct_LPH.dtype).tiny
    both_P = both_P.to(correct_LPH.device)
    R_P, W_P = correct_LPH.sum((0, 2)), incorrect_LPH.sum((0, 2))

    # Prompts without a vote become 1 : 0 before the logarithm, so that their gradient is 0.
    R_P = torch.where(both_P, R_P.clamp_min(tiny), 1.0)
    W_P = torch.where(both_P, W_P, 0.0)
    return (torch.log(R_P + W_P) - torch.log(R_P)).mean()


def contrastive_loss(
    scores_PK: Tensor, correct_PK: Tensor, incorrect_PK: Tensor, temperature: float
) -> Tensor:
    """Return the mean over prompts of -log(sum_{I+} exp(s / t) / sum_I exp(s / t)), InfoNCE.

    Args:
        scores_PK: s, how much a prompt's query looks at each of its K candidates, (P, K).
        correct_PK, incorrect_PK: which candidates are correct or incorrect, (P, K) bool; neither =
            no candidate.
        temperature: t, > 0.

    Returns:
        A scalar. Prompts without both kinds count 0. Equal scores give
        -log(fraction of correct candidates).
    """
    logits_PK = scores_PK / temperature
    lowest = torch.finfo(logits_PK.dtype).min
    all_P = logits_PK.masked_fill(~(correct_PK | incorrect_PK), lowest).logsumexp(-1)
    correct_P = logits_PK.masked_fill(~correct_PK, lowest).logsumexp(-1)
    both_P = correct_PK.any(-1) & incorrect_PK.any(-1)
    return torch.where(both_P, all_P - correct_P, 0.0).mean()
