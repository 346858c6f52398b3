"""The ten built-in tasks: StaICC's data and splits, the paper's templates and label words."""

import contextlib
import functools
import io

from abft.data.splits import (
    DEMONSTRATION_POOL,
    TEST_QUERIES,
    TRAIN_POOL,
    TaskData,
    _without_texts_of,
    lcg_indices,
    unique,
)
from abft.data.tasks import Example, Protocol, Task, Template
from abft.errors import AbftError


def _task(name: str, text: str, label: str, words: str) -> Task:
    template = Template(f"{text}: {{text}} {label}: {{label}}\n")
    return Task(name, template, tuple(words.split()), tuple(words.split()))


# Labels and templates as in the paper (arXiv 2505.14233) and StaICC 0.1.1. Class order is StaICC's.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("SST2", "sentence", "sentiment", "negative positive"),
        _task("MR", "review", "sentiment", "negative positive"),
        _task("FP", "sentence", "sentiment", "negative neutral positive"),
        _task("SST5", "sentence", "sentiment", "poor bad neutral good great"),
        _task("TREC", "question", "target", "short entity description person location number"),
        _task("AGNews", "news", "topic", "world sports business science"),
        _task("SUBJ", "review", "subjectiveness", "objective subjective"),
        _task("TEE", "tweet", "emotion", "anger joy positive sad"),
        _task("TEH", "tweet", "hate speech", "normal hate"),
        _task("HS18", "tweet", "hate speech", "normal hate skip relation"),
    )
}


# Where StaICC's code writes other words than the paper's tables: the `staicc` protocol uses these.
STAICC_WORDS: dict[str, dict[str, str]] = {"SUBJ": {"objective": "false", "subjective": "true"}}


def task_named(name: str, protocol: Protocol = "consistent") -> Task:
    """One of the ten built-in tasks, e.g. "SST2". Raises AbftError naming the nearest for an
    unknown name.
    """
    by_lower = {known.lower(): task for known, task in TASKS.items()}
    if name.lower() not in by_lower:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]].name}? " if near else ""
        raise AbftError(
            f"unknown task {name!r}: {hint}Known tasks: {', '.join(TASKS)}. For your own data "
            f"use --data FILE."
        )
    task = by_lower[name.lower()]
    return task.with_words(STAICC_WORDS.get(task.name, {})) if protocol == "staicc" else task


_STAICC_LOADERS = {
    "SST2": "glue_sst2",
    "MR": "rotten_tomatoes",
    "FP": "financial_phrasebank",
    "SST5": "sst5",
    "TREC": "trec",
    "AGNews": "agnews",
    "SUBJ": "subjective",
    "TEE": "tweet_eval_emotion",
    "TEH": "tweet_eval_hate",
    "HS18": "hate_speech_18",
}


_STAICC_DEMONSTRATIONS = {"FP": 512, "TEE": 3192}


@functools.cache
def load_task(name: str, protocol: Protocol = "consistent") -> TaskData:
    """A built-in task with StaICC's splits: 1,024 training, 4,096 demonstration (FP 512, TEE
    3,192), 512 test examples.

    No text stands in two parts, not even with other case or punctuation: demonstrations that are
    test queries too are dropped (at most 1 in 100; not in the `staicc` protocol, which keeps
    StaICC's own), and so are training examples that stand elsewhere or twice (at most 2 in 100).

    Raises:
        AbftError: unknown task, or the StaICC package is missing.
    """
    task = task_named(name, protocol)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from StaICC.util import hgf_dataset_loader
    except ImportError:
        raise AbftError(
            f"task {task.name} needs the StaICC data: pip install 'abft[staicc]' (or use your "
            f"own data with --data FILE)"
        ) from None
    table = getattr(hgf_dataset_loader, _STAICC_LOADERS[task.name])().table
    demonstration_number = _STAICC_DEMONSTRATIONS.get(task.name, DEMONSTRATION_POOL)
    sizes = (TRAIN_POOL, demonstration_number, TEST_QUERIES)
    (indices,) = lcg_indices(len(table), [sum(sizes)])
    examples = [Example(table[i][0][0], table[i][1]) for i in indices]
    train, rest = examples[:TRAIN_POOL], examples[TRAIN_POOL:]
    demonstrations, test = rest[:demonstration_number], rest[demonstration_number:]
    if protocol == "consistent":
        demonstrations = _without_texts_of(demonstrations, test)
    return TaskData(
        task, tuple(_without_texts_of(unique(train), rest)), tuple(demonstrations), tuple(test)
    )
