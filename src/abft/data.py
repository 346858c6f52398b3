"""Labelled examples and their three disjoint parts: training pool, demonstration pool, test queries.

Built-in tasks come from StaICC with StaICC's own splits; a user's own data from CSV, TSV, JSON lines, Parquet, a
`datasets.Dataset` or a data set id of the Hugging Face hub.
"""

import contextlib
import functools
import glob
import io
import random
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.tasks import Example, Protocol, Task, Template, task_named

if TYPE_CHECKING:
    import datasets

TRAIN_POOL = 1024  # examples; StaICC calls this part "calibration"
DEMONSTRATION_POOL = 4096
TEST_QUERIES = 512
SPLIT_SEED = 42  # the parts never depend on a run's seed

READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
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


@dataclass(frozen=True)
class TaskData:
    """A task and its examples. No text of `train` occurs in `demonstrations` or `test`."""

    task: Task
    train: tuple[Example, ...]
    demonstrations: tuple[Example, ...]
    test: tuple[Example, ...]

    def with_words(self, words: dict[str, str]) -> "TaskData":
        """The same data with some labels written as other words."""
        return replace(self, task=self.task.with_words(words))

    def without(self, texts: Collection[str]) -> "TaskData":
        """The same data without the examples whose text has one of these `text_key`s."""

        def kept(examples: Sequence[Example]) -> tuple[Example, ...]:
            return tuple(example for example in examples if text_key(example.text) not in texts)

        return replace(self, train=kept(self.train), demonstrations=kept(self.demonstrations), test=kept(self.test))

    def check(self, k: int, queries: int = 1) -> None:
        """Raise AbftError unless prompts of k demonstrations can be drawn from every part; training adds `queries` to them."""
        if len(self.train) < k + queries:
            asked = "a query" if queries == 1 else f"{queries} queries"
            raise AbftError(
                f"{self.task.name}: the training pool has {len(self.train)} examples, k = {k} demonstrations and {asked} need "
                f"{k + queries}. Give more data{'' if queries == 1 else ', --queries 1'} or a smaller k."
            )
        if len(self.demonstrations) < k:
            raise AbftError(
                f"{self.task.name}: the demonstration pool has {len(self.demonstrations)} examples, k = {k} needs "
                f"at least {k}. Give more data or a smaller k."
            )
        if not self.test:
            raise AbftError(f"{self.task.name}: no test examples; give --test-data or more data")
        if len({example.label for example in self.train}) < 2:
            raise AbftError(f"{self.task.name}: every example of the training pool has the same label; ABFT needs two classes")


def text_key(text: str) -> str:
    """What two writings of one text share: its letters and digits, without case (tasks tokenise the same review apart)."""
    return "".join(character for character in text.casefold() if character.isalnum()) or text.strip()


class LinearCongruential:
    """StaICC's random numbers: every draw continues where the last one ended, so that ours equal StaICC's."""

    def __init__(self, seed: int = SPLIT_SEED) -> None:
        self.state = seed

    def uniform(self) -> float:
        """A number in [0, 1)."""
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return self.state / 2**32

    def sample(self, values: Sequence[int], count: int) -> list[int]:
        """`count` of `values` without repetition."""
        left = list(values)
        return [left.pop(int(self.uniform() * len(left))) for _ in range(count)]


def lcg_indices(total: int, picks: Sequence[int], seed: int = SPLIT_SEED) -> list[list[int]]:
    """Index lists drawn without repetition, `picks[i]` out of `total` each; one generator runs through all lists."""
    generator = LinearCongruential(seed)
    return [generator.sample(range(total), pick) for pick in picks]


