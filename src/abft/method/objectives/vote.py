"""The vote of all heads: a variant of the paper's objective that needs fewer steps."""

from typing import TYPE_CHECKING

from abft.method.objectives.base import (
    HEADS_CAPTION,
    LEARNS_TO_COPY,
    Caption,
    RowObjective,
    check_compares,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from abft.data.batches import Batch
    from abft.method.settings import MethodSettings
    from abft.model.attention import Implementation


class VoteObjective(RowObjective):
    """Cross-entropy of the heads' vote: -log(R / (R + W)). Not in the paper.

    R and W are the attention of all heads of all layers on correct and on incorrect labels. The
    gradient is that of Eq. 1 without the filter, with A = 1 / (R + W) and B = A W / R: A and B
    balance themselves, and more or less attention on *all* labels changes nothing, so there is no
    controller. Prompts whose demonstrations are all correct, or all incorrect, have no vote and
    loss 0.

    Args:
        fixed_threshold, implementation: as in `ABFTObjective`, for the logged head statistics.
    """

    title = "ABFT, vote"
    long_title = "ABFT, vote of all heads"
    summary = "all heads vote with their attention on labels, correct ones should win"
    default_steps = 16  # chosen on training data (docs/defaults.md), as are the next two
    small_model_rate = 3e-4
    default_cross_entropy = 1.0
    card_title = "{model}, attention fine-tuned (ABFT with the vote objective, {task})"
    card_text = (
        "A variant of Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{model}` so "
        "that the attention of all heads favours the demonstrations with the correct label in "
        "few-shot prompts of {task}. No other weight changed."
    )
    limitation = LEARNS_TO_COPY
    captions = {
        "loss": Caption(
            "Loss",
            "loss (mean over prompts)",
            "-log of the share of correct labels in all heads' attention on labels falls when "
            "heads tell correct labels from incorrect ones.",
        ),
        "heads": HEADS_CAPTION,
        "mass": Caption(
            "Attention of all heads",
            "attention (sum over all heads)",
            "Correct labels (solid) should rise above incorrect ones (dashed).",
        ),
    }

    def __init__(
        self,
        *,
        fixed_threshold: float | None = None,
        implementation: "Implementation" = "abft_rows",
    ) -> None:
        self.fixed_threshold, self.implementation = fixed_threshold, implementation

    @classmethod
    def from_settings(
        cls, settings: "MethodSettings", model: "nn.Module", implementation: "Implementation"
    ) -> "VoteObjective":
        return cls(fixed_threshold=settings.threshold, implementation=implementation)

    @classmethod
    def check(cls, settings: "MethodSettings", k: int | None = None) -> None:
        super().check(settings, k)
        check_compares(settings, k)

    def from_rows(
        self, rows: "tuple[Tensor, ...]", hidden_BSD: "Tensor", batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        import torch

        from abft.method.head_statistics import head_statistics, mass_metrics
        from abft.method.losses import vote_loss

        heads = head_statistics(rows, batch, self.fixed_threshold)
        both_P = batch.correct.any(-1) & batch.incorrect.any(-1)
        loss = vote_loss(heads.correct, heads.incorrect, both_P)
        return loss, mass_metrics(heads, torch.ones_like(heads.correct))
