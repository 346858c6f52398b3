"""Labelled examples and their three disjoint parts: training pool, demonstration pool, test
queries.

Built-in tasks come from StaICC with StaICC's own splits; a user's own data from CSV, TSV, JSON
lines, Parquet, a `datasets.Dataset` or a data set id of the Hugging Face hub.
"""

import glob
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError

if TYPE_CHECKING:
    import datasets
from abft.data.splits import (
    DEMONSTRATION_POOL,
    SPLIT_SEED,
    TEST_QUERIES,
    TRAIN_POOL,
    TaskData,
    unique,
    without_texts_of,
)

READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


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
        source: a .csv, .tsv, .jsonl, .json or .parquet file, a `datasets.Dataset`, or a data set id
            on the hub.
        text_column: column of the texts.
        label_column: column of the labels; any value, used as a string. Label words default to the
            labels.
        test_source: test queries; without it a quarter of the texts (at most 512) is held out.
        template: how a demonstration is written, with `{text}` and `{label}`.
        name: the task's name; default: the file's stem.

    Returns:
        Texts that occur twice (case and punctuation aside) are kept once; every text is in one part
        only.

    Raises:
        AbftError: missing file or column, no rows, empty texts or labels, one class, unknown test
            labels.
    """
    origin = str(source) if isinstance(source, str | Path) else "data set"
    tables = _tables(source)
    rows = _rows(tables[0], origin, text_column, label_column)
    if test_source is not None:
        tables = [tables[0], *_tables(test_source)[-1:]]
    test_rows = (
        _rows(tables[1], "test data", text_column, label_column) if len(tables) > 1 else None
    )
    task_name = name or (Path(source).stem if isinstance(source, str | Path) else "data")
    task = _task_of(rows, task_name, template, f"{origin}: column {label_column!r}")
    labels = task.labels
    unknown = sorted({label for _, label in test_rows} - set(labels)) if test_rows else []
    if unknown:
        raise AbftError(
            f"test data: labels {unknown} do not occur in {origin}; its labels are {list(labels)}"
        )

    def shuffled(pairs: list[tuple[str, str]]) -> list[Example]:
        examples = unique([Example(text, labels.index(label)) for text, label in pairs])
        random.Random(SPLIT_SEED).shuffle(examples)
        return examples

    examples = shuffled(rows)
    if test_rows:
        test = shuffled(test_rows)[:TEST_QUERIES]
        examples = without_texts_of(examples, test)
    else:
        held_out = min(TEST_QUERIES, len(examples) // 4)
        test, examples = examples[:held_out], examples[held_out:]
    train = min(TRAIN_POOL, (len(examples) + 1) // 2)
    return TaskData(
        task,
        tuple(examples[:train]),
        tuple(examples[train : train + DEMONSTRATION_POOL]),
        tuple(test),
    )


def training_pool(
    table: "datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    template: str = "text: {text} label: {label}\n",
) -> TaskData:
    """A task of which every row is trained on, for those who measure elsewhere: its other parts are
    the same rows.

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
        raise AbftError(
            f"{origin} holds one label only ({labels[0]!r}); expected at least 2 classes"
        )
    return Task(name, Template(template), labels, labels)


def texts_of(table: "datasets.Dataset", text_column: str, origin: str) -> list[str]:
    """The texts of a table, labelled or not. Raises AbftError as `load_data` does."""
    return _strings(table, text_column, origin, "text")


def _rows(
    table: "datasets.Dataset", origin: str, text_column: str, label_column: str
) -> list[tuple[str, str]]:
    texts = _strings(table, text_column, origin, "text")
    return list(zip(texts, _strings(table, label_column, origin, "label"), strict=True))


def _tables(source: "str | Path | datasets.Dataset") -> "list[datasets.Dataset]":
    """The training table, and the test table that a hub data set brings (the validation split if
    test has no labels).
    """
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
            f"{source!r} is neither a file ({', '.join(READERS)}) nor a data set that could be "
            f"loaded from the hub: {reason}"
        ) from None
    return labelled_splits(splits)


def labelled_splits(splits: "datasets.DatasetDict") -> "list[datasets.Dataset]":
    """The training split, then the first labelled one of test and validation, if any (class -1
    means unlabelled).
    """
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    for name in ("test", "validation"):
        if name in splits and splits[name] is not train:
            classes = [
                c for c, feature in splits[name].features.items() if hasattr(feature, "names")
            ]
            if not any(value == -1 for column in classes for value in splits[name][column]):
                return [train, splits[name]]
    return [train]


def read_table(path: Path) -> "datasets.Dataset":
    """A file as a table. Raises AbftError for a missing, empty or unreadable one."""
    if not path.is_file():
        raise AbftError(f"no such file: {path}")
    if path.suffix.lower() not in READERS:
        raise AbftError(
            f"{path}: expected a file ending in {', '.join(READERS)}, got "
            f"{path.suffix or 'no ending'!r}"
        )
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
    """One column as strings; class indices become their names; refuses missing columns and empty
    cells.
    """
    if column not in table.column_names:
        raise AbftError(
            f"{source}: no column {column!r}; its columns are {', '.join(table.column_names)}. "
            f"Use --{what}-column."
        )
    if len(table) == 0:
        raise AbftError(f"{source}: no rows")
    feature = table.features[column]
    names = getattr(feature, "names", None)
    if names:
        values = [
            names[v] if v is not None and 0 <= v < len(names) else None for v in table[column]
        ]
    else:
        values = [None if v is None else str(v) for v in table[column]]
    empty = [row for row, value in enumerate(values, start=1) if value is None or not value.strip()]
    if empty:
        raise AbftError(
            f"{source}: {len(empty)} rows have an empty {what} (first: row {empty[0]}). Remove "
            f"or fill them."
        )
    strings = [value for value in values if value is not None]
    return [value.strip() for value in strings] if what == "label" else strings
