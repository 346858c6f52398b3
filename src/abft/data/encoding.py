"""Encode prompts as tokens, with the position of every demonstration's label.

A label's position comes from the character span recorded while the prompt was written and from the
fast tokenizer's offsets; prefixes are never tokenised again.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abft.data.prompts import Prompt, write_prompt
from abft.data.tasks import Example, PromptStyle, Task
from abft.errors import AbftError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

LabelTokens = Sequence[int | tuple[int, ...]]  # for every class its token, or several


@dataclass(frozen=True)
class EncodedPrompt:
    """Holds a prompt as tokens; its last token, the query position, predicts the label.

    The query position looks at candidates: labels of demonstrations, or spans of tokens such as
    documents.
    """

    input_ids: tuple[int, ...]
    label_positions: tuple[int, ...]  # where a candidate starts; for a label, the token to look at
    label_classes: tuple[int, ...]
    target: int
    answer: int = -1  # token id of the query's correct label word; -1 = not recorded
    label_ends: tuple[int, ...] = ()  # after the last token of each candidate; () = one token each
    looking: int = 1  # how many of the last tokens look; their rows are averaged
    blocks: bool = False  # candidates see what precedes all of them and themselves, not each other
    label_words: tuple[tuple[int, int], ...] = ()  # (start, end) of labels longer than a token


def attention_target(
    input_ids: Sequence[int],
    candidates: Sequence[int] | Sequence[tuple[int, int]],
    correct: Sequence[bool],
    answer: int = -1,
    *,
    looking: int = 1,
    blocks: bool = False,
) -> EncodedPrompt:
    """Return a prompt whose last token should look at the correct ones of some candidates.

    Any attention can be trained or measured with it. Label tokens of demonstrations are one use;
    passages of which one holds the answer are another (`AttentionRanker`).

    Args:
        input_ids: token ids of the prompt, up to the position that looks.
        candidates: positions to choose from, k of them; or spans (start, end) of tokens, `end`
            excluded, in order, whose attention is summed.
        correct: for each candidate whether it is correct.
        answer: token id that should come next, for the end-to-end objective; -1 = none.
        looking: how many of the last tokens look; their attention is averaged.
        blocks: spans see what precedes the first of them, and themselves, but not each other; as
            in BlockRank (arXiv 2510.05396).

    Raises:
        ValueError: no candidates, a position outside the prompt or given twice, spans that overlap
            or are empty, or not one `correct` for each.
    """
    # Also numpy's numbers, and lists as JSON has them.
    places = [
        tuple(map(operator.index, candidate))
        if isinstance(candidate, Iterable)
        else operator.index(candidate)
        for candidate in candidates
    ]
    if not places or len(places) != len(correct) or len(set(places)) < len(places):
        raise ValueError(
            f"expected distinct candidates and whether each is right, got {places} and "
            f"{list(correct)}"
        )

    if not 1 <= looking <= len(input_ids):
        raise ValueError(f"looking = {looking}: expected 1 to {len(input_ids)} tokens")

    # Correct candidates are of class 1, which is the target.
    ids, classes = tuple(input_ids), tuple(map(int, correct))
    positions = [place for place in places if isinstance(place, int)]
    if positions:
        if blocks:
            raise ValueError("blocks: expected spans (start, end) as candidates, got positions")
        if len(positions) < len(places) or not all(0 <= i < len(ids) for i in positions):
            raise ValueError(f"candidates {places}: expected positions from 0 to {len(ids) - 1}")
        return EncodedPrompt(ids, tuple(positions), classes, 1, answer, looking=looking)

    spans = [place for place in places if not isinstance(place, int)]
    bounds = [bound for span in spans for bound in span]
    ordered = all(start < end for start, end in spans) and bounds == sorted(bounds)
    if not ordered or bounds[0] < 0 or bounds[-1] > len(ids) - looking:
        raise ValueError(
            f"spans {spans}: expected non-empty ones in order, which end before the {looking} of "
            f"{len(ids)} tokens that look"
        )
    starts, ends = zip(*spans, strict=True)
    return EncodedPrompt(ids, starts, classes, 1, answer, ends, looking, blocks)


def encoded_tokens(offsets: Sequence[tuple[int, int]], prompt_style: PromptStyle) -> int:
    """Return how many of a prompt's tokens are read, given the characters of each.

    Special tokens at the end are dropped; StaICC scores the very last token, special or not.
    """
    length = len(offsets)
    while (
        prompt_style == "consistent" and length and offsets[length - 1][0] == offsets[length - 1][1]
    ):
        length -= 1
    return length


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    prompt_style: PromptStyle = "consistent",
    max_length: int | None = None,
    scored: LabelTokens = (),
) -> list[EncodedPrompt]:
    """Tokenise prompts and find the token of every label word.

    Args:
        max_length: the model's context in tokens; None = unlimited.
        scored: the labels that will be scored after the prompts: all but the last token of the
            longest has to fit in the context too.

    Raises:
        AbftError: a prompt is longer than `max_length`, a label word has no token of its own, or
            the tokenizer is not a fast one.
    """
    if not prompts:
        return []
    if not tokenizer.is_fast:
        raise AbftError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed"
        )

    room = label_room(scored)

    texts = [prompt.text for prompt in prompts]
    encoding = tokenizer(texts, return_offsets_mapping=True, verbose=False)
    encoded = []
    for number, prompt in enumerate(prompts):
        ids, offsets = encoding["input_ids"][number], encoding["offset_mapping"][number]

        length = encoded_tokens(offsets, prompt_style)
        ids, offsets = ids[:length], offsets[:length]

        if max_length is not None and len(ids) + room > max_length:
            labels = f" and {room} of a label" if room else ""
            raise AbftError(
                f"prompt {number} has {len(ids)} tokens{labels}, the model reads at most "
                f"{max_length}. Use a smaller k or shorter texts."
            )

        words = [_label_word(prompt, span, offsets) for span in prompt.label_spans]
        # Heads should look at a label's first token, or at its last in the `staicc` style: the one
        # that StaICC scores.
        first = prompt_style == "consistent"
        positions = tuple(start if first else end - 1 for start, end in words)
        longer = tuple((start, end) for start, end in words if end - start > 1)
        encoded.append(
            EncodedPrompt(
                tuple(ids), positions, prompt.label_classes, prompt.target, label_words=longer
            )
        )
    return encoded


def label_room(scored: LabelTokens) -> int:
    """Return how many tokens of the longest label are read; its last one is only predicted."""
    return max((len(label) - 1 for label in scored if not isinstance(label, int)), default=0)


def _overlapping(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the tokens, as indices into `offsets`, that share a character with `span`."""
    return [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]


