"""Say where the heads looked when a text was classified."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from abft.data.encoding import EncodedPrompt, encoded_tokens
from abft.data.prompts import write_prompt
from abft.data.tasks import Example, PromptStyle
from abft.scoring.observer import query_start
from abft.scoring.votes import SMALLEST

if TYPE_CHECKING:
    from torch import Tensor

    from abft.runs.predictor import Predictor

_MARK = "\0"  # placeholder for the text; no template contains it

# Shares of the demonstrations (K,), attention on the query's tokens, number of heads.
Look = tuple[np.ndarray, np.ndarray, int]


@dataclass(frozen=True)
class Explanation:
    """Says which demonstrations and which tokens of a text the heads looked at.

    It describes attention. docs/interpretability.md measures whether predictions follow it.

    Attributes:
        text: the text, as far as it was read.
        label: the predicted label.
        probabilities: of every label; they sum to 1.
        demonstrations: (text, label) of each of the K demonstrations, in the order of the prompt.
        shares: each demonstration's share of the attention on all demonstrations' labels, (K,);
            they sum to 1. They count the heads that pass the filter S > k / (k + ln n) of arXiv
            2505.14233, or all heads if none passes; with attention as the read-out, they count the
            heads that are read.
        tokens: the T tokens of the text, as pieces of it.
        token_shares: each token's share of all heads' attention on the text, (T,); they sum to 1.
        heads: how many heads pass the filter, or are read.
    """

    text: str
    label: str
    probabilities: dict[str, float]
    demonstrations: tuple[tuple[str, str], ...]
    shares: np.ndarray
    tokens: tuple[str, ...]
    token_shares: np.ndarray
    heads: float

    def record(self) -> dict[str, Any]:
        """Return the same, JSON-ready."""
        return {
            "text": self.text,
            "label": self.label,
            "probabilities": self.probabilities,
            "demonstrations": [
                {"text": text, "label": label, "share": round(float(share), 4)}
                for (text, label), share in zip(self.demonstrations, self.shares, strict=True)
            ],
            "tokens": [
                {"token": token, "share": round(float(share), 4)}
                for token, share in zip(self.tokens, self.token_shares, strict=True)
            ],
            "heads": self.heads,
        }


def look(
    prompt: EncodedPrompt,
    rows_LHS: "Tensor",
    heads_LH: "Tensor | None" = None,
    fixed_threshold: float | None = None,
) -> Look:
    """Return what an explanation needs from one prompt's attention rows, (L, H, n).

    Args:
        heads_LH: bool, the heads to count instead of those that pass the filter.
        fixed_threshold: threshold of the filter, instead of T = k / (k + ln n).
    """
    on_text_S = rows_LHS[:, :, query_start(prompt) :].mean((0, 1)).cpu().numpy()
    k, n = len(prompt.label_positions), len(prompt.input_ids)
    if k == 0:
        return np.zeros(0), on_text_S, 0

    on_labels_LHK = rows_LHS[:, :, list(prompt.label_positions)]
    if heads_LH is None:
        from abft.scoring.inspect import induction_heads

        positions = [prompt.label_positions]
        scores = induction_heads(rows_LHS[:, None], positions, [n], fixed_threshold)
        passes_LH = scores.mask_LBH[:, 0]
    else:
        passes_LH = heads_LH.to(on_labels_LHK.device)
    heads = int(passes_LH.sum())
    if heads:
        on_labels_LHK = on_labels_LHK * passes_LH[:, :, None]
    shares_K = on_labels_LHK.sum((0, 1)).cpu().double().numpy() + SMALLEST
    return shares_K / shares_K.sum(), on_text_S, heads


def explain(
    predictor: "Predictor", texts: Sequence[str], probabilities: np.ndarray, looks: Sequence[Look]
) -> list[Explanation]:
    """Return an explanation of every text, from what `look` returned for its prompt."""
    # The texts as they were read: long ones were cut.
    texts = predictor.fit(texts)
    task, labels = predictor.task, predictor.task.labels
    shown = tuple((example.text, labels[example.label]) for example in predictor.demonstrations)
    style = predictor.prompt_style

    def written(text: str) -> str:
        return write_prompt(task, predictor.demonstrations, Example(text, 0), style).text

    # Every text starts at the same character. The text itself is not searched for: it may also
    # occur in what follows it, such as "label".
    start = written(_MARK).rindex(_MARK)
    explanations = []
    for text, row, (shares_K, on_text_S, heads) in zip(texts, probabilities, looks, strict=True):
        tokens, token_shares = _text_tokens(
            predictor.tokenizer, written(text), style, start, start + len(text), on_text_S
        )
        explanations.append(
            Explanation(
                text,
                labels[row.argmax()],
                dict(zip(labels, row.tolist(), strict=True)),
                shown,
                shares_K,
                tokens,
                token_shares,
                heads,
            )
        )
    return explanations


def together(explanations: Sequence[Explanation], probabilities: dict[str, float]) -> Explanation:
    """Combine explanations of one text that was read after several sets of demonstrations."""
    first = explanations[0]
    token_shares = np.mean([each.token_shares for each in explanations], axis=0)
    return Explanation(
        first.text,
        max(probabilities, key=lambda label: probabilities[label]),
        probabilities,
        tuple(shown for each in explanations for shown in each.demonstrations),
        np.concatenate([each.shares for each in explanations]) / len(explanations),
        first.tokens,
        token_shares,
        float(np.mean([each.heads for each in explanations])),
    )


def _text_tokens(
    tokenizer: Any,
    prompt: str,
    style: PromptStyle,
    start: int,
    end: int,
    on_query_S: np.ndarray,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the pieces into which the tokenizer cuts the text prompt[start:end], and the share of
    attention on each.
    """
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    offsets = offsets[: encoded_tokens(offsets, style)]
    offsets = offsets[len(offsets) - len(on_query_S) :]

    attention: dict[tuple[int, int], float] = {}
    for (a, b), value in zip(offsets, on_query_S.tolist(), strict=True):
        span = max(a, start), min(b, end)
        # A character that consists of several tokens is one piece.
        if span[0] < span[1]:
            attention[span] = attention.get(span, 0.0) + value

    # Tokenizers leave spaces out of offsets: each belongs to the token after it.
    ends = [start, *(b for _, b in attention)]
    ends[-1] = end
    # Where no head looks at the text, as with short sliding windows, all tokens count alike.
    values = np.array(list(attention.values())) + SMALLEST
    return tuple(prompt[a:b] for a, b in pairwise(ends)), values / values.sum()
