"""Write few-shot prompts, and record the character spans of their label words.

Training prompts can share demonstrations: several queries after the same ones, which can be packed
into one sequence.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from abft.data.splits import SPLIT_SEED, TaskData, lcg_indices
from abft.data.tasks import Example, PromptStyle, Task


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
) -> list[Prompt]:
    """Return nd prompts, each of k demonstrations and a query from the training pool.

    The examples of a prompt are drawn without repetition. With `queries` > 1, every `queries`
    prompts that follow each other have the same demonstrations; a rest of nd that `queries` does
    not divide is left out.
    """
    data.check(k, queries)

    # The first k examples of a draw are demonstrations, the others queries.
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