def _label_word(
    prompt: Prompt, span: tuple[int, int], offsets: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Return (start, end) of the tokens of a label."""
    positions = _overlapping(span, offsets)
    if not positions:
        raise _without_token(prompt.text[span[0] : span[1]])
    return positions[0], positions[-1] + 1


def label_tokens(
    tokenizer: "PreTrainedTokenizerBase", task: Task, prompt_style: PromptStyle = "consistent"
) -> list[int | tuple[int, ...]]:
    """Return the token id of each class's label; a tuple if the label is several tokens.

    These tokens follow the query position. `consistent`: the tokens of the label word as a
    demonstration writes it; if one label begins with another, every label also includes the token
    that follows it there. `staicc`: the last sub-token of the bare label word, as StaICC scores it.

    Raises:
        AbftError: two labels are the same tokens, the tokenizer writes the label differently after
            a query than inside a demonstration, or it is not a fast one.
    """
    if not tokenizer.is_fast:
        raise AbftError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed"
        )
    if prompt_style == "staicc":
        last_tokens = []
        for word in task.label_words:
            ids = tokenizer(word)["input_ids"]
            if not ids:
                raise _without_token(word)
            last_tokens.append(ids[-1])
        _refuse_shared_tokens(task, last_tokens)
        return last_tokens

    # Each label's tokens in a demonstration, and the same with the token that follows them.
    tokens: list[tuple[int, ...]] = []
    ended_tokens: list[tuple[int, ...]] = []
    detached_words, unended_words = [], []
    following = len(task.template.after_label + task.template.before_text)
    for label, word in enumerate(task.label_words):
        prompt, encoding = _in_demonstration(tokenizer, task, label)
        positions = _overlapping(prompt.label_spans[0], encoding["offset_mapping"])
        ids = encoding["input_ids"]
        if not positions:
            raise _without_token(word)

        # A query ends where this label begins. A space before the label belongs to the label.
        query_text = prompt.text[: prompt.label_spans[0][0]].rstrip(" ")
        (query,) = encode(tokenizer, [Prompt(query_text, (), (), label)])
        start = len(query.input_ids)
        if list(query.input_ids) != ids[:start]:
            detached_words.append(word)

        tokens.append(tuple(ids[start : positions[-1] + 1]))
        ended_tokens.append(tuple(ids[start : positions[-1] + 2]))
        # The token that follows must be the template's alone, not begin the next text.
        end = encoding["offset_mapping"][positions[-1] + 1][1]
        if end > prompt.label_spans[0][1] + following:
            unended_words.append(word)

    _refuse_shared_tokens(task, tokens)
    if detached_words:
        label_text = task.template.before_label.strip() + " " + detached_words[0]
        raise AbftError(
            f"this tokenizer splits {label_text!r} so that the label does not directly follow the "
            "query; write the template without the space before {label}"
        )

    # Otherwise, the probability of a label with which another begins would include the other's.
    if any(a != b and b[: len(a)] == a for a in tokens for b in tokens):
        if unended_words:
            raise AbftError(
                f"one label begins with another, such as {unended_words[0]!r}, and in template "
                f"{task.template.pattern!r} nothing of its own follows them; end it with a newline "
                "(\\n), or choose other label words"
            )
        tokens = ended_tokens
    return [label[0] if len(label) == 1 else label for label in tokens]


def _in_demonstration(
    tokenizer: "PreTrainedTokenizerBase", task: Task, label: int
) -> tuple[Prompt, "BatchEncoding"]:
    """Return a prompt whose only demonstration has the label, and its tokens with their offsets."""
    # As in training; the texts of the demonstration and the query do not matter.
    prompt = write_prompt(task, [Example("text", label)], Example("text", label), "consistent")
    return prompt, tokenizer(prompt.text, return_offsets_mapping=True)


def label_texts(tokenizer: "PreTrainedTokenizerBase", task: Task) -> list[str]:
    """Return what follows a prompt for each label: text whose tokens are those of `label_tokens`.

    Where one label begins with another, it includes what follows a label in the template, as far
    as the next token goes.
    """
    scored = label_tokens(tokenizer, task)
    texts = []
    for label, tokens in enumerate(scored):
        prompt, encoding = _in_demonstration(tokenizer, task, label)
        offsets = encoding["offset_mapping"]
        start, end = prompt.label_spans[0]
        begin = len(prompt.text[:start].rstrip(" "))  # a space before the label belongs to it
        first = next(i for i, (_, stop) in enumerate(offsets) if stop > begin)
        last = first + (1 if isinstance(tokens, int) else len(tokens)) - 1
        texts.append(prompt.text[begin : max(end, offsets[last][1])])
    return texts


def first_tokens(label_tokens: LabelTokens) -> list[int]:
    """Return the token with which each label begins."""
    return [label if isinstance(label, int) else label[0] for label in label_tokens]


def with_answers(
    prompts: Sequence[EncodedPrompt], label_tokens: LabelTokens
) -> list[EncodedPrompt]:
    """Return the prompts with the first token of the correct label recorded.

    Objectives that look at the LM's output need it.
    """
    answers = first_tokens(label_tokens)
    return [replace(prompt, answer=answers[prompt.target]) for prompt in prompts]


def _without_token(word: str) -> AbftError:
    """Return the error for a label word that the tokenizer drops."""
    return AbftError(
        f"label word {word!r} has no token of its own in a prompt; choose another word"
    )


def _refuse_shared_tokens(task: Task, tokens: Sequence[int] | Sequence[tuple[int, ...]]) -> None:
    """Raise AbftError if two labels are the same tokens."""
    for i, token in enumerate(tokens):
        if token in tokens[:i]:
            first, second = task.label_words[tokens.index(token)], task.label_words[i]  # type: ignore[arg-type]
            raise AbftError(
                f"label words {first!r} and {second!r} have the same tokens for this tokenizer and "
                "cannot be told apart; map one to another word with --label-words 'LABEL=word'"
            )
