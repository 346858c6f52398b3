"""Read groups of prompts that share demonstrations: label words and attention, in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from abft.data.batches import Batch, at_positions
from abft.data.mixture import Group
from abft.method.head_statistics import label_attention
from abft.model.attention import causal_lm, decoder, read_batch, row_attention
from abft.scoring.label_tree import LabelTree
from abft.scoring.votes import SMALLEST


@dataclass(frozen=True)
class GroupReading:
    """What was read from the model for the P prompts of a group.

    Attributes:
        label_words: probabilities of the classes' label words, (P, C) float64.
        attention: attention of every head on the labels of each class, (P, L, H, C) float32.
        targets: correct class of each prompt, (P,).
    """

    label_words: np.ndarray
    attention: np.ndarray
    targets: np.ndarray

    def votes(self, heads_LH: np.ndarray | None = None) -> np.ndarray:
        """Return the share of each class in the attention on labels, of some heads or all, (P, C).

        All classes have the same share if these heads look at no label.
        """
        attention_PLHC = self.attention
        if heads_LH is not None:
            attention_PLHC = attention_PLHC * heads_LH[None, :, :, None]
        votes_PC = attention_PLHC.sum((1, 2), dtype=float)
        votes_PC += SMALLEST
        return votes_PC / votes_PC.sum(1, keepdims=True)


@torch.no_grad()
def read_groups(
    model: PreTrainedModel,
    groups: Sequence[Group],
    progress: Callable[[int], object] | None = None,
) -> list[GroupReading]:
    """Run each group as one sequence and read label words and attention at every query.

    Changes `model` to eval mode. Needs a family whose prompts can be packed.
    """
    model.eval()
    inner, whole = decoder(model), causal_lm(model)
    device = next(inner.parameters()).device

    readings = []
    with row_attention(model):
        for group in groups:
            # Labels of several tokens are scored at each of their beginnings, the prompt first.
            tree = LabelTree.of(group.label_tokens)
            extended = tree.extended(group.prompts)
            batch = Batch.of(extended, len(extended), device)
            rows, hidden_BSD = read_batch(inner, batch)
            hidden_PD = at_positions(hidden_BSD, batch.query_positions)

            # The attention is that of the prompts alone: each prompt is the first of its nodes.
            labels_LPHK = label_attention(rows, batch)[:, :: len(tree.beginnings)]
            attention_LPHC = labels_LPHK @ _classes(group).to(labels_LPHK.device)
            readings.append(
                GroupReading(
                    tree.probabilities(whole, hidden_PD),
                    attention_LPHC.transpose(0, 1).cpu().numpy(),
                    np.array([prompt.target for prompt in group.prompts]),
                )
            )
            if progress:
                progress(len(group.prompts))
    return readings


def _classes(group: Group) -> Tensor:
    """Return the classes of the demonstrations as one-hot vectors, (P, K, C).

    All are 0 where a prompt has fewer than K demonstrations.
    """
    K = max(len(prompt.label_classes) for prompt in group.prompts)
    classes_PKC = torch.zeros(len(group.prompts), K, len(group.task.labels))
    for p, prompt in enumerate(group.prompts):
        classes_PKC[p, torch.arange(len(prompt.label_classes)), list(prompt.label_classes)] = 1
    return classes_PKC
