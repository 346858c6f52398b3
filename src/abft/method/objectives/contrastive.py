"""InfoNCE over the demonstrations' labels, by how much a few heads look at them."""

import math
from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.method.objectives.base import (
    HEADS_CAPTION,
    LEARNS_TO_COPY,
    Caption,
    RowObjective,
    check_compares,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from abft.data.batches import Batch
    from abft.data.encoding import EncodedPrompt
    from abft.method.settings import MethodSettings
    from abft.model.attention import Implementation

LAYER = "layer"  # instead of a number of heads


class ContrastiveObjective(RowObjective):
    """-log(sum_{I+} exp(s / t) / sum_I exp(s / t)), with s the mean attention of a few heads.

    This is InfoNCE (cross-entropy of a softmax), as BlockRank (arXiv 2510.05396) uses it with
    documents; not in the paper. Prompts whose demonstrations are all correct, or all incorrect,
    have loss 0.

    Args:
        heads: how many heads count, or "layer": those of one middle layer. `prepare` chooses them;
            before, all heads count.
        temperature: t, > 0; BlockRank's is 0.05.
        fixed_threshold, implementation: as in `ABFTObjective`, for the logged head statistics.
    """

    title = "ABFT, contrastive"
    long_title = "ABFT, contrastive loss of few heads"
    summary = "InfoNCE of few heads' attention on labels"
    default_steps = 16
    small_model_rate = 3e-4
    default_cross_entropy = 1.0
    card_title = "{model}, attention fine-tuned (ABFT, contrastive, {task})"
    card_text = (
        "A variant of Attention Behavior Fine-Tuning ({paper}) trained {weights} of `{model}` so "
        "that few attention heads favour the demonstrations with the correct label in few-shot "
        "prompts of {task}. No other weight changed."
    )
    limitation = LEARNS_TO_COPY
    captions = {
        "loss": Caption(
            "Loss",
            "loss (mean over prompts)",
            "-log of the probability that the chosen heads look at a correct label falls when "
            "they tell correct labels from incorrect ones.",
        ),
        "heads": HEADS_CAPTION,
        "mass": Caption(
            "Attention of the chosen heads",
            "attention (sum over chosen heads)",
            "Correct labels (solid) should rise above incorrect ones (dashed).",
        ),
    }

    def __init__(
        self,
        heads: str = "16",
        temperature: float = 0.05,
        *,
        fixed_threshold: float | None = None,
        implementation: "Implementation" = "abft_rows",
    ) -> None:
        self.heads, self.temperature = heads, temperature
        self.fixed_threshold, self.implementation = fixed_threshold, implementation

    @classmethod
    def from_settings(
        cls, settings: "MethodSettings", model: object, implementation: "Implementation"
    ) -> "ContrastiveObjective":
        return cls(
            settings.heads,
            settings.temperature,
            fixed_threshold=settings.threshold,
            implementation=implementation,
        )

    @classmethod
    def check(cls, settings: "MethodSettings", k: int | None = None) -> None:
        super().check(settings, k)
        if settings.heads != LAYER and not (settings.heads.isdecimal() and int(settings.heads)):
            raise AbftError(f"heads = {settings.heads!r}: expected a number, or {LAYER!r}")
        if settings.temperature == 0:
            raise AbftError("temperature = 0: expected more than 0")
        check_compares(settings, k)

    def prepare(
        self, model: "PreTrainedModel", prompts: "Sequence[EncodedPrompt]", queries: int
    ) -> None:
        """Choose the heads by what the untouched model does with training prompts."""
        from abft.method.head_finder import FINDER_PROMPTS, best_heads, best_layer, head_scores
        from abft.model.attention import IMPLEMENTATION, decoder

        some = prompts[: max(FINDER_PROMPTS // queries, 1) * queries]
        scores_LH = head_scores(model, some, self.implementation, queries)
        # The attention of heads below the first trained layer does not change.
        scores_LH[: _untrained_rows(model)] = -math.inf
        by_layer = self.heads == LAYER
        chosen_LH = best_layer(scores_LH) if by_layer else best_heads(scores_LH, int(self.heads))
        chosen_LH = chosen_LH & scores_LH.isfinite()
        if not chosen_LH.any():
            raise AbftError(
                f"heads = {LAYER!r} takes one of the middle layers, and all of them are below "
                "those that train (layers); give a number of heads"
            )

        # The rows of only some layers can be read if every layer has attention (in some families,
        # layers without it are not counted here). Eager attention returns all rows.
        every = len(getattr(decoder(model), "layers", ())) == len(scores_LH)
        if every and self.implementation == IMPLEMENTATION:
            self.layers = tuple(range(len(scores_LH)))
        self._choose(chosen_LH)

    def _choose(self, chosen_LH: "Tensor") -> None:
        self.chosen_LH = chosen_LH
        if self.layers is not None:
            self.layers = tuple(chosen_LH.any(1).nonzero().flatten().tolist())

    def from_rows(
        self, rows: "tuple[Tensor, ...]", hidden_BSD: "Tensor", batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        import torch

        from abft.method.head_statistics import head_statistics, mass_metrics
        from abft.method.losses import contrastive_loss

        heads = head_statistics(rows, batch, self.fixed_threshold)
        counted_LPH = torch.ones_like(heads.correct)
        reads_all = True
        if self.chosen_LH is not None:
            chosen_LH = self.chosen_LH.to(counted_LPH.device)
            if self.layers is not None and len(counted_LPH) < len(chosen_LH):
                chosen_LH, reads_all = chosen_LH[list(self.layers)], False
            counted_LPH = counted_LPH * chosen_LH[:, None, :]

        # Mean over the chosen heads; multiplying keeps every layer that was run in the graph, as
        # DDP needs.
        summed_PK = (heads.labels * counted_LPH[..., None]).sum((0, 2))
        scores_PK = summed_PK / counted_LPH.sum((0, 2))[:, None]
        device = scores_PK.device
        loss = contrastive_loss(
            scores_PK, batch.correct.to(device), batch.incorrect.to(device), self.temperature
        )
        metrics = mass_metrics(heads, counted_LPH)
        # Heads of layers that are not read cannot be counted.
        if not reads_all:
            del metrics["heads"]
        return loss, metrics

    def state(self) -> dict:
        return {} if self.chosen_LH is None else {"heads": self.chosen_LH.nonzero().tolist()}

    def restore(self, state: dict) -> None:
        # `prepare` chose anew, perhaps on a model that training had changed.
        if self.chosen_LH is not None and "heads" in state:
            chosen_LH = self.chosen_LH.new_zeros(self.chosen_LH.shape)
            for layer, head in state["heads"]:
                chosen_LH[layer, head] = True
            self._choose(chosen_LH)


def _untrained_rows(model: "PreTrainedModel") -> int:
    """Return how many layers with attention come before the first whose Q and K train.

    0 if none trains: then heads are chosen only to be read.
    """
    from abft.model.attention import causal_lm
    from abft.model.qk_weights import qk_modules

    whole = causal_lm(model)
    modules = qk_modules(whole)
    layers = sorted({qk.layer for qk in modules})
    trained = [
        layers.index(qk.layer)
        for qk in modules
        if any(p.requires_grad for p in whole.get_submodule(qk.name).parameters())
    ]
    return min(trained, default=0)
