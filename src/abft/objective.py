"""The objective of ABFT on one page: attention rows -> induction heads -> Eq. 1; Eq. 3 after every step.

An objective is all that the trainer knows: call it with a model and a `Batch`, hand it each step's mean metrics,
save and restore its state.
"""

from dataclasses import dataclass
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from abft.attention import Implementation, read_rows
from abft.errors import AbftError
from abft.heads import induction_mask, threshold
from abft.loss import head_loss, label_mass
from abft.pid import PIDController
from abft.prompts import Batch


class Objective(Interface):
    """What the trainer needs of an objective."""

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a mean over the prompts of `batch`, and metrics that are such means too (detached scalars)."""

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Take the means over a whole pseudo-batch; return what else should be logged for that step."""

    def state(self) -> dict:
        """JSON-ready state, enough to go on after `restore`."""

    def restore(self, state: dict) -> None:
        """Take over what `state` returned."""


@dataclass
class HeadStatistics:
    """Where the heads of a batch look, (L, B, H) each, on the rows of the query positions."""

    right: Tensor  # attention on right label tokens
    wrong: Tensor  # attention on wrong label tokens
    induction: Tensor  # bool: head passes the filter for the prompt


def head_statistics(rows: tuple[Tensor, ...], batch: Batch, fixed_threshold: float | None = None) -> HeadStatistics:
    """Read label attention off the rows (one (B, H, S) per layer) and filter the heads."""
    first = rows[0].device
    alphas = []
    for rows_BHS in rows:
        positions = batch.label_positions.to(rows_BHS.device)[:, None, :].expand(-1, rows_BHS.shape[1], -1)
        alphas.append(rows_BHS.gather(-1, positions).to(first))
    label_attention_LBHK = torch.stack(alphas) * batch.candidates.to(first)[None, :, None, :]
    if fixed_threshold is None:
        threshold_B = threshold(batch.lengths.to(first), batch.candidates.to(first).sum(-1))
    else:
        threshold_B = torch.full(batch.lengths.shape, fixed_threshold, device=first)
    right, wrong = label_mass(label_attention_LBHK, batch.correct.to(first), batch.wrong.to(first))
    return HeadStatistics(right, wrong, induction_mask(label_attention_LBHK, threshold_B))


class ABFTObjective:
    """Eq. 1 summed over induction heads and layers, mean over prompts, with A under PID control (Eq. 3).

    Args:
        controller: holds A, moved after every step if `pid`.
        B: reward of right labels.
        head_filter: without it every head counts, for every prompt.
        fixed_threshold: replaces T = k / (k + ln n).
        pid: without it A stays A0.
        implementation: what `abft.attention.supported_implementation` returned for the model.
    """

    def __init__(
        self,
        controller: PIDController,
        B: float = 1.0,
        *,
        head_filter: bool = True,
        fixed_threshold: float | None = None,
        pid: bool = True,
        implementation: Implementation = "abft_rows",
    ) -> None:
        self.controller, self.B, self.pid = controller, B, pid
        self.head_filter, self.fixed_threshold = head_filter, fixed_threshold
        self.implementation = implementation
        self.steps = 0

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Needs an open `row_attention`. `module` is a decoder, or a whole model where a wrapper has to be called."""
        rows, _ = read_rows(module, batch.input_ids, batch.query_positions, self.implementation)
        heads = head_statistics(rows, batch, self.fixed_threshold)
        counted = heads.induction.to(heads.right.dtype) if self.head_filter else torch.ones_like(heads.right)
        # Multiplying rather than selecting keeps every layer's W_Q and W_K in the graph (DDP needs that).
        per_head = head_loss(heads.right, heads.wrong, self.controller.A, self.B) * counted
        prompts = batch.input_ids.shape[0]
        loss = per_head.sum() / prompts
        with torch.no_grad():
            metrics = {
                "heads": heads.induction.sum() / prompts,
                "right_mass": (heads.right * counted).sum() / prompts,
                "wrong_mass": (heads.wrong * counted).sum() / prompts,
            }
        return loss, metrics

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Eq. 3. Refuses a first step in which no head passed the filter: the loss would be 0 for ever."""
        self.steps += 1
        if self.steps == 1 and self.head_filter and metrics["heads"] == 0:
            raise AbftError(
                "no attention head passed the threshold in the first step, so there is nothing to train. This model has "
                "no induction heads on this task: try a lower --threshold, --no-filter, or another model (see `abft heads`)."
            )
        used = self.controller.A
        if self.pid:
            self.controller.update(metrics["heads"])
        return {"A": used}

    def state(self) -> dict:
        return {"controller": self.controller.state(), "steps": self.steps}

    def restore(self, state: dict) -> None:
        self.controller = PIDController(**state["controller"])
        self.steps = state["steps"]
