"""Few-shot prompts: written with recorded label spans, encoded with label positions, collated into
a `Batch`.

A label's position comes from the character span recorded while the prompt was written and the fast
tokenizer's offsets; prefixes are never tokenised again.

Prompts that begin alike (the same demonstrations before several queries) can be packed into one
sequence: a tree of tokens, in which every token sees its ancestors only, so that what they share is
computed once.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from abft.data.splits import SPLIT_SEED, TaskData, lcg_indices
from abft.data.tasks import Example, PromptStyle, Task


@dataclass(frozen=True)
class Prompt:
    """The text of a few-shot prompt, and where its demonstrations' label words stand in it."""

    text: str
    label_spans: tuple[
        tuple[int, int], ...
    ]  # characters [start, end) of each demonstration's label word
    label_classes: tuple[int, ...]  # class of each demonstration
    target: int  # class of the query


def write_prompt(
    task: Task,
    demonstrations: Sequence[Example],
    query: Example,
    prompt_style: PromptStyle = "consistent",
) -> Prompt:
    """One prompt, and where its labels stand.

    `consistent`: the query ends without a trailing space. `staicc`: byte for byte StaICC's prompt.
    """
    template = task.template
    text, spans = template.instruction, []
    for example in demonstrations:
        text += template.before_text + example.text + template.before_label
        word = task.label_words[example.label]
        spans.append((len(text), len(text) + len(word)))
        text += word + template.after_label
    text += template.before_text + query.text
    text += template.after_query(prompt_style)
    return Prompt(
        text, tuple(spans), tuple(example.label for example in demonstrations), query.label
    )


def training_prompts(
    data: TaskData,
    nd: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
    queries: int = 1,
) -> list[Prompt]:
    """nd prompts, each of k demonstrations and a query drawn without repetition from the training
    pool.

    With `queries` > 1, every `queries` prompts that follow each other have the same demonstrations;
    a rest of nd that `queries` does not divide is left out.
    """
    data.check(k, queries)
    generator = random.Random(seed)
    draws = (generator.sample(data.train, k + queries) for _ in range(nd // queries))
    return [
        write_prompt(data.task, draw[:k], query, prompt_style)
        for draw in draws
        for query in draw[k:]
    ]


def evaluation_prompts(
    data: TaskData, count: int, k: int, prompt_style: PromptStyle = "consistent"
) -> list[Prompt]:
    """The first `count` test prompts; they never depend on a seed.

    Prompt i holds test query i modulo their number, with the demonstrations StaICC draws for it;
    for a StaICC task, 1,024 prompts are StaICC's own (each of 512 queries with 2 demonstration
    sets).
    """
    data.check(k)
    sets = lcg_indices(len(data.demonstrations), [k] * count, SPLIT_SEED)
    return [
        write_prompt(
            data.task,
            [data.demonstrations[d] for d in chosen],
            data.test[i % len(data.test)],
            prompt_style,
        )
        for i, chosen in enumerate(sets)
    ]
