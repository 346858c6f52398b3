"""Draw prompts of a mixture of tasks, so that a model learns to read demonstrations.

Every group of prompts shares one set of demonstrations and has its own task, number of
demonstrations, classes, label words and template, so that training teaches to look up the answer,
whatever the task. MetaICL (arXiv 2110.15943) mixes tasks, symbol tuning (arXiv 2305.08298) draws
label words; here both are also used to train the attention.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from abft.data.draws import demonstration_sets
from abft.data.encoding import (
    EncodedPrompt,
    LabelTokens,
    encode,
    first_tokens,
    label_tokens,
    with_answers,
)
from abft.data.label_words import Pool, Words, written_as
from abft.data.lengths import fit_texts
from abft.data.prompts import Prompt, write_prompt
from abft.data.splits import TaskData
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates that say nothing about a task; half of the groups use the task's own.
NEUTRAL_TEMPLATES = (
    Template("text: {text} label: {label}\n"),
    Template("input: {text} output: {label}\n"),
    Template("Input: {text}\nOutput: {label}\n\n"),
    Template("{text} => {label}\n"),
    Template("Q: {text} A: {label}\n"),
    Template("example: {text} class: {label}\n"),
    Template("Text: {text}\nCategory: {label}\n\n"),
)


TEXT_TOKENS = 64  # a longer text is cut
FEWEST_TEXTS = 2  # of a class: a demonstration and a query
MOST_ATTEMPTS = 100  # to draw label words that begin with different tokens


@dataclass(frozen=True)
class Group:
    """Prompts that share demonstrations, or beginnings of them, with the task they are written in.

    Attributes:
        prompts: the same number in every group of a mixture; packed, they are one sequence.
        task: with the label words and the template of this group.
        label_tokens: the token, or tokens, of each class.
        words: the kind of label words.
        demonstrations, queries: in a group for evaluation, the texts of the prompts.
    """

    prompts: tuple[EncodedPrompt, ...]
    task: Task
    label_tokens: LabelTokens
    words: Words
    demonstrations: tuple[Example, ...] = ()
    queries: tuple[Example, ...] = ()


def training_groups(
    sources: Sequence[TaskData],
    tokenizer: "PreTrainedTokenizerBase",
    count: int,
    queries: int,
    seed: int,
    *,
    words: Sequence[Words] = ("own", "arbitrary", "permuted"),
    shots: tuple[int, int] = (2, 32),
    pool: Pool = "train",
    max_tokens: int = 1024,
    max_length: int | None = None,
    distinct_first_tokens: bool = True,
) -> list[Group]:
    """Draw groups of training prompts, each with its own task, classes, label words and template.

    Args:
        sources: tasks; examples come from their training pools.
        count: number of groups.
        queries: number of prompts in each group.
        words: kinds of label words, drawn equally often.
        shots: fewest and most demonstrations; drawn so that every doubling is equally likely.
        pool: where arbitrary words come from.
        max_tokens: approximate length of the longest sequence; if texts are longer, a group has
            fewer demonstrations.
        max_length: the model's context in tokens, which may allow still fewer demonstrations; None
            = unlimited.
        distinct_first_tokens: use arbitrary words if label words of two classes begin with the same
            token, because cross-entropy is taken of the first token.

    Raises:
        AbftError: a task without two classes of two texts; prompts that do not fit.
    """
    sources = [fit_texts(data, tokenizer, TEXT_TOKENS)[0] for data in sources]
    for data in sources:
        if len(_usable_classes(data)) < 2:
            raise AbftError(
                f"{data.task.name} cannot be part of a mixture: it needs two classes with "
                f"{FEWEST_TEXTS} training texts each that the measured task does not have"
            )
    low, high = (math.log2(bound) for bound in shots)

    groups = []
    for number in range(count):
        # A group does not depend on the groups before it.
        generator = random.Random(f"mixture {seed} {number}")
        data = _some_classes(generator.choice(sources), generator)
        kind = generator.choice(list(words))
        task = written_as(data.task, kind, tokenizer, pool, generator)
        if generator.random() < 0.5:
            task = replace(task, template=generator.choice(NEUTRAL_TEMPLATES))

        # Cross-entropy is taken of a label's first token, which has to tell the classes apart.
        tokens = label_tokens(tokenizer, task)
        attempts = 0
        while distinct_first_tokens and len(set(first_tokens(tokens))) < len(tokens):
            # Some words are one token only after a space.
            if attempts == MOST_ATTEMPTS:
                raise AbftError(
                    f"{data.task.name}, written as {task.template.pattern!r}: no label words were "
                    "drawn that begin with different tokens, of which cross-entropy is taken; put "
                    "a space before {label}"
                )
            kind, attempts = "arbitrary", attempts + 1
            task = written_as(task, kind, tokenizer, pool, generator)
            tokens = label_tokens(tokenizer, task)

        # Half of a small pool is left for queries.
        k = round(2 ** generator.uniform(low, high))
        fits = min(len(data.train) // 2, int(max_tokens / _tokens_each(tokenizer, data, task)))
        k = max(shots[0], min(k, fits))
        state = generator.getstate()
        while True:
            prompts = _prompts(task, data.train, k, queries, generator)
            encoded = encode(tokenizer, prompts)
            longest = max(len(prompt.input_ids) for prompt in encoded)
            if max_length is None or longest <= max_length:
                break
            if k == shots[0]:
                raise AbftError(
                    f"{k} demonstrations of {data.task.name} and a query have {longest} tokens, "
                    f"the model reads at most {max_length}; give fewer (--shots)"
                )
            # Fewer, in proportion; each attempt draws the same texts in the same order.
            k = max(shots[0], min(k - 1, k * max_length // longest))
            generator.setstate(state)
        groups.append(Group(tuple(with_answers(encoded, tokens)), task, tokens, kind))
    return groups


def evaluation_groups(
    data: TaskData,
    tokenizer: "PreTrainedTokenizerBase",
    k: int,
    sets: int,
    queries: int,
    *,
    words: Words = "own",
    seed: int = 0,
    max_length: int | None = None,
) -> list[Group]:
    """Draw groups of test prompts: `queries` test texts after each set of k demonstrations.

    Demonstrations are balanced over classes and come from the demonstration pool. Arbitrary words
    are those that no training draws. With other `words`, the groups have the same queries after the
    same demonstrations. If there are few test texts, there are fewer groups.
    """
    data, _ = fit_texts(data, tokenizer, TEXT_TOKENS)
    generator = random.Random(f"test {data.task.name} {k} {seed}")
    asked = generator.sample(data.test, min(sets * queries, len(data.test)))
    shown = demonstration_sets(data.demonstrations, k, sets, generator)

    groups = []
    for number, demonstrations in enumerate(shown):
        drawn = random.Random(f"words {data.task.name} {words} {seed} {number}")
        task = written_as(data.task, words, tokenizer, "test", drawn)
        texts = asked[number * queries : (number + 1) * queries]
        if not texts:
            break
        groups.append(asking_group(task, tokenizer, demonstrations, texts, words, max_length))
    return groups


def asking_group(
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    demonstrations: Sequence[Example],
    queries: Sequence[Example],
    words: Words = "own",
    max_length: int | None = None,
) -> Group:
    """Return a group of prompts, each with one of `queries` after the same demonstrations.

    Args:
        task: with the label words and the template in which prompts are written.
        words: the kind of these label words.
    """
    tokens = label_tokens(tokenizer, task)
    prompts = [write_prompt(task, demonstrations, query) for query in queries]
    encoded = encode(tokenizer, prompts, max_length=max_length, scored=tokens)
    answered = tuple(with_answers(encoded, tokens))
    return Group(answered, task, tokens, words, tuple(demonstrations), tuple(queries))


def _usable_classes(data: TaskData) -> list[int]:
    """Return the classes with enough training texts, ascending."""
    counts = Counter(example.label for example in data.train)
    return [label for label in range(len(data.task.labels)) if counts[label] >= FEWEST_TEXTS]


def _some_classes(data: TaskData, generator: random.Random) -> TaskData:
    """Return the task with two or more of its classes, each with enough texts, drawn at random."""
    labels = _usable_classes(data)
    chosen = sorted(generator.sample(labels, generator.randint(2, len(labels))))
    if len(chosen) == len(data.task.labels):
        return data

    task = replace(
        data.task,
        labels=tuple(data.task.labels[label] for label in chosen),
        label_words=tuple(data.task.label_words[label] for label in chosen),
    )
    number = {label: i for i, label in enumerate(chosen)}
    kept = tuple(Example(e.text, number[e.label]) for e in data.train if e.label in number)
    return TaskData(task, kept, (), ())


def _tokens_each(tokenizer: "PreTrainedTokenizerBase", data: TaskData, task: Task) -> float:
    """Return about how many tokens a demonstration has."""
    some = data.train[:32]
    texts = [write_prompt(task, [], example).text for example in some]
    return sum(map(len, tokenizer(texts)["input_ids"])) / len(some) + 2  # its label


def _prompts(
    task: Task, examples: Sequence[Example], k: int, queries: int, generator: random.Random
) -> list[Prompt]:
    """Write `queries` prompts around one sequence of k demonstrations.

    Demonstrations whose label an earlier one shows are queries too, at most `queries` - 1 of them:
    they cost no token, because their prompts are beginnings of the others. The other queries follow
    all k demonstrations, which show their labels.
    """
    by_class: dict[int, list[Example]] = {}
    for example in generator.sample(list(examples), len(examples)):
        by_class.setdefault(example.label, []).append(example)

    def draw(labels: Sequence[int], kept: int = 0) -> Example | None:
        left = [label for label in labels if len(by_class[label]) > kept]
        return by_class[generator.choice(left)].pop() if left else None

    # One text of each class is left as a query.
    drawn = (draw(sorted(by_class), kept=1) for _ in range(k))
    demonstrations = [example for example in drawn if example is not None]
    shown = [
        i
        for i in range(1, len(demonstrations))
        if demonstrations[i].label in {e.label for e in demonstrations[:i]}
    ]
    inside = sorted(generator.sample(shown, min(len(shown), queries - 1)))
    prompts = [write_prompt(task, demonstrations[:i], demonstrations[i]) for i in inside]

    labels = sorted({e.label for e in demonstrations})
    for _ in range(queries - len(inside)):
        query = draw(labels)
        if query is None:  # small classes are used up: a text may be a query twice
            query = generator.choice(
                [e for e in examples if e.label in labels and e not in demonstrations]
            )
        prompts.append(write_prompt(task, demonstrations, query))
    return prompts
