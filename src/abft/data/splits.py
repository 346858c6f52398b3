"""Hold a task's examples in three disjoint parts: training, demonstrations and test queries."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace

from abft.data.tasks import Example, Task
from abft.errors import AbftError

TRAIN_POOL = 1024  # examples; StaICC calls this part "calibration"
DEMONSTRATION_POOL = 4096
TEST_QUERIES = 512
SPLIT_SEED = 42  # the parts never depend on a run's seed


@dataclass(frozen=True)
class Origin:
    """Counts the rows of a user's own data, before these became a task."""

    rows: int
    skipped: int  # rows without a text or a label
    duplicates: int  # texts that occurred before


@dataclass(frozen=True)
class TaskData:
    """Holds a task and its examples. No text of `train` occurs in `demonstrations` or `test`."""

    task: Task
    train: tuple[Example, ...]
    demonstrations: tuple[Example, ...]
    test: tuple[Example, ...]
    origin: Origin | None = field(default=None, compare=False)  # of the user's own data
    weights: tuple[float, ...] | None = None  # how often each of `train` is a query; None = equal

    def with_words(self, words: dict[str, str]) -> "TaskData":
        """Return the same data with some labels written as other words."""
        return replace(self, task=self.task.with_words(words))

    def without(self, texts: Collection[str]) -> "TaskData":
        """Return the same data without the examples whose `text_key` is among `texts`."""

        def kept(examples: Sequence[Example]) -> tuple[Example, ...]:
            return tuple(example for example in examples if text_key(example.text) not in texts)

        weights = self.weights
        if weights is not None:
            pairs = zip(self.train, weights, strict=True)
            weights = tuple(weight for e, weight in pairs if text_key(e.text) not in texts)
        return replace(
            self,
            train=kept(self.train),
            demonstrations=kept(self.demonstrations),
            test=kept(self.test),
            weights=weights,
        )

    def distinct(self, texts: Collection[str]) -> "TaskData":
        """Return the same data with each of these texts once, in one part; the test part has
        priority.

        `texts`: the `text_key` of each.
        """
        seen: set[str] = set()

        def first(examples: Sequence[Example]) -> list[int]:
            kept = []
            for i, example in enumerate(examples):
                key = text_key(example.text)
                if key not in seen or key not in texts:
                    seen.add(key)
                    kept.append(i)
            return kept

        test, train, shown = first(self.test), first(self.train), first(self.demonstrations)
        return replace(
            self,
            train=tuple(self.train[i] for i in train),
            demonstrations=tuple(self.demonstrations[i] for i in shown),
            test=tuple(self.test[i] for i in test),
            weights=self.weights and tuple(self.weights[i] for i in train),
        )

    @property
    def examples(self) -> tuple[Example, ...]:
        """Return the examples of all parts."""
        return (*self.train, *self.demonstrations, *self.test)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all texts with their labels and parts."""
        labels = self.task.labels
        parts = [
            [(example.text, labels[example.label]) for example in part]
            for part in (self.train, self.demonstrations, self.test)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def check(self, k: int, queries: int = 1) -> None:
        """Raise AbftError unless prompts of k demonstrations can be drawn from every part.

        Training prompts draw `queries` examples in addition.
        """
        # Demonstrations and queries of a training prompt are all different examples.
        if len(self.train) < k + queries:
            query = "a query" if queries == 1 else f"{queries} queries"
            remedy = "" if queries == 1 else ", --queries 1"
            raise AbftError(
                f"{self.task.name}: the training pool has {len(self.train)} examples, k = {k} "
                f"demonstrations and {query} need {k + queries}. Give more data{remedy} or a "
                "smaller k."
            )
        if len(self.demonstrations) < k:
            raise AbftError(
                f"{self.task.name}: the demonstration pool has {len(self.demonstrations)} "
                f"examples, k = {k} needs at least {k}. Give more data or a smaller k."
            )

        if not self.test:
            raise AbftError(f"{self.task.name}: no test examples; give --test-data or more data")
        if len({example.label for example in self.train}) < 2:
            raise AbftError(
                f"{self.task.name}: every example of the training pool has the same label; ABFT "
                f"needs two classes"
            )


def text_key(text: str) -> str:
    """Return what two ways of writing a text share: its letters and digits, without case.

    Tasks tokenise the same review differently. A text without letters and digits is its own key.
    """
    kept = []
    in_word = False
    for character in unicodedata.normalize("NFC", text.casefold()):
        # A letter's marks belong to it: vowels of Hindi are marks.
        is_mark = in_word and unicodedata.category(character).startswith("M")
        in_word = character.isalnum() or is_mark
        if in_word:
            kept.append(character)
    return "".join(kept) or text.strip()


class LinearCongruential:
    """Draws StaICC's random numbers.

    Every draw continues where the last one ended, so that ours equal StaICC's.
    """

    def __init__(self, seed: int = SPLIT_SEED) -> None:
        self.state = seed

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        # The constants of Numerical Recipes.
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return self.state / 2**32

    def sample(self, values: Sequence[int], count: int) -> list[int]:
        """Draw `count` of `values` without repetition."""
        remaining = list(values)
        return [remaining.pop(int(self.uniform() * len(remaining))) for _ in range(count)]


def lcg_indices(total: int, picks: Sequence[int], seed: int = SPLIT_SEED) -> list[list[int]]:
    """Draw lists of indices without repetition, `picks[i]` out of `total` each.

    One generator runs through all lists.
    """
    generator = LinearCongruential(seed)
    return [generator.sample(range(total), pick) for pick in picks]


def without_texts_of(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """Return the examples whose text does not occur in `others`."""
    texts = {text_key(example.text) for example in others}
    return [example for example in examples if text_key(example.text) not in texts]


def unique(
    examples: Sequence[Example], key: Callable[[Example], Hashable] | None = None
) -> list[Example]:
    """Return the first example of every key, by default of every text."""
    key = key or (lambda example: text_key(example.text))

    # Of equal keys a dictionary keeps the last value: read backwards, the first example.
    by_key = {key(example): example for example in reversed(examples)}
    return list(by_key.values())[::-1]
