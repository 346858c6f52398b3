"""A loss on attention plus cross-entropy of the label word, from one forward pass."""

from typing import TYPE_CHECKING

from abft.method.objectives.base import RowObjective
from abft.method.objectives.end_to_end import E2EObjective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from abft.data.batches import Batch
    from abft.data.encoding import EncodedPrompt


class CombinedObjective(RowObjective):
    """A loss on attention plus `weight` times the label word's cross-entropy. Not in the paper.

    Eq. 1 is a sum over induction heads, so its weight relative to the cross-entropy grows with
    their number; the vote is about as large as a cross-entropy.

    Args:
        attention: an objective on the rows; it keeps its controller and its state.
        e2e: the end-to-end objective.
        weight: of the cross-entropy, > 0.
    """

    def __init__(self, attention: RowObjective, e2e: E2EObjective, weight: float) -> None:
        self.attention, self.e2e, self.weight = attention, e2e, weight
        self.implementation = attention.implementation

    def prepare(
        self, model: "PreTrainedModel", prompts: "Sequence[EncodedPrompt]", queries: int
    ) -> None:
        self.attention.prepare(model, prompts, queries)
        self.chosen_LH = self.attention.chosen_LH

    def from_rows(
        self, rows: "tuple[Tensor, ...]", hidden_BSD: "Tensor", batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        on_attention, metrics = self.attention.from_rows(rows, hidden_BSD, batch)
        cross_entropy = self.e2e.cross_entropy(hidden_BSD, batch)
        loss = on_attention + self.weight * cross_entropy.to(on_attention.device)
        return loss, {**metrics, "cross_entropy": cross_entropy.detach()}

    def update(self, metrics: dict[str, float]) -> dict[str, float]:
        # Skips `check_step` of the loss on attention: cross-entropy always has something to train.
        return self.attention.update(metrics)

    def state(self) -> dict:
        return self.attention.state()

    def restore(self, state: dict) -> None:
        self.attention.restore(state)
        self.chosen_LH = self.attention.chosen_LH
