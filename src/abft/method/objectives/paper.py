"""The paper's objective: attention rows -> induction heads -> Eq. 1; Eq. 3 after every step."""

from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.method.objectives.base import LEARNS_TO_COPY, Caption, RowObjective
from abft.method.pid import PIDController

if TYPE_CHECKING:
    from torch import Tensor, nn

    from abft.data.batches import Batch
    from abft.method.settings import MethodSettings
    from abft.model.attention import Implementation


class ABFTObjective(RowObjective):
    """Eq. 1 summed over induction heads and layers, mean over prompts; A is PID-controlled (Eq. 3).

    Args:
        controller: holds A, moved after every step if `pid`.
        B: reward of correct labels.
        head_filter: without it every head counts, for every prompt.
        fixed_threshold: replaces T = k / (k + ln n).
        pid: without it A stays A0.
        implementation: how attention rows are read, `abft.capabilities(model).implementation`.
    """

    title = "ABFT"
    long_title = "ABFT"
    summary = "the paper's loss, each induction head's attention on labels"
    default_steps = 32  # the paper's
    small_model_rate = 1e-4  # chosen on training data (docs/defaults.md)
    card_title = "{model}, attention fine-tuned (ABFT, {task})"
    card_text = (
        "Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{model}` so that its "
        "induction heads look at the demonstrations with the correct label in few-shot prompts of "
        "{task}. No other weight changed."
    )
    limitation = LEARNS_TO_COPY
    captions = {
        "loss": Caption(
            "Loss",
            "loss (mean over prompts)",
            "Eq. 1 falls when heads look at correct labels, but also when fewer heads count.",
        ),
        "heads": Caption(
            "Induction heads",
            "heads over the threshold (mean over prompts)",
            "PID control should keep this line from running away.",
        ),
        "mass": Caption(
            "Attention of the induction heads",
            "attention (sum over counted heads)",
            "Correct labels (solid) should rise above incorrect ones (dashed).",
        ),
        "A": Caption(
            "Factor A",
            "A (weight of the punishment)",
            "A follows the number of heads (Eq. 3): more heads, more punishment.",
        ),
    }

    def __init__(
        self,
        controller: PIDController,
        B: float = 1.0,
        *,
        head_filter: bool = True,
        fixed_threshold: float | None = None,
        pid: bool = True,
        implementation: "Implementation" = "abft_rows",
    ) -> None:
        self.controller, self.B, self.pid = controller, B, pid
        self.head_filter, self.fixed_threshold = head_filter, fixed_threshold
        self.implementation = implementation
        self.steps = 0

    @classmethod
    def from_settings(
        cls, settings: "MethodSettings", model: "nn.Module", implementation: "Implementation"
    ) -> "ABFTObjective":
        return cls(
            PIDController(A=settings.A0, Cp=settings.Cp, Ci=settings.Ci, Cd=settings.Cd),
            settings.B0,
            head_filter=settings.head_filter,
            fixed_threshold=settings.threshold,
            pid=settings.pid,
            implementation=implementation,
        )

    @classmethod
    def check(cls, settings: "MethodSettings", k: int | None = None) -> None:
        super().check(settings, k)
        if settings.A0 == 0 and settings.B0 == 0:
            raise AbftError("A0 and B0 are both 0: the loss would be 0")

    def from_rows(
        self, rows: "tuple[Tensor, ...]", hidden_BSD: "Tensor", batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        import torch

        from abft.method.head_statistics import head_statistics, mass_metrics
        from abft.method.losses import head_loss

        heads = head_statistics(rows, batch, self.fixed_threshold)
        if self.head_filter:
            counted_LPH = heads.induction.to(heads.correct.dtype)
        else:
            counted_LPH = torch.ones_like(heads.correct)

        # Multiplying, not selecting, keeps W_Q and W_K of every layer in the graph; DDP needs that.
        loss_LPH = head_loss(heads.correct, heads.incorrect, self.controller.A, self.B)
        loss = (loss_LPH * counted_LPH).sum() / len(batch.query_positions)
        return loss, mass_metrics(heads, counted_LPH)

    def check_step(self, metrics: dict[str, float]) -> None:
        """Refuse a first step in which no head passed the filter: the loss would stay 0."""
        if self.steps == 0 and self.head_filter and metrics["heads"] == 0:
            raise AbftError(
                "no attention head passed the threshold in the first step, so there is nothing to "
                "train. This model has no induction heads on this task: try a lower --threshold, "
                "--no-filter, or another model (see `abft heads`)."
            )

    def update(self, metrics: dict[str, float]) -> dict[str, float]:
        """Apply Eq. 3."""
        self.steps += 1
        used = self.controller.A
        if self.pid:
            self.controller.update(metrics["heads"])
        return {"A": used}

    def state(self) -> dict:
        return {"controller": self.controller.state(), "steps": self.steps}

    def restore(self, state: dict) -> None:
        self.controller = PIDController(**state["controller"])
        self.steps = state["steps"]
