"""Load the task and texts that a configuration names, and say what they are.

Loading needs no model: the command line does it before it imports anything heavy.
"""

from collections import Counter
from typing import TYPE_CHECKING

from abft.data.builtin import load_task
from abft.data.datasets import load_data
from abft.data.splits import TaskData
from abft.runs.config import DEFAULT_TASK, RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUANTILES = (0.5, 0.95, 1.0)
_MOST_CLASSES = 12  # named in a summary


def load_run_data(config: RunConfig, queries: int = 1) -> TaskData:
    """Load the task and examples that a configuration names.

    `queries`: training queries that share one set of demonstrations; the data has to suffice.

    Raises:
        AbftError: bad data, or too few examples for its prompts.
    """
    if config.data is None:
        data = load_task(config.task or DEFAULT_TASK, config.prompt_style)
    else:
        data = load_data(
            config.data,
            config.text_column,
            config.label_column,
            config.test_data,
            config.template,
            strict=config.strict,
        )
    data = data.with_words(config.label_words)
    data.check(config.k, queries)
    return data


def summary(data: TaskData, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
    """Return what a user wants to know of the data before long work, as (name, value) rows."""
    examples = (*data.train, *data.demonstrations, *data.test)
    rows = []
    if data.origin is not None:
        dropped = [f"{data.origin.duplicates} duplicates dropped"] if data.origin.duplicates else []
        skipped = [f"{data.origin.skipped} skipped as empty"] if data.origin.skipped else []
        rows.append(("rows", ", ".join([str(data.origin.rows), *skipped, *dropped])))

    counts = Counter(example.label for example in examples)
    common = counts.most_common(_MOST_CLASSES)
    named = [f"{data.task.labels[label]} {count}" for label, count in common]
    more = [f"{len(counts) - len(common)} more"] if len(counts) > len(common) else []
    rows.append((f"{len(counts)} classes", ", ".join([*named, *more])))

    lengths = sorted(map(len, tokenizer([e.text for e in examples], verbose=False)["input_ids"]))
    values = [lengths[min(int(q * len(lengths)), len(lengths) - 1)] for q in _QUANTILES]
    rows.append(("tokens of a text", "median {}, 95% below {}, longest {}".format(*values)))
    parts = (f"{len(data.train)} train", f"{len(data.demonstrations)} are demonstrations")
    rows.append(("texts", ", ".join([*parts, f"{len(data.test)} test"])))
    return rows
