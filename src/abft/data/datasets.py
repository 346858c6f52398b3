"""Load a user's own labelled texts and split them into training, demonstrations and test queries.

They come from CSV, TSV, JSON lines, Parquet, a `datasets.Dataset` or a data set id of the Hugging
Face hub.
"""

import glob
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from abft.data.splits import (
    DEMONSTRATION_POOL,
    SPLIT_SEED,
    TEST_QUERIES,
    TRAIN_POOL,
    TaskData,
    unique,
    without_texts_of,
)
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError

if TYPE_CHECKING:
    import datasets

READERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_data(
    source: "str | Path | datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    test_source: "str | Path | datasets.Dataset | None" = None,
    template: str = "text: {text} label: {label}\n",
    name: str | None = None,
) -> TaskData:
    """Load a task from the user's own labelled texts.

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
        The task and its examples. Texts that occur twice (case and punctuation aside) are kept
        once; every text is in one part only.

    Raises:
        AbftError: missing file or column, no rows, empty texts or labels, one class, unknown test
            labels.
    """
    origin = str(source) if isinstance(source, str | Path) else "data set"
    tables = _tables(source)
    rows = _rows(tables[0], origin, text_column, label_column)

    # A test source replaces the test split that a hub data set brings itself.
    if test_source is not None:
        tables = [tables[0], *_tables(test_source)[-1:]]
    test_rows = []
    if len(tables) > 1:
        test_rows = _rows(tables[1], "test data", text_column, label_column)

    # The labels of the training rows define the task; test rows may have no others.
    task_name = name or (Path(source).stem if isinstance(source, str | Path) else "data")
    task = _task_of(rows, task_name, template, f"{origin}: column {label_column!r}")
    labels = task.labels
    unknown = sorted({label for _, label in test_rows} - set(labels))
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
        size = min(TEST_QUERIES, len(examples) // 4)
        test, examples = examples[:size], examples[size:]

    # Of few examples, training gets one half and the demonstrations the other.
    size = min(TRAIN_POOL, (len(examples) + 1) // 2)
    train, demonstrations = examples[:size], examples[size : size + DEMONSTRATION_POOL]
    return TaskData(task, tuple(train), tuple(demonstrations), tuple(test))


def training_pool(
    table: "datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    template: str = "text: {text} label: {label}\n",
) -> TaskData:
    """Return a task of which every row is trained on, for those who measure elsewhere.

    Its other parts are the same rows.

    Raises:
        AbftError: as `load_data`.
    """
    rows = _rows(table, "train_dataset", text_column, label_column)
    task = _task_of(rows, "data", template, f"train_dataset: column {label_column!r}")
    examples = tuple(unique([Example(text, task.labels.index(label)) for text, label in rows]))
    return TaskData(task, examples, examples, examples)


def _task_of(rows: Sequence[tuple[str, str]], name: str, template: str, origin: str) -> Task:
    """Return the task whose labels are those of `rows`, (text, label) pairs."""
    labels = tuple(sorted({label for _, label in rows}))
    if len(labels) < 2:
        raise AbftError(
            f"{origin} holds one label only ({labels[0]!r}); expected at least 2 classes"
        )
    return Task(name, Template(template), labels, labels)


def texts_of(table: "datasets.Dataset", text_column: str, origin: str) -> list[str]:
    """Return the texts of a table, labelled or not. Raises AbftError as `load_data` does."""
    return _strings(table, text_column, origin, "text")


def _rows(
    table: "datasets.Dataset", origin: str, text_column: str, label_column: str
) -> list[tuple[str, str]]:
    """Return the (text, label) pairs of a table."""
    texts = _strings(table, text_column, origin, "text")
    labels = _strings(table, label_column, origin, "label")
    return list(zip(texts, labels, strict=True))


def _tables(source: "str | Path | datasets.Dataset") -> "list[datasets.Dataset]":
    """Return the training table and, of a hub data set, its test table.

    The test table is the validation split if the test split has no labels.
    """
    if not isinstance(source, str | Path):
        return [source]

    path = Path(source)
    if path.suffix.lower() in READERS or path.exists():
        return [read_table(path)]

    # Anything else is an id on the hub.
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
    """Return the training split, then the first labelled one of test and validation, if any.

    Class -1 means unlabelled.
    """
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    for name in ("test", "validation"):
        if name not in splits or splits[name] is train:
            continue
        table = splits[name]

        # Only columns of classes can be unlabelled.
        columns = [
            column for column, feature in table.features.items() if hasattr(feature, "names")
        ]
        if not any(label == -1 for column in columns for label in table[column]):
            return [train, table]
    return [train]


def read_table(path: Path) -> "datasets.Dataset":
    """Read a file as a table. Raises AbftError for a missing, empty or unreadable one."""
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

        # The cause says what is wrong in the file; the error itself only that reading failed.
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0][:160]
        raise AbftError(f"{path} could not be read as {kind}: {reason}") from None

    # pandas makes an index of the first cells where rows are longer than the header.
    if not isinstance(frame.index, pandas.RangeIndex):
        raise AbftError(f"{path}: rows have more cells than the header")
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


def _strings(table: "datasets.Dataset", column: str, source: str, what: str) -> list[str]:
    """Return one column as strings; class indices become their names, labels are stripped.

    Raises:
        AbftError: a missing column, no rows, or empty cells.
    """
    if column not in table.column_names:
        raise AbftError(
            f"{source}: no column {column!r}; its columns are {', '.join(table.column_names)}. "
            f"Use --{what}-column."
        )
    if len(table) == 0:
        raise AbftError(f"{source}: no rows")

    # Class -1, or any other that has no name, counts as empty.
    names = getattr(table.features[column], "names", None)
    if names:
        values = [
            names[index] if index is not None and 0 <= index < len(names) else None
            for index in table[column]
        ]
    else:
        values = [None if cell is None else str(cell) for cell in table[column]]

    empty = [row for row, value in enumerate(values, start=1) if value is None or not value.strip()]
    if empty:
        raise AbftError(
            f"{source}: {len(empty)} rows have an empty {what} (first: row {empty[0]}). Remove "
            f"or fill them."
        )
    strings = [value for value in values if value is not None]
    return [label.strip() for label in strings] if what == "label" else strings
