"""Define what the trainer, and the list of objectives, need from an objective.

These files describe the objectives to `abft --help` too, so torch is imported only where a loss is
computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from abft.errors import AbftError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from abft.data.batches import Batch
    from abft.data.encoding import EncodedPrompt
    from abft.method.settings import MethodSettings
    from abft.model.attention import Implementation


class Objective(Protocol):
    """What `ABFTTrainer` needs. Anything with these methods can be passed as its `objective`."""

    def __call__(self, module: "nn.Module", batch: "Batch") -> "tuple[Tensor, dict[str, Tensor]]":
        """Return the loss, a mean over the prompts of `batch`, and metrics.

        Metrics are detached scalars and means over prompts too. Whatever calls `module` passes
        `batch.model_inputs()` along, otherwise packed prompts see each other.
        """

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        """Take the means over a whole pseudo-batch; return what else to log for that step."""

    def state(self) -> dict:
        """Return JSON-ready state, enough to continue after `restore`."""

    def restore(self, state: dict) -> None:
        """Take over what `state` returned."""


@dataclass(frozen=True)
class Caption:
    """How the report shows a quantity that training logs."""

    title: str
    axis: str
    caption: str


class RowObjective:
    """A loss on what one forward pass gives: attention rows and hidden states.

    A subclass computes it in `from_rows` and describes itself in the class variables below.
    """

    title: ClassVar[str]  # in tables
    long_title: ClassVar[str]  # in the report
    summary: ClassVar[str]  # in the help of --objective
    default_steps: ClassVar[int]  # optimizer steps
    small_model_rate: ClassVar[float]  # learning rate below 500M parameters, full rank
    default_cross_entropy: ClassVar[float] = 0.0  # weight of the cross-entropy that is added
    reads_attention: ClassVar[bool] = True  # False: cross-entropy cannot be added to it
    reads_output: ClassVar[bool] = False  # whether the loss reads the LM's output
    trains_any_weights: ClassVar[bool] = False  # whether LoRA may adapt all linear layers
    method_tags: ClassVar[tuple[str, ...]] = ("abft", "induction-heads")  # of the model card
    card_title: ClassVar[str]  # of the model card; {model} and {task} are filled in
    card_text: ClassVar[str]  # its first sentences; {weights}, {model}, {task}, {paper}
    limitation: ClassVar[str]  # what a user of the model has to know
    captions: ClassVar[Mapping[str, Caption]]  # of what training logs, by name

    implementation: "Implementation" = "abft_rows"
    layers: tuple[int, ...] | None = None  # whose rows the loss needs, ascending; None = all
    chosen_LH: "Tensor | None" = None  # bool: the heads that `prepare` chose; None = all

    @classmethod
    def from_settings(
        cls, settings: "MethodSettings", model: "nn.Module", implementation: "Implementation"
    ) -> "RowObjective":
        """Make the objective from its settings."""
        raise NotImplementedError

    @classmethod
    def check(cls, settings: "MethodSettings", k: int | None = None) -> None:
        """Raise AbftError for settings that contradict this objective.

        `k`, demonstrations in a prompt, is checked where training starts; None = not now.
        """
        if settings.cross_entropy and not cls.reads_attention:
            raise AbftError(
                "cross_entropy goes with objectives that are a loss on attention; "
                f"{settings.objective} is nothing but cross-entropy: set it to 0"
            )
        if settings.lora_targets != "qk" and not cls.trains_any_weights:
            raise AbftError(
                f"lora_targets = {settings.lora_targets!r} goes with lora_r and objective e2e; "
                "ABFT trains W_Q and W_K only"
            )

    def prepare(
        self, model: "PreTrainedModel", prompts: "Sequence[EncodedPrompt]", queries: int
    ) -> None:
        """Look at what the untouched model does with the training prompts, before the first step.

        Every `queries` consecutive prompts share demonstrations and can be packed.
        """

    def __call__(self, module: "nn.Module", batch: "Batch") -> "tuple[Tensor, dict[str, Tensor]]":
        """Run `module` once and compute the loss; needs an open `row_attention`.

        `module` is a decoder, or a whole model where a wrapper has to be called.
        """
        return self.from_rows(*self.read(module, batch), batch)

    def read(self, module: "nn.Module", batch: "Batch") -> "tuple[tuple[Tensor, ...], Tensor]":
        """Run `module` up to the last layer that is read; return rows and hidden states."""
        from abft.model.attention import read_batch, up_to_layer

        layers = self.layers if self.ends_early(module) else None
        inputs = {} if layers is None else {"row_layers": layers}
        with up_to_layer(module, layers[-1] if layers else None):
            return read_batch(module, batch, self.implementation, **inputs)

    def ends_early(self, module: "nn.Module") -> bool:
        """Return whether `read` ends before the last layer, and so do the hidden states."""
        # A wrapper such as DDP has to find every layer in the graph.
        return self.layers is not None and hasattr(module, "layers")

    def from_rows(
        self, rows: "tuple[Tensor, ...]", hidden_BSD: "Tensor", batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        """Return what `__call__` returns, from attention rows and hidden states; see `read`."""
        raise NotImplementedError

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        self.check_step(metrics)
        return self.update(metrics)

    def check_step(self, metrics: dict[str, float]) -> None:
        """Raise AbftError if this loss alone has nothing to train."""

    def update(self, metrics: dict[str, float]) -> dict[str, float]:
        """Update what changes between steps, such as A; return what else to log."""
        return {}

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass


def check_compares(settings: "MethodSettings", k: int | None) -> None:
    """Raise AbftError if a loss that compares labels would see only one."""
    if k == 1 and settings.cross_entropy == 0:
        raise AbftError(
            f"objective {settings.objective!r} compares labels, k = 1 shows one: its loss would be "
            "0; give a larger k"
        )


# What objectives that are a loss on attention share.
LEARNS_TO_COPY = (
    "It learned to look at labels that the demonstrations show, not what the classes are: show "
    "every label."
)
HEADS_CAPTION = Caption(
    "Induction heads",
    "heads over the threshold (mean over prompts)",
    "Heads that pass the paper's filter, for comparison: this objective does not use the filter.",
)
