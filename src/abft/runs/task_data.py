"""Load the task and texts that a configuration names, and summarize them.

Loading needs no model: the command line does it before it imports anything heavy.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from abft.data.builtin import load_task
from abft.data.datasets import load_data, load_demonstrations
from abft.data.splits import TaskData
from abft.data.tasks import Example, Task
from abft.errors import AbftError
from abft.method.settings import PromptSettings
from abft.runs.config import DEFAULT_TASK, RunConfig
from abft.runs.predict_settings import PredictSettings
from abft.runs.run_folder import text_column_of
from abft.settings import default_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shown: TypeAlias = tuple[Task, list[Example]]  # a task, and its demonstrations

_QUANTILES = (0.5, 0.95, 1.0)
_MOST_CLASSES = 12  # named in a summary


def load_run_data(config: RunConfig, queries: int = 1) -> TaskData:
    """Load the task and examples that a configuration names.

    `queries`: training queries that share one set of demonstrations, for which the data has to
    suffice.

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


def text_column(settings: PredictSettings, run: str | Path) -> str:
    """Return the column of texts: the run's own, unless other demonstrations are shown."""
    if settings.text_column is not None:
        return settings.text_column
    if settings.demonstrations is not None:
        return str(default_of(PromptSettings, "text_column"))
    return text_column_of(run)


def load_shown(settings: PredictSettings, run: str | Path) -> Shown | None:
    """Load the demonstrations that the settings name; None = the run's own are shown.

    Raises:
        AbftError: no such file, or as for `load_demonstrations`.
    """
    if settings.demonstrations is None:
        return None
    if not Path(settings.demonstrations).is_file():
        raise AbftError(f"no such file: {settings.demonstrations}")
    task, examples = load_demonstrations(
        settings.demonstrations,
        text_column(settings, run),
        settings.label_column,
        settings.template,
        settings.k,
        settings.strict,
    )
    return task.with_words(settings.label_words), examples


def summary(data: TaskData, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, str]]:
    """Return what a user wants to know about the data before a long run, as (name, value) rows."""
    examples = (*data.train, *data.demonstrations, *data.test)
    rows = []
    if data.origin is not None:
        dropped = [f"{data.origin.duplicates} duplicates dropped"] if data.origin.duplicates else []
        skipped = [f"{data.origin.skipped} skipped as empty"] if data.origin.skipped else []
        rows.append(("rows", ", ".join([str(data.origin.rows), *skipped, *dropped])))

    counts = Counter(example.label for example in examples)
    common = counts.most_common(_MOST_CLASSES)
    named = [f"{data.task.labels[label]}: {count}" for label, count in common]
    more = [f"{len(counts) - len(common)} more"] if len(counts) > len(common) else []
    rows.append((f"{len(counts)} classes", ", ".join([*named, *more])))

    lengths = sorted(map(len, tokenizer([e.text for e in examples], verbose=False)["input_ids"]))
    values = [lengths[min(int(q * len(lengths)), len(lengths) - 1)] for q in _QUANTILES]
    rows.append(("tokens of a text", "median {}, 95% below {}, longest {}".format(*values)))
    parts = (f"{len(data.train)} training", f"{len(data.demonstrations)} demonstrations")
    rows.append(("texts", ", ".join([*parts, f"{len(data.test)} test"])))
    return rows