@functools.cache
def load_task(name: str, protocol: Protocol = "consistent") -> TaskData:
    """A built-in task with StaICC's splits: 1,024 training, 4,096 demonstration (FP 512, TEE 3,192), 512 test examples.

    No text stands in two parts, not even with other case or punctuation: demonstrations that are test queries too are dropped
    (at most 1 in 100; not in the `staicc` protocol, which keeps StaICC's own), and so are training examples that stand
    elsewhere or twice (at most 2 in 100).

    Raises:
        AbftError: unknown task, or the StaICC package is missing.
    """
    task = task_named(name, protocol)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from StaICC.util import hgf_dataset_loader
    except ImportError:
        raise AbftError(
            f"task {task.name} needs the StaICC data: pip install 'abft[staicc]' (or use your own data with --data FILE)"
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
    return TaskData(task, tuple(_without_texts_of(unique(train), rest)), tuple(demonstrations), tuple(test))


def _without_texts_of(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    seen = {text_key(example.text) for example in others}
    return [example for example in examples if text_key(example.text) not in seen]


def unique(examples: Sequence[Example], key: Callable[[Example], Hashable] | None = None) -> list[Example]:
    """The first example of every key, by default of every text."""
    key = key or (lambda example: text_key(example.text))
    return list({key(example): example for example in reversed(examples)}.values())[::-1]


def load_data(
    source: "str | Path | datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    test_source: "str | Path | datasets.Dataset | None" = None,
    template: str = "text: {text} label: {label}\n",
    name: str | None = None,
) -> TaskData:
    """A task from the user's own labelled texts.

    Args:
        source: a .csv, .tsv, .jsonl, .json or .parquet file, a `datasets.Dataset`, or a data set id on the hub.
        text_column: column of the texts.
        label_column: column of the labels; any value, used as a string. Label words default to the labels.
        test_source: test queries; without it a quarter of the texts (at most 512) is held out.
        template: how a demonstration is written, with `{text}` and `{label}`.
        name: the task's name; default: the file's stem.

    Returns:
        Texts that occur twice (case and punctuation aside) are kept once; every text is in one part only.

    Raises:
        AbftError: missing file or column, no rows, empty texts or labels, one class, unknown test labels.
    """
    origin = str(source) if isinstance(source, str | Path) else "data set"
    tables = _tables(source)
    rows = _rows(tables[0], origin, text_column, label_column)
    if test_source is not None:
        tables = [tables[0], *_tables(test_source)[-1:]]
    test_rows = _rows(tables[1], "test data", text_column, label_column) if len(tables) > 1 else None
    task_name = name or (Path(source).stem if isinstance(source, str | Path) else "data")
    task = _task_of(rows, task_name, template, f"{origin}: column {label_column!r}")
    labels = task.labels
    unknown = sorted({label for _, label in test_rows} - set(labels)) if test_rows else []
    if unknown:
        raise AbftError(f"test data: labels {unknown} do not occur in {origin}; its labels are {list(labels)}")

    def shuffled(pairs: list[tuple[str, str]]) -> list[Example]:
        examples = unique([Example(text, labels.index(label)) for text, label in pairs])
        random.Random(SPLIT_SEED).shuffle(examples)
        return examples

    examples = shuffled(rows)
    if test_rows:
        test = shuffled(test_rows)[:TEST_QUERIES]
        examples = _without_texts_of(examples, test)
    else:
        held_out = min(TEST_QUERIES, len(examples) // 4)
        test, examples = examples[:held_out], examples[held_out:]
    train = min(TRAIN_POOL, (len(examples) + 1) // 2)
    return TaskData(task, tuple(examples[:train]), tuple(examples[train : train + DEMONSTRATION_POOL]), tuple(test))


def training_pool(
    table: "datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    template: str = "text: {text} label: {label}\n",
) -> TaskData:
    """A task of which every row is trained on, for those who measure elsewhere: its other parts are the same rows.

    Raises:
        AbftError: as `load_data`.
    """
    rows = _rows(table, "train_dataset", text_column, label_column)
    task = _task_of(rows, "data", template, f"train_dataset: column {label_column!r}")
    examples = tuple(unique([Example(text, task.labels.index(label)) for text, label in rows]))
    return TaskData(task, examples, examples, examples)


def _task_of(rows: Sequence[tuple[str, str]], name: str, template: str, origin: str) -> Task:
    """The task whose labels are those of `rows`, (text, label) pairs."""
    labels = tuple(sorted({label for _, label in rows}))
    if len(labels) < 2:
        raise AbftError(f"{origin} holds one label only ({labels[0]!r}); expected at least 2 classes")
    return Task(name, Template(template), labels, labels)


def texts_of(table: "datasets.Dataset", text_column: str, origin: str) -> list[str]:
    """The texts of a table, labelled or not. Raises AbftError as `load_data` does."""
    return _strings(table, text_column, origin, "text")


def _rows(table: "datasets.Dataset", origin: str, text_column: str, label_column: str) -> list[tuple[str, str]]:
    texts = _strings(table, text_column, origin, "text")
    return list(zip(texts, _strings(table, label_column, origin, "label"), strict=True))


def _tables(source: "str | Path | datasets.Dataset") -> "list[datasets.Dataset]":
    """The training table, and the test table that a hub data set brings (the validation split if test has no labels)."""
    if not isinstance(source, str | Path):
        return [source]
    path = Path(source)
    if path.suffix.lower() in READERS or path.exists():
        return [read_table(path)]
    import datasets

    try:
        splits = datasets.load_dataset(str(source))
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise AbftError(
            f"{source!r} is neither a file ({', '.join(READERS)}) nor a data set that could be loaded from the hub: {reason}"
        ) from None
    return labelled_splits(splits)


def labelled_splits(splits: "datasets.DatasetDict") -> "list[datasets.Dataset]":
    """The training split, then the first labelled one of test and validation, if any (class -1 means unlabelled)."""
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    for name in ("test", "validation"):
        if name in splits and splits[name] is not train:
            classes = [c for c, feature in splits[name].features.items() if hasattr(feature, "names")]
            if not any(value == -1 for column in classes for value in splits[name][column]):
                return [train, splits[name]]
    return [train]


def read_table(path: Path) -> "datasets.Dataset":
    """A file as a table. Raises AbftError for a missing, empty or unreadable one."""
    if not path.is_file():
        raise AbftError(f"no such file: {path}")
    if path.suffix.lower() not in READERS:
        raise AbftError(f"{path}: expected a file ending in {', '.join(READERS)}, got {path.suffix or 'no ending'!r}")
    if path.stat().st_size == 0:
        raise AbftError(f"{path} is empty")
    import datasets
    import pandas

    datasets.disable_progress_bars()
    kind = READERS[path.suffix.lower()]
    try:
        if kind != "csv":
            return datasets.load_dataset(kind, data_files=glob.escape(str(path)), split="train")
        # Cells as they are written: 007 is no number.
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        frame = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except Exception as error:
        if "corresponds to no data" in str(error):
            raise AbftError(f"{path}: no rows") from None
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:160]
        raise AbftError(f"{path} could not be read as {kind}: {reason}") from None
    if not isinstance(frame.index, pandas.RangeIndex):
        raise AbftError(f"{path}: rows have more cells than the header")
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _strings(table: "datasets.Dataset", column: str, source: str, what: str) -> list[str]:
    """One column as strings; class indices become their names; refuses missing columns and empty cells."""
    if column not in table.column_names:
        raise AbftError(
            f"{source}: no column {column!r}; its columns are {', '.join(table.column_names)}. Use --{what}-column."
        )
    if len(table) == 0:
        raise AbftError(f"{source}: no rows")
    feature = table.features[column]
    names = getattr(feature, "names", None)
    if names:
        values = [names[v] if v is not None and 0 <= v < len(names) else None for v in table[column]]
    else:
        values = [None if v is None else str(v) for v in table[column]]
    empty = [row for row, value in enumerate(values, start=1) if value is None or not value.strip()]
    if empty:
        raise AbftError(f"{source}: {len(empty)} rows have an empty {what} (first: row {empty[0]}). Remove or fill them.")
    strings = [value for value in values if value is not None]
    return [value.strip() for value in strings] if what == "label" else strings
