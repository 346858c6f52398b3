"""A loss plus the KL divergence from the untouched model on the prompts' own text."""

from contextlib import contextmanager
from typing import TYPE_CHECKING

from abft.method.objectives.base import Caption, RowObjective

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from abft.data.batches import Batch
    from abft.data.encoding import EncodedPrompt

ANCHOR_TOKENS = 128  # of each sequence: its beginning


class AnchoredObjective(RowObjective):
    """A loss plus `weight` times KL(untouched model || trained model) on text. Not in the paper.

    The text is the beginning of each sequence, its first demonstrations, read as it is. What is
    predicted where a label follows is left out: there training is meant to change the answer. It
    costs two forward passes and a backward pass of `ANCHOR_TOKENS` tokens for each sequence.

    Args:
        loss: the objective that is anchored; it keeps its controller and its state.
        weight: of the divergence, a mean over tokens in nats, > 0.
    """

    reads_output = True
    captions = {
        "kl": Caption(
            "Divergence from the untouched model",
            "KL divergence (mean over tokens, nats)",
            "How far predictions of the prompts' own text, labels left out, have moved from those "
            "of the untouched model.",
        )
    }

    def __init__(self, loss: RowObjective, weight: float) -> None:
        self.loss, self.weight = loss, weight
        self.implementation = loss.implementation

    def prepare(
        self, model: "PreTrainedModel", prompts: "Sequence[EncodedPrompt]", queries: int
    ) -> None:
        self.loss.prepare(model, prompts, queries)
        self.model = model
        self.untouched = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def __call__(self, module: "nn.Module", batch: "Batch") -> "tuple[Tensor, dict[str, Tensor]]":
        import torch

        ids_BS, text_BS = anchor_text(batch)
        with torch.no_grad(), _weights(self.model, self.untouched):
            before_TV = self._log_probabilities(module, ids_BS, text_BS)
        loss, metrics = self.loss(module, batch)
        after_TV = self._log_probabilities(module, ids_BS, text_BS)
        kl = torch.nn.functional.kl_div(after_TV, before_TV, log_target=True, reduction="batchmean")
        return loss + self.weight * kl.to(loss.device), {**metrics, "kl": kl.detach()}

    def _log_probabilities(
        self, module: "nn.Module", ids_BS: "Tensor", text_BS: "Tensor"
    ) -> "Tensor":
        """Return log-probabilities of the next token where `text_BS` holds, (T, V)."""
        from abft.model.attention import causal_lm
        from abft.model.lm_head import output_logits

        hidden_BSD = module(input_ids=ids_BS, use_cache=False)[0]
        hidden_TD = hidden_BSD[text_BS.to(hidden_BSD.device)]
        return output_logits(causal_lm(self.model), hidden_TD).log_softmax(-1)  # type: ignore[arg-type]

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        return self.loss.after_step(metrics)

    def state(self) -> dict:
        return self.loss.state()

    def restore(self, state: dict) -> None:
        self.loss.restore(state)


def anchor_text(batch: "Batch") -> "tuple[Tensor, Tensor]":
    """Return the beginning of each sequence, (B, S) ids, and where the next token is compared.

    Not where a label follows, and not after the first prompt of a pack.
    """
    import torch

    ids_BS = batch.input_ids[:, :ANCHOR_TOKENS]
    B, S = ids_BS.shape
    positions_PL = torch.cat([batch.label_positions, batch.query_positions[:, None] + 1], 1) - 1
    positions_BL = positions_PL.view(B, -1)
    places_S = torch.arange(S, device=ids_BS.device)
    answers_BS = (positions_BL[:, None] == places_S[:, None]).any(-1)
    if batch.position_ids is not None:
        read_BS = (batch.position_ids[:, :S] == places_S).cumprod(1).bool()
    else:
        read_BS = places_S <= batch.query_positions.view(B, -1)[:, -1:]
    return ids_BS, read_BS & ~answers_BS


@contextmanager
def _weights(model: "nn.Module", values: "dict[str, Tensor]") -> "Iterator[None]":
    """Changes `model` while open: its parameters of these names have other values."""
    import torch

    parameters = {name: model.get_parameter(name) for name in values}
    trained = {name: parameter.data for name, parameter in parameters.items()}
    # Autocast keeps what it has cast, and would not see that the values are others.
    torch.clear_autocast_cache()
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name].to(parameter.device)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = trained[name]
        torch.clear_autocast_cache()
