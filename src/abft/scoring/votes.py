"""Read the answer from attention: the class whose labels the heads look at most."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from abft.data.encoding import EncodedPrompt
from abft.errors import AbftError
from abft.model.attention import causal_lm
from abft.model.qk_weights import softmax_layers
from abft.scoring.observer import Look

if TYPE_CHECKING:
    from torch import nn

SMALLEST = float(np.finfo(float).tiny)  # added where a sum of attention may be 0


def vote(
    on_labels_LHK: Tensor,
    label_classes: Sequence[int],
    classes: int,
    heads_LH: Tensor | None = None,
) -> np.ndarray:
    """Return the share of each class in the attention on labels, (C,) float64; they sum to 1.

    All classes have the same share if no label is looked at.

    Args:
        on_labels_LHK: attention of a prompt's query position on the label of each demonstration.
        label_classes: class of each demonstration, K.
        classes: C.
        heads_LH: bool: the heads that count; None = all.
    """
    if heads_LH is not None:
        on_labels_LHK = on_labels_LHK * heads_LH[:, :, None].to(on_labels_LHK.device)
    on_labels_K = on_labels_LHK.sum((0, 1)).cpu().double()
    votes_C = torch.full((classes,), SMALLEST, dtype=torch.double)
    votes_C.index_add_(0, torch.tensor(label_classes, dtype=torch.long), on_labels_K)
    return (votes_C / votes_C.sum()).numpy()


def voting(classes: int, look: Look | None, heads_LH: Tensor | None = None) -> Look:
    """Return a function for an `Observer` that returns a prompt's vote, and what `look` returns."""

    def both(prompt: EncodedPrompt, rows_LHS: Tensor) -> tuple[np.ndarray, Any]:
        on_labels_LHK = rows_LHS[:, :, list(prompt.label_positions)]
        votes_C = vote(on_labels_LHK, prompt.label_classes, classes, heads_LH)
        return votes_C, look(prompt, rows_LHS) if look else None

    return both


def head_mask(model: "nn.Module", heads: Sequence[tuple[int, int]] | None) -> Tensor:
    """Return a mask of the given heads, (L, H) bool; L counts the layers with softmax attention.

    Args:
        heads: (layer, head) pairs; layers by their number in the model; None = all.

    Raises:
        AbftError: no heads, or one that the model does not have.
    """
    if heads is not None and not heads:
        raise AbftError("no heads to read: expected (layer, head) pairs")
    layers = softmax_layers(model)
    count = causal_lm(model).config.get_text_config().num_attention_heads  # type: ignore[arg-type]
    chosen_LH = torch.full((len(layers), count), heads is None)
    for layer, head in heads or ():
        if layer not in layers or not 0 <= head < count:
            raise AbftError(
                f"head {head} of layer {layer} is not in this model: it has {count} heads in each "
                f"of the layers {layers[0]} to {layers[-1]} that have attention"
            )
        chosen_LH[layers.index(layer), head] = True
    return chosen_LH
