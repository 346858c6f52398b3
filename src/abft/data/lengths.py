"""Cut long texts, so that a prompt fits into the model's context."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from abft.data.encoding import LabelTokens, encode, label_room
from abft.data.prompts import write_prompt
from abft.data.splits import TaskData
from abft.data.tasks import Example, PromptStyle, Task
from abft.errors import AbftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST_CUT = 16  # tokens; less says too little to be worth cutting a text for


def cut_texts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_tokens: int
) -> list[str]:
    """Return texts cut after their first `max_tokens` tokens; those that are shorter as they are.

    A text is cut at the end of a token, never inside a character.
    """
    # Most texts are known to be short enough: a token has at least one byte.
    long = [text for text in texts if len(text.encode()) > max_tokens]
    if not long:
        return list(texts)
    encoding = tokenizer(long, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    ends = {}
    for text, offsets in zip(long, encoding["offset_mapping"], strict=True):
        if len(offsets) > max_tokens:
            # Where the next token begins inside a character, the character goes as a whole.
            end = min(offsets[max_tokens - 1][1], offsets[max_tokens][0])
            ends[text] = text[:end].rstrip()
    return [ends.get(text, text) for text in texts]


def text_room(
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    demonstrations: Sequence[Example],
    texts: int,
    limit: int | None,
    label_tokens: LabelTokens,
    prompt_style: PromptStyle = "consistent",
) -> int | None:
    """Return how many tokens `texts` texts may have together in a prompt; None = any number.

    Args:
        demonstrations: what a prompt shows; those with an empty text leave room for one.
        texts: how many texts share the room, including the query.
        limit: the model's context in tokens; None = unlimited.
    """
    if limit is None:
        return None
    empty = write_prompt(task, demonstrations, Example("", 0), prompt_style)
    (encoded,) = encode(tokenizer, [empty], prompt_style)

    # Between a text and its template, a token may be split in two: one per text is kept free.
    return limit - len(encoded.input_ids) - label_room(label_tokens) - texts


def longest_that_fits(
    data: TaskData,
    tokenizer: "PreTrainedTokenizerBase",
    k: int,
    limit: int | None,
    label_tokens: LabelTokens,
    prompt_style: PromptStyle = "consistent",
    times: Mapping[int, int] | None = None,
) -> int | None:
    """Return after how many tokens texts have to be cut for all prompts to fit; None = no cut.

    The k + 1 longest texts might meet in one prompt: the longest are cut until these fit together.

    Args:
        times: by class, how often a prompt may show one text; default: once.

    Raises:
        AbftError: too little would be left of the texts.
    """
    counts = [1 if isinstance(label, int) else len(label) for label in label_tokens]
    longest_label = counts.index(max(counts))
    shown = [Example("", longest_label)] * k
    room = text_room(tokenizer, data.task, shown, k + 1, limit, label_tokens, prompt_style)
    if room is None:
        return None

    # A token has at least one byte: most texts are known to be short enough.
    texts = [
        text
        for e in (*data.train, *data.demonstrations, *data.test)
        for text in [e.text] * (times[e.label] if times else 1)
    ]
    if sum(sorted((len(text.encode()) for text in texts), reverse=True)[: k + 1]) <= room:
        return None
    encoding = tokenizer(texts, add_special_tokens=False, verbose=False)
    lengths = sorted(map(len, encoding["input_ids"]), reverse=True)[: k + 1]
    if sum(lengths) <= room:
        return None

    # The largest cap whose sum fits: shorter texts leave their room to longer ones.
    cap = max(
        (c for c in range(max(room, 0)) if sum(min(n, c) for n in lengths) <= room), default=0
    )
    if cap < SHORTEST_CUT:
        raise AbftError(
            f"{k} demonstrations do not fit: the model reads at most {limit} tokens, which leaves "
            f"{cap} for a text. Use a smaller k."
        )
    return cap


def fit_texts(
    data: TaskData, tokenizer: "PreTrainedTokenizerBase", longest: int | None
) -> tuple[TaskData, int]:
    """Return the data with texts cut to their first `longest` tokens, and how many were cut.

    `longest`: None = any length.
    """
    if longest is None:
        return data, 0

    def cut(examples: Sequence[Example]) -> tuple[Example, ...]:
        texts = cut_texts(tokenizer, [example.text for example in examples], longest)
        pairs = zip(texts, examples, strict=True)
        return tuple(Example(text, example.label) for text, example in pairs)

    fitted = replace(
        data, train=cut(data.train), demonstrations=cut(data.demonstrations), test=cut(data.test)
    )
    pairs = [
        *zip(data.train, fitted.train, strict=True),
        *zip(data.demonstrations, fitted.demonstrations, strict=True),
        *zip(data.test, fitted.test, strict=True),
    ]
    return fitted, sum(before != after for before, after in pairs)
