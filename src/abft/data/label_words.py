"""Draw other label words for a task, such as single-token words that mean nothing in it.

Symbol tuning (Wei et al. 2023, arXiv 2305.08298) replaces labels by arbitrary words, so that a
model has to read its demonstrations to know which is which.
"""

import functools
import random
import zlib
from typing import TYPE_CHECKING, Literal

from abft.data.tasks import Task
from abft.errors import AbftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# own: the task's label words; permuted: the same words, each for another class; arbitrary: words
# drawn from a pool; codes: such as "Q7", of several tokens.
Words = Literal["own", "arbitrary", "permuted", "codes"]
Pool = Literal["train", "test"]

_SPACE = ("Ġ", "▁")  # how tokenizers write the space before a word
_SHORTEST, _LONGEST = 3, 8  # letters
_SMALLEST_POOL = 16


@functools.lru_cache(maxsize=8)
def single_token_words(tokenizer: "PreTrainedTokenizerBase", pool: Pool) -> tuple[str, ...]:
    """Return lower-case words that are one token after a space, sorted; the pools are disjoint.

    Raises:
        AbftError: the vocabulary has too few.
    """
    words = {
        token[1:]
        for token in tokenizer.get_vocab()
        if token[:1] in _SPACE
        and _SHORTEST <= len(token) - 1 <= _LONGEST
        and token[1:].isascii()
        and token[1:].isalpha()
        and token[1:].islower()
    }

    # A word is in the same pool for every tokenizer.
    chosen = [word for word in sorted(words) if zlib.crc32(word.encode()) % 2 == (pool == "test")]
    if len(chosen) < _SMALLEST_POOL:
        raise AbftError(
            f"the tokenizer has {len(chosen)} words of one token for arbitrary label words, "
            f"expected at least {_SMALLEST_POOL}"
        )
    return tuple(chosen)


def written_as(
    task: Task,
    words: Words,
    tokenizer: "PreTrainedTokenizerBase",
    pool: Pool,
    generator: random.Random,
) -> Task:
    """Return the task with its label words drawn anew, as `words` says."""
    count = len(task.labels)
    if words == "own":
        return task
    if words == "permuted":
        drawn = _derangement(task.label_words, generator)
    elif words == "arbitrary":
        known = single_token_words(tokenizer, pool)
        drawn = generator.sample([word for word in known if word not in task.label_words], count)
    else:
        letter = generator.choice("QXZKJ")
        numbers = generator.sample(range(1, 100), count)
        drawn = [f"{letter}{number}" for number in numbers]
    return task.with_words(dict(zip(task.labels, drawn, strict=True)))


def _derangement(words: tuple[str, ...], generator: random.Random) -> list[str]:
    """Shuffle words until none is in its own place."""
    while True:
        shuffled = generator.sample(words, len(words))
        if all(a != b for a, b in zip(shuffled, words, strict=True)):
            return shuffled
