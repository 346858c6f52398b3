"""Draw balanced demonstrations, and hold texts out, class by class."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

from abft.data.splits import text_key
from abft.data.tasks import Example

SMALLEST_HELD_OUT = 8  # texts; fewer could not tell whether training helped
LARGEST_HELD_OUT = 256


def demonstration_sets(
    examples: Sequence[Example], k: int, count: int, generator: random.Random
) -> list[list[Example]]:
    """Return `count` sets of k demonstrations, balanced over classes.

    The classes are taken in turn, in an order that is shuffled once; the next set goes on with the
    class at which the last one stopped, and every class goes through its texts in shuffled order,
    from the start when they are used up. Within a set the order is shuffled, so that no class
    always comes last.
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
        demonstrations = [next(example_turns[next(class_turns)]) for _ in range(k)]
        generator.shuffle(demonstrations)
        sets.append(demonstrations)
    return sets


def classes_in_turn(examples: Sequence[Example]) -> list[Example]:
    """Return the examples so that classes come in turn, those of a class in their own order."""
    by_class: dict[int, list[Example]] = {}
    for example in examples:
        by_class.setdefault(example.label, []).append(example)
    turns = itertools.zip_longest(*(by_class[label] for label in sorted(by_class)))
    return [example for turn in turns for example in turn if example is not None]


def split_held_out(
    examples: Sequence[Example], share: float, generator: random.Random
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on, and those to hold out.

    The same share of every class is held out, but never its last text. Texts of one `text_key` stay
    together, also those of different classes.
    """
    size = max(round(share * len(examples)), SMALLEST_HELD_OUT)
    size = min(size, LARGEST_HELD_OUT, len(examples) // 2)

    # A class gives at least one text, where `size` allows it, and keeps at least one.
    counts = Counter(example.label for example in examples)
    quotas = {
        label: min(max(1, round(size * count / len(examples))), count - 1)
        for label, count in counts.items()
    }

    by_text: dict[str, list[Example]] = {}
    for example in generator.sample(list(examples), len(examples)):
        by_text.setdefault(text_key(example.text), []).append(example)

    training: list[Example] = []
    held_out: list[Example] = []
    for equal_texts in by_text.values():
        needed = Counter(example.label for example in equal_texts)
        fits = all(quotas[label] >= count for label, count in needed.items())
        if fits and len(held_out) + len(equal_texts) <= size:
            held_out += equal_texts
            quotas = {label: quota - needed[label] for label, quota in quotas.items()}
        else:
            training += equal_texts
    return training, held_out
