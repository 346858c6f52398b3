"""Labels of one or several tokens: the probability of a whole label after a prompt."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from abft.data.encoding import EncodedPrompt, LabelTokens
from abft.model.lm_head import output_logits


@dataclass(frozen=True)
class LabelTree:
    """The labels' tokens as a tree. A label's probability is the product of its tokens'
    probabilities, each after those before.

    The model is asked at every inner node, that is after the prompt and after each beginning of a
    label.
    """

    labels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, label_tokens: LabelTokens) -> "LabelTree":
        return cls(
            tuple((label,) if isinstance(label, int) else tuple(label) for label in label_tokens)
        )

    @functools.cached_property
    def beginnings(self) -> tuple[tuple[int, ...], ...]:
        """The inner nodes, as the tokens that lead there; the prompt itself, (), comes first."""
        return tuple(sorted({label[:end] for label in self.labels for end in range(len(label))}))

    def extended(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """For every prompt as many as there are inner nodes, each with the node's tokens after it;
        the prompt itself first.
        """
        if len(self.beginnings) == 1:
            return list(prompts)
        return [
            replace(prompt, input_ids=prompt.input_ids + begun)
            for prompt in prompts
            for begun in self.beginnings
        ]

    def probabilities(self, model: PreTrainedModel, hidden_PD: Tensor) -> np.ndarray:
        """(N, C) float64; a row sums to 1.

        `hidden_PD`: the decoder's last hidden states at the ends of what `extended` returned, P = N
        times the inner nodes.
        """
        if len(self.beginnings) == 1:
            logits_NC = output_logits(model, hidden_PD, [label[0] for label in self.labels])
            return logits_NC.cpu().double().softmax(-1).numpy()
        scores = [
            self._log_probabilities(model, each) for each in hidden_PD.split(len(self.beginnings))
        ]
        return torch.stack(scores).softmax(-1).numpy()

    def _log_probabilities(self, model: PreTrainedModel, hidden_MD: Tensor) -> Tensor:
        """Of every label after one prompt, (C,) float64."""
        log_MV = output_logits(model, hidden_MD).cpu().double().log_softmax(-1)
        node = {begun: m for m, begun in enumerate(self.beginnings)}
        sums = [
            sum(log_MV[node[label[:i]], label[i]] for i in range(len(label)))
            for label in self.labels
        ]
        return torch.stack([torch.as_tensor(value) for value in sums])
