"""The objective of ABFT on one page: attention rows -> induction heads -> Eq. 1; Eq. 3 after every
step.

Beside it a variant of this project that needs fewer steps, the vote of all heads, the end-to-end
objective that the paper compares with, cross-entropy of the label word, and sums of both kinds.

An objective is all that the trainer knows: call it with a model and a `Batch`, hand it each step's
mean metrics, save and restore its state.
"""

from dataclasses import dataclass
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from abft.data.batches import Batch, at_positions
from abft.errors import AbftError
from abft.method.heads import induction_mask, threshold
from abft.method.losses import head_loss, label_mass, vote_loss
from abft.method.pid import PIDController
from abft.model.attention import Implementation, causal_lm, read_rows
from abft.model.lm_head import output_logits


class Objective(Interface):
    """What the trainer needs of an objective."""

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a mean over the prompts of `batch`, and metrics that are such means too
        (detached scalars).

        Whatever calls `module` hands it `batch.model_inputs()` too, else packed prompts see each
        other.
        """

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Take the means over a whole pseudo-batch; return what else should be logged for that
        step.
        """

    def state(self) -> dict:
        """JSON-ready state, enough to go on after `restore`."""

    def restore(self, state: dict) -> None:
        """Take over what `state` returned."""


@dataclass
class HeadStatistics:
    """Where the heads of a batch look, (L, P, H) each, on the rows of the query positions."""

    right: Tensor  # attention on right label tokens
    wrong: Tensor  # attention on wrong label tokens
    induction: Tensor  # bool: head passes the filter for the prompt


def head_statistics(
    rows: tuple[Tensor, ...], batch: Batch, fixed_threshold: float | None = None
) -> HeadStatistics:
    """Read label attention off the rows (one (B, H, S) per layer) and filter the heads."""
    first = rows[0].device
    alphas = []
    for rows_BHS in rows:
        positions = batch.label_positions.to(rows_BHS.device)[:, None, :].expand(
            -1, rows_BHS.shape[1], -1
        )
        alphas.append(rows_BHS.gather(-1, positions).to(first))
    label_attention_LBHK = torch.stack(alphas) * batch.candidates.to(first)[None, :, None, :]
    if fixed_threshold is None:
        threshold_B = threshold(batch.lengths.to(first), batch.candidates.to(first).sum(-1))
    else:
        threshold_B = torch.full(batch.lengths.shape, fixed_threshold, device=first)
    right, wrong = label_mass(label_attention_LBHK, batch.correct.to(first), batch.wrong.to(first))
    return HeadStatistics(right, wrong, induction_mask(label_attention_LBHK, threshold_B))


@torch.no_grad()
def mass_metrics(heads: HeadStatistics, counted_LBH: Tensor) -> dict[str, Tensor]:
    """Means over prompts: heads over the threshold, and the counted heads' attention on right and
    on wrong labels.
    """
    prompts = counted_LBH.shape[1]
    return {
        "heads": heads.induction.sum() / prompts,
        "right_mass": (heads.right * counted_LBH).sum() / prompts,
        "wrong_mass": (heads.wrong * counted_LBH).sum() / prompts,
    }


