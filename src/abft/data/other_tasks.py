"""Load the tasks that are trained on instead of the one that is measured.

MetaICL (Min et al. 2022, arXiv 2110.15943) takes all other tasks; a mixture takes those of other
families, or those that the user names.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abft.data.builtin import BUILTIN, TASKS, load_task, task_named
from abft.data.datasets import load_data
from abft.data.encoding import EncodedPrompt, encode, label_tokens, with_answers
from abft.data.mixture_settings import is_file
from abft.data.prompts import Sampling, training_prompts
from abft.data.splits import TaskData, text_key
from abft.data.tasks import PromptStyle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def other_tasks(target: TaskData, prompt_style: PromptStyle = "consistent") -> list[TaskData]:
    """Return all built-in tasks but `target`, without its texts: some tasks share reviews."""
    texts = _texts(target)
    others = (name for name in TASKS if name != target.task.name)
    return [load_task(name, prompt_style).without(texts) for name in others]


def mixture_tasks(
    target: TaskData,
    names: Sequence[str] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    template: str = "text: {text} label: {label}\n",
    *,
    strict: bool = False,
    target_file: str | None = None,
    whole: TaskData | None = None,
) -> list[TaskData]:
    """Return the tasks of a mixture, without the texts of `target`.

    Args:
        target: the task that is measured; it is trained on, too, if it is named.
        names: built-in tasks, and data files with these columns and this template; None = the
            built-in tasks of other families than the target's.
        strict: as for `load_data`.
        target_file: the file or hub id that the target comes from; None = it is built in.
        whole: the target before its texts were cut, to recognise its texts in other tasks; None =
            they were not cut.
    """
    if names is None:
        record = BUILTIN.get(target.task.name) if target_file is None else None
        family = record.family if record is not None else None
        names = [name for name, other in BUILTIN.items() if other.family != family]

    # The target's own training pool stays whole: none of its texts is in a test prompt.
    texts = _texts(target if whole is None else whole)
    tasks = []
    for name in names:
        if is_file(name):
            same = target_file is not None and Path(name).resolve() == Path(target_file).resolve()
            columns = (text_column, label_column)
            read = None if same else load_data(name, *columns, template=template, strict=strict)
        else:
            same = target_file is None and task_named(name).name == target.task.name
            read = None if same else load_task(task_named(name).name)
        tasks.append(target if read is None else read.without(texts))
    return tasks


def _texts(data: TaskData) -> set[str]:
    examples = (*data.train, *data.demonstrations, *data.test)
    return {text_key(example.text) for example in examples}


def other_prompts(
    target: TaskData,
    tokenizer: "PreTrainedTokenizerBase",
    nd: int,
    k: int,
    seed: int,
    prompt_style: PromptStyle = "consistent",
    max_length: int | None = None,
    sampling: Sampling = "natural",
) -> list[EncodedPrompt]:
    """Return nd prompts, equally many from every other task, the tasks in turn.

    The target's examples are never seen.
    """
    others = other_tasks(target, prompt_style)

    by_task: list[list[EncodedPrompt]] = []
    for i, data in enumerate(others):
        # The first tasks take one prompt more where nd does not divide evenly.
        share = nd // len(others) + (i < nd % len(others))
        texts = training_prompts(data, share, k, seed, prompt_style, sampling=sampling)
        encoded = encode(tokenizer, texts, prompt_style, max_length)

        tokens = label_tokens(tokenizer, data.task, prompt_style)
        by_task.append(with_answers(encoded, tokens))
    # In turn, so that the choice of heads, which uses the first prompts only, sees all tasks.
    turns = itertools.zip_longest(*by_task)
    return [prompt for turn in turns for prompt in turn if prompt is not None]
