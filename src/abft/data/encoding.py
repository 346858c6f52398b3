"""Prompts as tokens, with the position of every demonstration's label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abft.data.tasks import Example, PromptStyle, Task
from abft.errors import AbftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from abft.data.prompts import Prompt, write_prompt

LabelTokens = Sequence[int | tuple[int, ...]]  # of every class: its token, or several


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as tokens; its last token is the query position, the one that predicts the label."""

    input_ids: tuple[int, ...]
    label_positions: tuple[int, ...]  # token index of each demonstration's label
    label_classes: tuple[int, ...]
    target: int
    answer: int = -1  # token id of the query's correct label word; -1 = not recorded


def attention_target(
    input_ids: Sequence[int], candidates: Sequence[int], correct: Sequence[bool], answer: int = -1
) -> EncodedPrompt:
    """A prompt of any kind to train or measure attention on: its last token should look at the
    right ones of some candidates.

    Label tokens of demonstrations are one use; passages of which one holds the answer are another
    (examples/retrieval.py).

    Args:
        input_ids: token ids of the prompt, up to the position that looks.
        candidates: positions to choose from, k of them.
        correct: for each candidate whether it is right.
        answer: token id that should come next, for the end-to-end objective; -1 = none.

    Raises:
        ValueError: no candidates, a position outside the prompt or given twice, or not one
            `correct` for each.
    """
    if not candidates or len(candidates) != len(correct) or len(set(candidates)) < len(candidates):
        raise ValueError(
            f"expected distinct candidates and whether each is right, got {list(candidates)} "
            f"and {list(correct)}"
        )
    if not all(0 <= at < len(input_ids) for at in candidates):
        raise ValueError(
            f"candidates {list(candidates)}: expected positions from 0 to {len(input_ids) - 1}"
        )
    return EncodedPrompt(
        tuple(input_ids), tuple(candidates), tuple(map(int, correct)), target=1, answer=answer
    )


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    prompt_style: PromptStyle = "consistent",
    max_length: int | None = None,
) -> list[EncodedPrompt]:
    """Tokenise prompts and find the token of every label word.

    Args:
        max_length: the model's context in tokens; None = unlimited.

    Raises:
        AbftError: a prompt is longer than `max_length`, or a label word has no token of its own.
    """
    if not prompts:
        return []
    if not tokenizer.is_fast:
        raise AbftError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed"
        )
    encoding = tokenizer(
        [prompt.text for prompt in prompts], return_offsets_mapping=True, verbose=False
    )
    encoded = []
    for number, prompt in enumerate(prompts):
        ids, offsets = encoding["input_ids"][number], encoding["offset_mapping"][number]
        if prompt_style == "consistent":  # StaICC scores the very last token, special or not
            while offsets and offsets[-1][0] == offsets[-1][1]:
                ids, offsets = ids[:-1], offsets[:-1]
        if max_length is not None and len(ids) > max_length:
            raise AbftError(
                f"prompt {number} has {len(ids)} tokens, the model reads at most {max_length}. "
                "Use a smaller k or shorter texts."
            )
        positions = tuple(
            _label_position(prompt, span, offsets, prompt_style) for span in prompt.label_spans
        )
        encoded.append(EncodedPrompt(tuple(ids), positions, prompt.label_classes, prompt.target))
    return encoded


def _overlapping(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> list[int]:
    return [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]


def _label_position(
    prompt: Prompt,
    span: tuple[int, int],
    offsets: Sequence[tuple[int, int]],
    prompt_style: PromptStyle,
) -> int:
    """Where heads should look: a label's first token (`consistent`), or its last, which StaICC
    scores.
    """
    tokens = _overlapping(span, offsets)
    if not tokens:
        word = prompt.text[span[0] : span[1]]
        raise AbftError(
            f"label word {word!r} has no token of its own in a prompt; choose another word"
        )
    return tokens[0 if prompt_style == "consistent" else -1]


def label_tokens(
    tokenizer: "PreTrainedTokenizerBase", task: Task, prompt_style: PromptStyle = "consistent"
) -> list[int | tuple[int, ...]]:
    """The token id that stands for each class at the query position; a tuple where a label is
    several tokens.

    `consistent`: the tokens of the label word as it stands inside a demonstration; where one label
    begins with another, all end with the token that follows a label there. `staicc`: the last
    sub-token of the bare label word, as StaICC scores it.

    Raises:
        AbftError: two labels are the same tokens, or the tokenizer writes the label differently
            after a query than inside a demonstration.
    """
    if not tokenizer.is_fast:
        raise AbftError(
            f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed"
        )
    if prompt_style == "staicc":
        tokens = [tokenizer(word)["input_ids"][-1] for word in task.label_words]
        _refuse_shared_tokens(task, tokens)
        return tokens
    pieces: list[tuple[int, ...]] = []
    ends: list[tuple[int, ...]] = []
    detached = []
    for label, word in enumerate(task.label_words):
        prompt = write_prompt(task, [Example("text", label)], Example("text", label), prompt_style)
        encoding = tokenizer(prompt.text, return_offsets_mapping=True)
        at = _overlapping(prompt.label_spans[0], encoding["offset_mapping"])
        ids = encoding["input_ids"]
        ending = prompt.text[: prompt.label_spans[0][0]].rstrip(" ")
        (query,) = encode(tokenizer, [Prompt(ending, (), (), label)])
        start = len(query.input_ids)  # a space of its own before the label belongs to it
        if at and list(query.input_ids) != ids[:start]:
            detached.append(word)
        pieces.append(tuple(ids[start : at[-1] + 1]) if at else ())
        ends.append(tuple(ids[start : at[-1] + 2]) if at else ())
    _refuse_shared_tokens(task, pieces)
    if detached:
        raise AbftError(
            f"this tokenizer splits {task.template.before_label.strip() + ' ' + detached[0]!r} "
            f"so that the label does not "
            "directly follow the query; write the template without the space before {label}"
        )
    begun = any(a != b and b[: len(a)] == a for a in pieces for b in pieces)
    return [piece[0] if len(piece) == 1 else piece for piece in (ends if begun else pieces)]


def first_tokens(label_tokens: LabelTokens) -> list[int]:
    """The token with which each label begins."""
    return [label if isinstance(label, int) else label[0] for label in label_tokens]


def with_answers(
    prompts: Sequence[EncodedPrompt], label_tokens: LabelTokens
) -> list[EncodedPrompt]:
    """The same prompts with the first token of the correct label recorded, for objectives that look
    at the LM's output.
    """
    answers = first_tokens(label_tokens)
    return [replace(prompt, answer=answers[prompt.target]) for prompt in prompts]


def _refuse_shared_tokens(task: Task, tokens: Sequence[int] | Sequence[tuple[int, ...]]) -> None:
    for i, token in enumerate(tokens):
        if token in tokens[:i]:
            first, second = task.label_words[tokens.index(token)], task.label_words[i]  # type: ignore[arg-type]
            raise AbftError(
                f"label words {first!r} and {second!r} have the same tokens for this tokenizer "
                f"and cannot be told apart; "
                "map one to another word with --label-words 'LABEL=word'"
            )
