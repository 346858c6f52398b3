"""Read texts after sets of demonstrations: label words, attention on labels, hidden states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from abft.data.splits import text_key
from abft.readouts.probe import log_softmax

if TYPE_CHECKING:
    from torch import Tensor

    from abft.data.encoding import EncodedPrompt
    from abft.runs.predictor import Predictor

# Layers whose hidden states are read, as shares of the depth: as the mean over the text's tokens,
# and at the last token. Chosen on training pools (results/readouts/pilot.txt).
MEAN_DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6)
LAST_DEPTHS = (2 / 3, 5 / 6, 1)

_SMALLEST = 1e-4  # probability: a class that is not among the demonstrations gets no attention


@dataclass(frozen=True)
class Readings:
    """What was read from the model for N texts after each of S sets of demonstrations.

    Attributes:
        label_words: probabilities of the classes' label words, (S, N, C).
        attention: shares of the classes in all heads' attention on labels, (S, N, C).
        views: V hidden states of each text, (S, N, V, D) float32; None = not read.
        k: demonstrations in a prompt.
        known: False if the text is one of the set's demonstrations, so that its label would be
            copied, (S, N) bool. Means over sets need one True for every text.
        looks: what `look` returned, by set and text.
    """

    label_words: np.ndarray
    attention: np.ndarray
    views: np.ndarray | None
    known: np.ndarray
    k: int
    looks: Sequence[Sequence[Any]] = ()

    def of(self, texts: np.ndarray) -> "Readings":
        """Return the readings of some texts, by their indices."""
        views = None if self.views is None else self.views[:, texts]
        return Readings(
            self.label_words[:, texts],
            self.attention[:, texts],
            views,
            self.known[:, texts],
            self.k,
        )

    def log_probabilities(self, source: str) -> np.ndarray:
        """Return "label_words" or "attention", the mean over sets, as log-probabilities (N, C)."""
        shares_SNC = {"label_words": self.label_words, "attention": self.attention}[source]
        mean_NC = over_sets(shares_SNC, self.known)
        return log_softmax(np.log(np.maximum(mean_NC, _SMALLEST)))


def over_sets(values_SNC: np.ndarray, known_SN: np.ndarray) -> np.ndarray:
    """Return the mean over the sets that do not show a text (`known` is True), (N, C)."""
    weights_SN1 = known_SN[:, :, None].astype(float)
    return (values_SNC * weights_SN1).sum(0) / weights_SN1.sum(0)


def read_texts(
    predictors: "Sequence[Predictor]",
    texts: Sequence[str],
    *,
    hidden: bool = True,
    attention: bool = True,
    shown: "Sequence[set[str]] | None" = None,
    look: "Callable[[EncodedPrompt, Tensor], Any] | None" = None,
    batch_size: int = 16,
    progress: Callable[[int], object] | None = None,
) -> Readings:
    """Read texts with one predictor for each set of demonstrations.

    Args:
        hidden, attention: whether to read hidden states (else None) and attention (else zeros).
        look: called for every prompt with its attention rows, as in `Observer`.
        shown: `text_key` of each set's demonstrations, for which `known` is False; default: none.
    """
    from abft.model.attention import causal_lm
    from abft.scoring.votes import voting

    config = causal_lm(predictors[0].model).config.get_text_config()
    depth, classes = config.num_hidden_layers, len(predictors[0].task.labels)
    pooled = [(0, round(share * depth)) for share in MEAN_DEPTHS]
    pooled += [(1, round(share * depth)) for share in LAST_DEPTHS]
    layers = sorted({layer for _, layer in pooled}) if hidden else []

    words, votes, views, looks = [], [], [], []
    for predictor in predictors:
        probabilities, observer = predictor.observe(
            texts,
            layers,
            voting(classes, look) if attention or look else None,
            batch_size,
            progress,
        )
        words.append(probabilities)
        votes.append(np.zeros_like(probabilities))
        if attention or look:
            votes[-1] = np.stack([vote for vote, _ in observer.looks])
            looks.append([seen for _, seen in observer.looks])
        if hidden:
            states = observer.hidden
            chosen = [states[:, kind, layers.index(layer)] for kind, layer in pooled]
            views.append(np.stack(chosen, axis=1))

    keys = [text_key(text) for text in texts]
    known = [[key not in (shown[s] if shown else ()) for key in keys] for s in range(len(words))]
    return Readings(
        np.stack(words),
        np.stack(votes),
        np.stack(views) if hidden else None,
        np.array(known),
        len(predictors[0].demonstrations),
        looks,
    )
