"""Load a user's own labelled texts and split them into training, demonstrations and test queries.

They come from a file, a `datasets.Dataset` or a data set id of the Hugging Face hub.
"""

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from abft.data.draws import classes_in_turn
from abft.data.splits import (
    DEMONSTRATION_POOL,
    SPLIT_SEED,
    TEST_QUERIES,
    TRAIN_POOL,
    Origin,
    TaskData,
    text_key,
    unique,
    without_texts_of,
)
from abft.data.tables import TABLES, is_table, open_table
from abft.data.tasks import Example, Task, Template
from abft.errors import AbftError

if TYPE_CHECKING:
    import datasets
    import pandas

    Table: TypeAlias = pandas.DataFrame | datasets.Dataset

MOST_SHOWN = 32  # demonstrations before a text; a reader is trained with no more
_NAMED_ROWS = 3  # of skipped rows, in messages


def load_data(
    source: "str | Path | datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    test_source: "str | Path | datasets.Dataset | None" = None,
    template: str = "text: {text} label: {label}\n",
    name: str | None = None,
    strict: bool = False,
) -> TaskData:
    """Load a task from the user's own labelled texts.

    Assumptions and skipped rows are reported on stderr.

    Args:
        source: a .csv, .tsv, .jsonl, .json, .parquet or .xlsx file (the text files also as .gz,
            .bz2 or .xz) of any common encoding and separator, a `datasets.Dataset`, or a data set
            id on the hub.
        text_column: column of the texts.
        label_column: column of the labels; any value, used as a string. Label words default to the
            labels.
        test_source: test queries; without it a quarter of the texts (at most 512) is held out.
        template: how a demonstration is written, with `{text}` and `{label}`.
        name: the task's name; default: the file's stem.
        strict: refuse rows with an empty text or label instead of skipping them.

    Returns:
        The task and its examples. Texts that occur twice (case and punctuation aside) are kept
        once; every text is in one part only.

    Raises:
        AbftError: missing file or column, no rows, one class, unknown test labels; with `strict`
            an empty text or label.
    """
    origin = str(source) if isinstance(source, str | Path) else "data set"
    columns = {"text": text_column, "label": label_column}
    tables = _tables(source, columns)
    rows, skipped = _rows(tables[0], origin, text_column, label_column, strict)

    # A test source replaces the test split that a hub data set brings itself.
    if test_source is not None:
        tables = [tables[0], *_tables(test_source, columns)[-1:]]
    test_rows: list[tuple[str, str]] = []
    if len(tables) > 1:
        test_rows, _ = _rows(tables[1], "test data", text_column, label_column, strict)

    # The labels of the training rows define the task; test rows may have no others.
    task_name = name or (_stem(Path(source)) if isinstance(source, str | Path) else "data")
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
    came_from = Origin(len(rows) + skipped, skipped, len(rows) - len(examples))
    if test_rows:
        test = shuffled(test_rows)[:TEST_QUERIES]
        examples = without_texts_of(examples, test)
    else:
        size = min(TEST_QUERIES, len(examples) // 4)
        test, examples = examples[:size], examples[size:]

    # Of few examples, training gets one half and the demonstrations the other.
    size = min(TRAIN_POOL, (len(examples) + 1) // 2)
    train, demonstrations = examples[:size], examples[size : size + DEMONSTRATION_POOL]
    return TaskData(task, tuple(train), tuple(demonstrations), tuple(test), came_from)


def load_demonstrations(
    source: "str | Path | datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    template: str = "text: {text} label: {label}\n",
    k: int | None = None,
    strict: bool = False,
) -> tuple[Task, list[Example]]:
    """Load labelled texts to show as demonstrations, for a task that needs no training.

    Args:
        source, text_column, label_column, template, strict: as for `load_data`.
        k: how many to show, the classes in turn; default: all, but at most `MOST_SHOWN`, or one of
            every class if there are more classes.

    Returns:
        The task, and the demonstrations in the order of the prompt. Texts that occur twice are
        shown once.

    Raises:
        AbftError: as for `load_data`, or fewer texts than `k`.
    """
    origin = str(source) if isinstance(source, str | Path) else "data set"
    table = _tables(source, {"text": text_column, "label": label_column})[0]
    rows, _ = _rows(table, origin, text_column, label_column, strict)
    name = _stem(Path(source)) if isinstance(source, str | Path) else "data"
    task = _task_of(rows, name, template, f"{origin}: column {label_column!r}")

    # In the file's order, unlike `unique`.
    by_text: dict[str, Example] = {}
    for text, label in rows:
        by_text.setdefault(text_key(text), Example(text, task.labels.index(label)))
    examples = list(by_text.values())
    if k is not None and k > len(examples):
        raise AbftError(f"k = {k}: {origin} holds {len(examples)} different texts")
    most = max(MOST_SHOWN, len(task.labels)) if k is None else k
    shown = classes_in_turn(examples)[:most]
    if len(shown) < len(examples):
        print(f"{origin}: {len(shown)} of {len(examples)} texts are shown (k)", file=sys.stderr)
    unseen = sorted(set(range(len(task.labels))) - {example.label for example in shown})
    if unseen:
        names = ", ".join(repr(task.labels[label]) for label in unseen)
        print(f"{origin}: no text of {names} is shown", file=sys.stderr)
    return task, shown


def training_pool(
    table: "datasets.Dataset",
    text_column: str = "text",
    label_column: str = "label",
    template: str = "text: {text} label: {label}\n",
) -> TaskData:
    """Return a task that is trained on every row of a table, for callers who measure elsewhere.

    Its demonstrations and test queries are the same rows.

    Raises:
        AbftError: as for `load_data`.
    """
    if isinstance(table, Mapping):
        raise AbftError(
            f"train_dataset has splits ({', '.join(table)}); give one of them, such as "
            'train_dataset["train"]'
        )
    rows, _ = _rows(table, "train_dataset", text_column, label_column)
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


def texts_of(table: "Table", text_column: str, origin: str) -> list[str]:
    """Return the texts of a table, labelled or not, including empty ones.

    Raises:
        AbftError: no such column, or no rows.
    """
    return [cell or "" for cell in _strings(table, text_column, origin, "text")]


def _rows(
    table: "Table", origin: str, text_column: str, label_column: str, strict: bool = False
) -> tuple[list[tuple[str, str]], int]:
    """Return the (text, label) pairs of a table, and how many rows were skipped as empty."""
    texts = _strings(table, text_column, origin, "text")
    labels = _strings(table, label_column, origin, "label")

    pairs, empty = [], []
    for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        if text is None or label is None:
            empty.append(row)
        else:
            pairs.append((text, label.strip()))
    check_empty(empty, len(texts), origin, "text or label", strict)
    return pairs, len(empty)


def check_empty(empty: Sequence[int], rows: int, origin: str, what: str, strict: bool) -> None:
    """Say on stderr which rows are skipped as empty; AbftError if all are, or with `strict`."""
    if not empty:
        return
    more = ", ..." if len(empty) > _NAMED_ROWS else ""
    numbers = ", ".join(map(str, empty[:_NAMED_ROWS])) + more
    which = f"{len(empty)} of {rows} rows have an empty {what} (row {numbers})"
    if strict:
        raise AbftError(f"{origin}: {which}. Remove or fill them, or leave out --strict.")
    if len(empty) == rows:
        raise AbftError(f"{origin}: all {rows} rows have an empty {what}")
    print(f"{origin}: {which}; skipped", file=sys.stderr)


def _tables(source: "str | Path | datasets.Dataset", columns: Mapping[str, str]) -> "list[Table]":
    """Return the training table and, of a hub data set, its test table.

    The test table is the validation split if the test split has no labels. A file's header is
    checked for `columns`.
    """
    if isinstance(source, Mapping):  # a `datasets.DatasetDict`
        return labelled_splits(source, columns["label"])
    if not isinstance(source, str | Path):
        return [source]
    path = Path(source)
    if is_table(path) or path.exists():
        return [read_table(path, columns)]

    # Anything else is an id on the hub.
    import datasets

    try:
        splits = datasets.load_dataset(str(source))
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise AbftError(
            f"{source!r} is neither a file ({', '.join(TABLES)}) nor a data set that could be "
            f"loaded from the hub: {reason}"
        ) from None
    return labelled_splits(splits, columns["label"])


def read_table(path: Path, columns: Mapping[str, str] | None = None) -> "pandas.DataFrame":
    """Read a file as a table, and say on stderr what was detected.

    Args:
        columns: the columns that have to be there, by what they hold: "text" or "label".

    Raises:
        AbftError: a missing, empty or unreadable file, a missing column.
    """
    file = open_table(path)
    for what, column in (columns or {}).items():
        check_columns(file.columns, column, str(path), what)
    if file.assumed:
        print(file.assumed, file=sys.stderr)
    return file.read()


def _stem(path: Path) -> str:
    """Return a file's name without its endings: "reviews.csv.gz" -> "reviews"."""
    while is_table(path):
        path = path.with_suffix("")
    return path.name


def labelled_splits(splits: "datasets.DatasetDict", column: str) -> "list[Table]":
    """Return the training split, then the first labelled one of test and validation, if any.

    Class -1 means unlabelled.
    """
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    for name in ("test", "validation"):
        if name not in splits or splits[name] is train:
            continue
        table = splits[name]

        # Only a column of classes can be unlabelled.
        of_classes = hasattr(table.features.get(column), "names")
        if not (of_classes and -1 in table[column]):
            return [train, table]
    return [train]


def check_columns(columns: Sequence[str], column: str, origin: str, what: str) -> None:
    """Raise AbftError unless a table has a column."""
    if column not in columns:
        raise AbftError(
            f"{origin}: no column {column!r}; its columns are {', '.join(columns)}. "
            f"Use --{what}-column."
        )


def _strings(table: "Table", column: str, origin: str, what: str) -> list[str | None]:
    """Return one column as strings, None where a cell is empty; class indices become their names.

    Raises:
        AbftError: a missing column, or no rows.
    """
    import pandas

    is_frame = isinstance(table, pandas.DataFrame)
    names = list(table.columns) if is_frame else table.column_names
    check_columns(names, column, origin, what)
    if len(table) == 0:
        raise AbftError(f"{origin}: no rows")

    # Class -1, or any other class without a name, counts as empty.
    classes = None if is_frame else getattr(table.features[column], "names", None)
    values = []
    for cell in table[column]:
        if classes is not None:
            known = cell is not None and 0 <= cell < len(classes)
            cell = classes[cell] if known else None
        if cell is not None and not pandas.api.types.is_scalar(cell):
            raise AbftError(
                f"{origin}: column {column!r} holds a {type(cell).__name__}, expected plain values"
            )
        # Some writers of Parquet keep texts as bytes.
        if isinstance(cell, bytes):
            cell = cell.decode("utf-8", errors="replace")
        text = "" if pandas.isna(cell) else str(cell)
        values.append(text if text.strip() else None)
    return values