class RowObjective:
    """A loss on what one forward pass shows of a batch: `from_rows` says which. By default nothing
    happens between steps.
    """

    implementation: Implementation = "abft_rows"

    def __call__(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Needs an open `row_attention`. `module` is a decoder, or a whole model where a wrapper
        has to be called.
        """
        rows, hidden = read_rows(
            module,
            batch.input_ids,
            batch.query_positions,
            self.implementation,
            **batch.model_inputs(),
        )
        return self.from_rows(rows, hidden, batch)

    def from_rows(
        self, rows: tuple[Tensor, ...], hidden_BSD: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What `__call__` returns, from what `read_rows` returned."""
        raise NotImplementedError

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        return {}

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass


class ABFTObjective(RowObjective):
    """Eq. 1 summed over induction heads and layers, mean over prompts, with A under PID control
    (Eq. 3).

    Args:
        controller: holds A, moved after every step if `pid`.
        B: reward of right labels.
        head_filter: without it every head counts, for every prompt.
        fixed_threshold: replaces T = k / (k + ln n).
        pid: without it A stays A0.
        implementation: what `supported_implementation` returned for the model.
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

    def from_rows(
        self, rows: tuple[Tensor, ...], hidden_BSD: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = head_statistics(rows, batch, self.fixed_threshold)
        counted = (
            heads.induction.to(heads.right.dtype)
            if self.head_filter
            else torch.ones_like(heads.right)
        )
        # Multiplying rather than selecting keeps every layer's W_Q and W_K in the graph (DDP needs
        # that).
        per_head = head_loss(heads.right, heads.wrong, self.controller.A, self.B) * counted
        loss = per_head.sum() / len(batch.query_positions)
        return loss, mass_metrics(heads, counted)

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Eq. 3. Refuses a first step in which no head passed the filter: the loss would be 0 for
        ever.
        """
        self.steps += 1
        if self.steps == 1 and self.head_filter and metrics["heads"] == 0:
            raise AbftError(
                "no attention head passed the threshold in the first step, so there is nothing "
                "to train. This model has "
                "no induction heads on this task: try a lower --threshold, --no-filter, or "
                "another model (see `abft heads`)."
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


class VoteObjective(RowObjective):
    """Cross-entropy of the heads' vote: -log(R / (R + W)) with all heads' attention on right labels
    R, on wrong ones W.

    Not in the paper. Every head of every layer votes with the attention that it pays to label
    tokens; right labels should win. Its gradient is that of Eq. 1 without the filter, with A = 1 /
    (R + W) and B = A W / R: A and B balance themselves, and looking more, or less, at *all* labels
    changes nothing, so there is no controller. Prompts whose demonstrations are all right, or all
    wrong, have no vote and loss 0.

    Args:
        fixed_threshold, implementation: as in `ABFTObjective`, for the logged head statistics.
    """

    def __init__(
        self, *, fixed_threshold: float | None = None, implementation: Implementation = "abft_rows"
    ) -> None:
        self.fixed_threshold, self.implementation = fixed_threshold, implementation

    def from_rows(
        self, rows: tuple[Tensor, ...], hidden_BSD: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = head_statistics(rows, batch, self.fixed_threshold)
        loss = vote_loss(heads.right, heads.wrong, batch.correct.any(-1) & batch.wrong.any(-1))
        return loss, mass_metrics(heads, torch.ones_like(heads.right))


class E2EObjective(RowObjective):
    """End-to-end fine-tuning: cross-entropy of the right label word at the query position, over the
    whole vocabulary.

    Logs the same head statistics as ABFT, which it does not train. The LM head is read, never
    changed.

    Args:
        model: the whole model, whose LM head turns the decoder's hidden state into logits.
        fixed_threshold, implementation: as in `ABFTObjective`, for the logged head statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fixed_threshold: float | None = None,
        implementation: Implementation = "abft_rows",
    ) -> None:
        self.model, self.fixed_threshold, self.implementation = (
            model,
            fixed_threshold,
            implementation,
        )

    def from_rows(
        self, rows: tuple[Tensor, ...], hidden_BSD: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = head_statistics(tuple(row.detach() for row in rows), batch, self.fixed_threshold)
        return self.cross_entropy(hidden_BSD, batch), mass_metrics(heads, heads.induction.float())

    def cross_entropy(self, hidden_BSD: Tensor, batch: Batch) -> Tensor:
        """Mean over prompts of -log of the right label word's probability. `hidden_BSD` has to come
        from the decoder.
        """
        if batch.answers is None or (batch.answers < 0).any():
            raise AbftError(
                "end-to-end training needs prompts with answers; see with_answers"
            )
        logits = output_logits(
            causal_lm(self.model), at_positions(hidden_BSD, batch.query_positions)
        )  # type: ignore[arg-type]
        return nn.functional.cross_entropy(logits, batch.answers.to(logits.device))


class CombinedObjective(RowObjective):
    """A loss on attention and, in the same pass, `weight` times the label word's cross-entropy. Not
    in the paper.

    Eq. 1 is a sum over induction heads, so that its weight against the cross-entropy grows with
    their number; the vote is about as large as a cross-entropy.

    Args:
        attention: an objective on the rows; it keeps its controller and its state.
        e2e: the end-to-end objective.
        weight: of the cross-entropy, > 0.
    """

    def __init__(self, attention: RowObjective, e2e: E2EObjective, weight: float) -> None:
        self.attention, self.e2e, self.weight = attention, e2e, weight
        self.implementation = attention.implementation

    def from_rows(
        self, rows: tuple[Tensor, ...], hidden_BSD: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        on_attention, metrics = self.attention.from_rows(rows, hidden_BSD, batch)
        cross_entropy = self.e2e.cross_entropy(hidden_BSD, batch)
        return on_attention + self.weight * cross_entropy.to(on_attention.device), {
            **metrics,
            "cross_entropy": cross_entropy.detach(),
        }

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        return self.attention.after_step(metrics)

    def state(self) -> dict:
        return self.attention.state()

    def restore(self, state: dict) -> None:
        self.attention.restore(state)
