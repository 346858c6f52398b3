"""An objective plus the KL divergence from the untouched model on the prompts' own text."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from abft.method.objectives.base import Caption, Objective, RowObjective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from abft.data.batches import Batch

ANCHOR_TOKENS = 128  # of each sequence: its beginning
CHUNK_TOKENS = 128  # tokens whose probabilities, over the vocabulary, are in memory at once
KL_CAPTION = Caption(
    "Divergence from the untouched model",
    "KL divergence (mean over tokens, nats)",
    "How far predictions of the prompts' own text, labels left out, have moved from those of the "
    "model before training.",
)


class AnchoredObjective:
    """An objective plus `weight` times KL(untouched model || trained model) on text.

    Not in the paper. The text is the beginning of each sequence, its first demonstrations, read as
    it is; the divergence is a mean over its tokens, then over sequences. Labels are left out,
    because training is meant to change their prediction. It costs a forward pass of `ANCHOR_TOKENS`
    tokens for each sequence and, if the loss does not read the last layer, another one with its
    backward pass.

    Args:
        loss: the objective that is anchored; it keeps its controller and its state.
        weight: of the divergence in nats, > 0.
        model: the whole model, which training will change. Its present weights are the untouched
            ones, even if it was trained before.

    Raises:
        AbftError: a family whose LM head cannot be read.
    """

    def __init__(self, loss: Objective, weight: float, model: "nn.Module") -> None:
        from abft.model.attention import causal_lm
        from abft.model.capabilities import capabilities

        capabilities(causal_lm(model)).check_lm_head()  # type: ignore[arg-type]
        self.loss, self.weight, self.model = loss, weight, model
        # The heads were chosen before, on the untouched model.
        self.chosen_LH = getattr(loss, "chosen_LH", None)
        self.untouched = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def __call__(self, module: "nn.Module", batch: "Batch") -> "tuple[Tensor, dict[str, Tensor]]":
        import torch

        # Before the other passes, so that no weight changes between these and their gradient.
        ids_BS, text_BS = anchor_text(batch)
        with torch.no_grad(), _weights(self.model, self.untouched):
            before_BSD = module(input_ids=ids_BS, use_cache=False)[0]

        after_BSD = None
        if self.reads_again(module):
            loss, metrics = self.loss(module, batch)
        else:
            rows, hidden_BSD = self.loss.read(module, batch)  # type: ignore[attr-defined]
            loss, metrics = self.loss.from_rows(rows, hidden_BSD, batch)  # type: ignore[attr-defined]
            after_BSD = hidden_BSD[:, : ids_BS.shape[1]]

        # The trainer refuses a loss without a gradient.
        if torch.is_grad_enabled() and not loss.requires_grad:
            return loss, metrics

        if after_BSD is None:
            after_BSD = module(input_ids=ids_BS, use_cache=False)[0]
        kl = self._divergence(before_BSD, after_BSD, text_BS.to(after_BSD.device)).to(loss.device)
        return loss + self.weight * kl, {**metrics, "kl": kl.detach()}

    def reads_again(self, module: "nn.Module") -> bool:
        """Return whether the trained model reads the text in a pass of its own.

        Otherwise the loss's own pass is used, which reads the text as the prompts' beginning.
        """
        return not isinstance(self.loss, RowObjective) or self.loss.ends_early(module)

    def _divergence(self, before_BSD: "Tensor", after_BSD: "Tensor", text_BS: "Tensor") -> "Tensor":
        """Return the mean over sequences of the mean over their tokens.

        Its gradient is computed chunk by chunk right here: probabilities of the whole vocabulary
        are neither kept for the backward pass nor computed again in it.
        """
        import torch

        before_TD, after_TD = before_BSD[text_BS], after_BSD[text_BS]
        counts_B = text_BS.sum(1)
        share_B = 1 / (counts_B.clamp_min(1) * (counts_B > 0).sum().clamp_min(1))
        share_T = share_B.repeat_interleave(counts_B)

        total, gradients = after_TD.new_zeros((), dtype=share_T.dtype), []
        for start in range(0, len(after_TD), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            leaf_TD = after_TD[part].detach().requires_grad_(torch.is_grad_enabled())
            divergence_T = self._divergences(before_TD[part], leaf_TD)
            each = (divergence_T * share_T[part].to(divergence_T.device)).sum()
            if leaf_TD.requires_grad:
                gradients += torch.autograd.grad(each, leaf_TD)
            total = total + each.detach().to(total.device)
        if gradients:
            # The difference is 0; its gradient is the one above.
            total = total + (torch.cat(gradients) * (after_TD - after_TD.detach())).sum()
        return total

    def _divergences(self, before_TD: "Tensor", after_TD: "Tensor") -> "Tensor":
        """Return the divergence at each place, (T,)."""
        import torch
        from torch.nn.functional import kl_div

        from abft.model.attention import causal_lm
        from abft.model.lm_head import output_logits

        whole = causal_lm(self.model)
        with torch.no_grad():
            before_TV = output_logits(whole, before_TD).log_softmax(-1)  # type: ignore[arg-type]
        after_TV = output_logits(whole, after_TD).log_softmax(-1)  # type: ignore[arg-type]
        return kl_div(after_TV, before_TV, log_target=True, reduction="none").sum(-1)

    def after_step(self, metrics: dict[str, float]) -> dict[str, float]:
        return self.loss.after_step(metrics)

    def state(self) -> dict:
        return self.loss.state()

    def restore(self, state: dict) -> None:
        self.loss.restore(state)
        self.chosen_LH = getattr(self.loss, "chosen_LH", None)


def anchor_text(batch: "Batch") -> "tuple[Tensor, Tensor]":
    """Return the beginning of each sequence, (B, S) ids, and where the next token is compared.

    It is not compared if it belongs to a label, nor after the first prompt of a pack.
    """
    import torch

    ids_BS = batch.input_ids[:, :ANCHOR_TOKENS]
    B, S = ids_BS.shape
    places_S = torch.arange(S, device=ids_BS.device)

    answers_PL = batch.query_positions[:, None]
    if batch.label_ends is None:
        # Candidates are single tokens: labels.
        answers_PL = torch.cat([answers_PL, batch.label_positions - 1], 1)
    labels_BS = (answers_PL.reshape(B, -1)[:, None] == places_S[:, None]).any(-1)
    if batch.in_label is not None:
        following_BS = batch.in_label[:, 1 : S + 1]
        labels_BS[:, : following_BS.shape[1]] |= following_BS

    if batch.position_ids is not None:
        read_BS = (batch.position_ids[:, :S] == places_S).cumprod(1).bool()
    else:
        read_BS = places_S <= batch.query_positions.view(B, -1)
    return ids_BS, read_BS & ~labels_BS


@contextmanager
def _weights(model: "nn.Module", values: "dict[str, Tensor]") -> "Iterator[None]":
    """Changes `model` while open: parameters with these names have the given values."""
    import torch

    parameters = {name: model.get_parameter(name) for name in values}
    trained = {name: parameter.data for name, parameter in parameters.items()}

    # Autocast caches the weights that it has cast, and would not notice other values.
    torch.clear_autocast_cache()
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name].to(parameter.device)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = trained[name]
        torch.clear_autocast_cache()
