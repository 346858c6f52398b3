"""Draw balanced demonstrations, and hold texts out, class by class."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

from abft.data.splits import text_key
from abft.data.tasks import Example

SMALLEST_HELD_OUT = 8  # texts; fewer could not tell whether training helped
LARGEST_HELD_OUT = 256


def demonstration_sets(
    examples: Sequence[Example],
    k: int,
    count: int,
    generator: random.Random,
    *,
    spare: bool = False,
) -> list[list[Example]]:
    """Return `count` sets of k demonstrations, balanced over classes.

    The classes are taken in turn, in an order that is shuffled once; each set continues with the
    class at which the last one stopped. Every class goes through its texts in shuffled order, and
    starts again when they are used up. Within a set the order is shuffled, so that no class always
    comes last.

    `spare`: no set shows more than half of a class's texts, so that every class of two texts or
    more has some that a set does not show; a small class's texts may be shown more than once.
    """
    by_class: dict[int, list[Example]] = {}
    for example in generator.sample(list(examples), len(examples)):
        by_class.setdefault(example.label, []).append(example)
    order = generator.sample(sorted(by_class), len(by_class))

    # Endless turns: classes, and texts of every class, start again when they are used up.
    class_turns = itertools.cycle(order)
    example_turns = {label: itertools.cycle(of_class) for label, of_class in by_class.items()}
    sets = []
    for _ in range(count):
        labels = [next(class_turns) for _ in range(k)]
        texts = {}
        for label, needed in Counter(labels).items():
            most = _most(len(by_class[label])) if spare else needed
            some = [next(example_turns[label]) for _ in range(min(needed, most))]
            texts[label] = itertools.cycle(some)
        demonstrations = [next(texts[label]) for label in labels]
        generator.shuffle(demonstrations)
        sets.append(demonstrations)
    return sets


def most_shown(examples: Sequence[Example], k: int, share: float = 0.0) -> dict[int, int]:
    """Return, by class, how often one text may occur in a prompt if sets are drawn with `spare`.

    `share`: share of the examples that `split_held_out` holds out before.
    """
    left = Counter(example.label for example in examples)
    if share:
        left.subtract(_quotas(examples, share))
    needed = math.ceil(k / len(left))
    return {label: max(1, math.ceil(needed / _most(count))) for label, count in left.items()}


def _most(count: int) -> int:
    """Return how many of a class's texts a set may show, so that others are left."""
    return max(1, count // 2)


def classes_in_turn(examples: Sequence[Example]) -> list[Example]:
    """Return the examples so that classes come in turn, those of a class in their own order."""
    by_class: dict[int, list[Example]] = {}
    for example in examples:
        by_class.setdefault(example.label, []).append(example)
    turns = itertools.zip_longest(*(by_class[label] for label in sorted(by_class)))
    return [example for turn in turns for example in turn if example is not None]


def _size(examples: Sequence[Example], share: float) -> int:
    """Return how many examples are held out at most."""
    size = max(round(share * len(examples)), SMALLEST_HELD_OUT)
    return min(size, LARGEST_HELD_OUT, len(examples) // 2)


def _quotas(examples: Sequence[Example], share: float) -> dict[int, int]:
    """Return how many of each class may be held out: at least one, never the last."""
    size, counts = _size(examples, share), Counter(example.label for example in examples)
    return {
        label: min(max(1, round(size * count / len(examples))), count - 1)
        for label, count in counts.items()
    }


def split_held_out(
    examples: Sequence[Example], share: float, generator: random.Random
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and those to hold out.

    The same share of every class is held out, but never its last text. Texts with the same
    `text_key` stay together, even if their classes differ.
    """
    size, quotas = _size(examples, share), _quotas(examples, share)
    by_text: dict[str, list[Example]] = {}
    for example in generator.sample(list(examples), len(examples)):
        by_text.setdefault(text_key(example.text), []).append(example)

    # First a text of each class, then others: otherwise frequent classes leave rare ones no room.
    chosen: set[str] = set()
    seen: set[int] = set()
    count = 0
    for first in (True, False):
        for key, equal_texts in by_text.items():
            needed = Counter(example.label for example in equal_texts)
            wanted = key not in chosen and not (first and needed.keys() <= seen)
            fits = all(quotas[label] >= number for label, number in needed.items())
            if wanted and fits and count + len(equal_texts) <= size:
                chosen.add(key)
                seen |= needed.keys()
                count += len(equal_texts)
                quotas = {label: quota - needed[label] for label, quota in quotas.items()}

    training = [e for key, texts in by_text.items() if key not in chosen for e in texts]
    held_out = [e for key, texts in by_text.items() if key in chosen for e in texts]
    return training, held_out
