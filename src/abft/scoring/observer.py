"""Look inside the model while it scores prompts: hidden states and attention of the query."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from abft.data.batches import Batch, at_positions
from abft.data.encoding import EncodedPrompt
from abft.model.attention import decoder, read_output, row_attention
from abft.model.capabilities import capabilities

Look = Callable[[EncodedPrompt, Tensor], Any]


class Observer:
    """Collects hidden states and attention from `LabelScorer.observe`; costs nothing if unused.

    The query's own tokens are those after the last demonstration's label or, in a prompt without
    demonstrations, all tokens.

    Args:
        prompts: encoded prompts.
        layers: numbers of the layers after which hidden states are read; 0 = the embeddings.
        look: called for every prompt with its attention rows from the last token, (L, H, n) float32
            on the model's device; what it returns is collected.

    Attributes:
        hidden: (N, 2, layers, D) float32: the mean over the query's own tokens, and the last token.
        looks: what `look` returned, by prompt.
    """

    def __init__(
        self,
        prompts: Sequence[EncodedPrompt],
        layers: Sequence[int] = (),
        look: Look | None = None,
    ) -> None:
        self.prompts, self.layers, self.look = list(prompts), tuple(layers), look
        self.looks: list[Any] = [None] * len(self.prompts)
        self._hidden: dict[int, np.ndarray] = {}

    @property
    def hidden(self) -> np.ndarray:
        return np.stack([self._hidden[i] for i in range(len(self.prompts))])

    def see(self, index: int, states: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        """Take a prompt's hidden states, (tokens, D), and rows, (H, n), of each layer.

        States may be of the prompt's last tokens only, but have to include its query.
        """
        prompt = self.prompts[index]
        if self.layers:
            own = len(prompt.input_ids) - query_start(prompt)
            pooled = [
                torch.stack([state[-own:].float().mean(0), state[-1].float()]) for state in states
            ]
            self._hidden[index] = torch.stack([each.cpu() for each in pooled], dim=1).numpy()
        if self.look:
            device = rows[0].device  # layers may be on several
            self.looks[index] = self.look(prompt, torch.stack([row.to(device) for row in rows]))

    @property
    def asks(self) -> bool:
        """Return whether anything is asked for."""
        return bool(self.layers) or self.look is not None

    def run(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        """Run some prompts as a plain batch; return the decoder's last hidden states, (P, D)."""
        inner, supported = decoder(model), capabilities(model)
        device = next(inner.parameters()).device
        batch = Batch.of([self.prompts[i] for i in indices], 1, device)
        implementation = supported.implementation
        with row_attention(model, implementation):
            rows, output = read_output(
                inner,
                batch.input_ids,
                batch.query_positions,
                implementation,
                output_hidden_states=bool(self.layers),
            )

        for p, i in enumerate(indices):
            n = len(self.prompts[i].input_ids)
            states = [output.hidden_states[layer][p, :n] for layer in self.layers]
            self.see(i, states, [row_PHS[p, :, :n] for row_PHS in rows])
        return at_positions(output[0], batch.query_positions)


def query_start(prompt: EncodedPrompt) -> int:
    """Return the first of the query's own tokens: after the last demonstration's label."""
    ends = (end for _, end in prompt.label_words)  # of labels of several tokens
    return max(max(prompt.label_positions, default=-1) + 1, *ends, 0)
