"""End-to-end training (E2E): cross-entropy of the label word, which the paper compares with."""

from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.method.objectives.base import HEADS_CAPTION, Caption, RowObjective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from abft.data.batches import Batch
    from abft.method.settings import MethodSettings
    from abft.model.attention import Implementation


class E2EObjective(RowObjective):
    """Cross-entropy of the correct label word at the query position, over the whole vocabulary.

    Logs the same head statistics as ABFT, but does not train them. The LM head is read, never
    changed.

    Args:
        model: the whole model, whose LM head turns the decoder's hidden state into logits.
        fixed_threshold, implementation: as in `ABFTObjective`, for the logged head statistics.
    """

    title = "E2E"
    long_title = "end-to-end training"
    summary = "cross-entropy of the label word, the paper's comparison"
    default_steps = 24  # chosen on training data (docs/defaults.md), as is the rate
    small_model_rate = 3e-4
    reads_attention = False
    reads_output = True
    trains_any_weights = True
    method_tags = ()
    card_title = "{model}, fine-tuned end to end ({task})"
    card_text = (
        "Cross-entropy of the label word in few-shot prompts of {task} trained {weights} of "
        "`{model}`; {paper} compares its method with this. No other weight changed."
    )
    limitation = (
        "It learned what its label words mean: where they are swapped, expect answers by the old "
        "meaning."
    )
    captions = {
        "loss": Caption(
            "Loss",
            "loss (mean over prompts)",
            "-log of the probability of the correct label word, over the whole vocabulary.",
        ),
        "heads": HEADS_CAPTION,
        "mass": Caption(
            "Attention of the induction heads",
            "attention (sum over counted heads)",
            "For comparison: nothing in this loss asks heads to look at correct labels (solid) "
            "rather than incorrect ones (dashed).",
        ),
    }

    def __init__(
        self,
        model: "nn.Module",
        *,
        fixed_threshold: float | None = None,
        implementation: "Implementation" = "abft_rows",
    ) -> None:
        self.model = model
        self.fixed_threshold, self.implementation = fixed_threshold, implementation

    @classmethod
    def from_settings(
        cls, settings: "MethodSettings", model: "nn.Module", implementation: "Implementation"
    ) -> "E2EObjective":
        return cls(model, fixed_threshold=settings.threshold, implementation=implementation)

    def from_rows(
        self, rows: "tuple[Tensor, ...]", hidden_BSD: "Tensor", batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        from abft.method.head_statistics import head_statistics, mass_metrics

        heads = head_statistics(tuple(row.detach() for row in rows), batch, self.fixed_threshold)
        return self.cross_entropy(hidden_BSD, batch), mass_metrics(heads, heads.induction.float())

    def cross_entropy(self, hidden_BSD: "Tensor", batch: "Batch") -> "Tensor":
        """Return the mean over prompts of -log of the correct label word's probability.

        `hidden_BSD` has to come from the decoder.
        """
        from torch.nn.functional import cross_entropy

        from abft.data.batches import at_positions
        from abft.model.attention import causal_lm
        from abft.model.lm_head import output_logits

        if batch.answers is None or (batch.answers < 0).any():
            raise AbftError("end-to-end training needs prompts with answers; see with_answers")
        hidden_PD = at_positions(hidden_BSD, batch.query_positions)
        logits_PV = output_logits(causal_lm(self.model), hidden_PD)  # type: ignore[arg-type]
        return cross_entropy(logits_PV, batch.answers.to(logits_PV.device))
