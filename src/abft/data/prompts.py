"""Write few-shot prompts, and record the character spans of their label words.

Training prompts can share demonstrations: several queries follow the same ones, and can be packed
into one sequence.
"""

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from abft.data.splits import SPLIT_SEED, TaskData, lcg_indices
from abft.data.tasks import Example, PromptStyle, Task
from abft.errors import AbftError

# How often training prompts draw a class: as often as it occurs, or every class equally often, only
# as a query or also as demonstrations.
Sampling = Literal["natural", "balanced-queries", "balanced"]


@dataclass(frozen=True)
class Prompt:
    """Holds the text of a few-shot prompt and the spans of its demonstrations' label words."""

    text: str
    # Characters [start, end) of each demonstration's label word.
    label_spans: tuple[tuple[int, int], ...]
    label_classes: tuple[int, ...]  # class of each demonstration
    target: int  # class of the query


def write_prompt(
    task: Task,
    demonstrations: Sequence[Example],
    query: Example,
    prompt_style: PromptStyle = "consistent",
) -> Prompt:
    """Write one prompt, and record where its labels are.

    `consistent`: the query ends without a trailing space. `staicc`: byte for byte StaICC's prompt.
    """
    template = task.template
    text = template.instruction
    spans = []

    # A label's span is known exactly while its prompt is written.
    for example in demonstrations:
        text += template.before_text + example.text + template.before_label
        word = task.label_words[example.label]
        spans.append((len(text), len(text) + len(word)))
        text += word + template.after_label

    text += template.before_text + query.text + template.after_query(prompt_style)
    classes = tuple(example.label for example in demonstrations)
    return Prompt(text, tuple(spans), classes, query.label)


def training_prompts(
    data: TaskData,
    nd: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
    queries: int = 1,
    sampling: Sampling = "natural",
) -> list[Prompt]:
    """Return nd prompts, each of k demonstrations and a query from the training pool.

    The examples of a prompt are drawn without repetition. With `queries` > 1, every `queries`
    consecutive prompts have the same demonstrations; if `queries` does not divide nd, the remainder
    is left out. With `data.weights`, queries are drawn in proportion to them.
    """
    data.check(k, queries)
    if data.weights is not None and sampling != "natural":
        raise AbftError(f"weights of examples go with sampling = 'natural', got {sampling!r}")

    # The first k examples of a draw are demonstrations, the others queries.
    generator = random.Random(seed)
    draws = (_draw(data, k, queries, sampling, generator) for _ in range(nd // queries))
    return [
        write_prompt(data.task, draw[:k], query, prompt_style)
        for draw in draws
        for query in draw[k:]
    ]


def _draw(
    data: TaskData, k: int, queries: int, sampling: Sampling, generator: random.Random
) -> list[Example]:
    """Draw k demonstrations, then queries, all different."""
    pool = data.train
    if data.weights is not None:
        # Efraimidis and Spirakis (2006): the largest of u^(1 / w) are a weighted sample; as
        # logarithms, so that weights of any scale give the same one.
        keys = [math.log(generator.random() or sys.float_info.min) / w for w in data.weights]
        order = sorted(range(len(pool)), key=lambda i: -keys[i])
        rest = [pool[i] for i in order[queries:]]
        return [*generator.sample(rest, k), *(pool[i] for i in order[:queries])]
    if sampling == "natural":
        return generator.sample(pool, k + queries)

    # A class whose examples are used up is out of the draw.
    left: dict[int, list[Example]] = {}
    for example in generator.sample(pool, len(pool)):
        left.setdefault(example.label, []).append(example)

    def of_any_class() -> Example:
        label = generator.choice(sorted(left))
        example = left[label].pop()
        if not left[label]:
            del left[label]
        return example

    asked = [of_any_class() for _ in range(queries)]
    if sampling == "balanced":
        return [*(of_any_class() for _ in range(k)), *asked]
    others = [example for examples in left.values() for example in examples]
    return [*generator.sample(others, k), *asked]


def evaluation_prompts(
    data: TaskData, count: int, k: int, prompt_style: PromptStyle = "consistent"
) -> list[Prompt]:
    """Return the first `count` test prompts; they never depend on a seed.

    Prompt i holds test query i modulo their number, with the demonstrations StaICC draws for it;
    for a StaICC task, 1,024 prompts are StaICC's own (each of 512 queries with 2 demonstration
    sets).
    """
    data.check(k)

    # StaICC draws the demonstrations of all prompts in one go.
    sets = lcg_indices(len(data.demonstrations), [k] * count, SPLIT_SEED)
    prompts = []
    for i, indices in enumerate(sets):
        demonstrations = [data.demonstrations[index] for index in indices]
        query = data.test[i % len(data.test)]
        prompts.append(write_prompt(data.task, demonstrations, query, prompt_style))
    return prompts
