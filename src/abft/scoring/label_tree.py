"""Compute the probability of a whole label, of one or several tokens, after a prompt."""

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
    """Holds the labels' tokens as a tree, whose root is the prompt.

    A label's probability is the product of its tokens' probabilities, each given the tokens before
    it. The model has to predict at every inner node, that is, after the prompt and after each
    beginning of a label.
    """

    labels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, label_tokens: LabelTokens) -> "LabelTree":
        """Return the tree of the token, or tokens, of every class."""
        labels = ((label,) if isinstance(label, int) else label for label in label_tokens)
        return cls(tuple(map(tuple, labels)))

    @functools.cached_property
    def beginnings(self) -> tuple[tuple[int, ...], ...]:
        """Return the inner nodes, as the tokens that lead there; the prompt itself, (), first."""
        beginnings = {label[:end] for label in self.labels for end in range(len(label))}
        return tuple(sorted(beginnings))

    def extended(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """Return every prompt once for each inner node, with the node's tokens appended.

        The prompt itself comes first.
        """
        if len(self.beginnings) == 1:
            return list(prompts)

        return [
            replace(prompt, input_ids=prompt.input_ids + beginning)
            for prompt in prompts
            for beginning in self.beginnings
        ]

    def probabilities(self, model: PreTrainedModel, hidden_PD: Tensor) -> np.ndarray:
        """Return the probabilities of the labels, (N, C) float64; a row sums to 1.

        `hidden_PD`: the decoder's last hidden states at the ends of what `extended` returned, P = N
        times the inner nodes.
        """
        # Labels of one token each: only their logits are needed.
        if len(self.beginnings) == 1:
            logits_NC = output_logits(model, hidden_PD, [label[0] for label in self.labels])
            return logits_NC.cpu().double().softmax(-1).numpy()

        # Softmax makes the rows sum to 1: probabilities of whole labels do not.
        by_prompt = hidden_PD.split(len(self.beginnings))
        scores = [self._log_probabilities(model, nodes_PD) for nodes_PD in by_prompt]
        return torch.stack(scores).softmax(-1).numpy()

    def _log_probabilities(self, model: PreTrainedModel, hidden_PD: Tensor) -> Tensor:
        """Return the log-probability of every label, (C,) float64, after one prompt.

        `hidden_PD`: the last hidden states at the prompt's inner nodes.
        """
        # Only the sum over all tokens may be rounded to half precision.
        total_P1 = output_logits(model, hidden_PD).cpu().double().logsumexp(-1, keepdim=True)
        tokens = sorted({token for label in self.labels for token in label})
        log_PT = output_logits(model, hidden_PD, tokens).cpu().double() - total_P1

        # Each token of a label is predicted at the node of the tokens before it.
        node = {beginning: p for p, beginning in enumerate(self.beginnings)}
        column = {token: t for t, token in enumerate(tokens)}
        sums = [
            sum(log_PT[node[label[:i]], column[label[i]]] for i in range(len(label)))
            for label in self.labels
        ]
        return torch.stack([torch.as_tensor(value) for value in sums])
