"""Write predictions to a file chunk by chunk: the rows read, their labels and probabilities."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from abft.errors import AbftError
from abft.files import atomic_file, locked, write_json, write_text

if TYPE_CHECKING:
    import numpy as np
    import pandas

LABEL, PROBABILITY = "predicted_label", "probability_"
Prediction = tuple[str, dict[str, float]]  # what `Predictor.predict` returns for a text


def prediction_rows(
    frame: "pandas.DataFrame",
    column: str,
    predictions: Sequence[Prediction | None],
    labels: Sequence[str],
) -> "pandas.DataFrame":
    """Return a frame with added columns for its texts' predictions, empty where these are None."""
    import pandas

    words = [None if each is None else each[0] for each in predictions]
    new: dict[str, pandas.Series] = {LABEL: pandas.Series(words, dtype=object)}
    for label in labels:
        values = [None if each is None else each[1][label] for each in predictions]
        new[PROBABILITY + label] = pandas.Series(values, dtype=float)
    frame = frame.assign(**new)
    frame.attrs |= {"column": column, "labels": tuple(labels)}
    return frame


def alone(output: Path) -> AbstractContextManager[None]:
    """Keep other processes from writing a file. Raises AbftError if one does."""
    return locked(
        output.with_name(f".{output.name}.lock"),
        f"another process is writing {output}; wait for it or give another --output",
    )


class Parts:
    """Writes a file in parts, which are joined at the end, so that a killed job can continue.

    Part i holds the i-th chunk of the source's rows. A part that exists is complete.

    Args:
        output: the file; its ending decides the format.
        job: identifies what is computed, JSON-ready; parts of another job are refused.
        chunk_rows: rows of every chunk but the last.
    """

    def __init__(self, output: Path, job: Mapping[str, object], chunk_rows: int) -> None:
        self.output, self.kind, self.chunk_rows = output, output.suffix.lower(), chunk_rows
        self.job = dict(job)
        self.folder = output.with_name(f"{output.name}.parts")
        record = {"job": self.job, "chunk_rows": chunk_rows}
        path = self.folder / "job.json"
        if self.folder.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                stored = None
            if stored != record:
                raise AbftError(
                    f"{self.folder} holds parts of another job; delete it, or give another --output"
                )
        self._record = (path, record)

    @property
    def done(self) -> list[int]:
        """Return the numbers of the parts that exist, ascending."""
        return sorted(int(path.stem) for path in self.folder.glob(f"[0-9]*{self.kind}"))

    def start(self) -> None:
        """Make the folder, with a job.json that identifies the job."""
        self.folder.mkdir(exist_ok=True)
        write_json(*self._record)

    def write(self, number: int, frame: "pandas.DataFrame") -> None:
        """Write a part, whole or not at all."""
        path = self.folder / f"{number:06d}{self.kind}"
        if self.kind == ".parquet":
            write_parquet(path, frame)
        elif self.kind == ".jsonl":
            write_text(path, _json_lines(frame))
        else:
            write_text(path, _csv(frame, "\t" if self.kind == ".tsv" else ",", number == 0))

    def write_probabilities(self, name: str, probabilities_NC: "np.ndarray") -> None:
        """Keep probabilities next to the parts, whole or not at all, until these are dropped."""
        import numpy as np

        with atomic_file(self.folder / f"{name}.npy") as partial, partial.open("wb") as file:
            np.save(file, probabilities_NC, allow_pickle=False)

    def probabilities(self, name: str) -> "np.ndarray":
        """Return what `write_probabilities` kept."""
        import numpy as np

        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def join(self) -> None:
        """Join all parts into the file, and delete them."""
        parts = [self.folder / f"{number:06d}{self.kind}" for number in self.done]
        with atomic_file(self.output) as partial:
            if self.kind == ".parquet":
                _join_parquet(parts, partial)
            else:
                with partial.open("wb") as file:
                    for part in parts:
                        with part.open("rb") as content:
                            shutil.copyfileobj(content, file)
        self.drop()

    def drop(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _json_lines(frame: "pandas.DataFrame") -> str:
    """Return one JSON object in a line for each row: text, label, probabilities."""
    import pandas

    labels = frame.attrs["labels"]  # the source may have columns with the same prefix
    lines = []
    for _, row in frame.iterrows():
        label = None if pandas.isna(row[LABEL]) else row[LABEL]
        probabilities = {name: row[PROBABILITY + name] for name in labels}
        text = row[frame.attrs["column"]]
        record = {
            "text": text if isinstance(text, str) else None if pandas.isna(text) else str(text),
            "label": label,
            "probabilities": None if label is None else probabilities,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _csv(frame: "pandas.DataFrame", separator: str, header: bool) -> str:
    text = frame.to_csv(index=False, sep=separator, header=header, lineterminator="\n")
    # pandas quotes a line feed, but not a carriage return, which readers take for a line's end.
    if "\r" in text:
        quoting = csv.QUOTE_NONNUMERIC
        text = frame.to_csv(
            index=False, sep=separator, header=header, lineterminator="\n", quoting=quoting
        )
    return text


def write_parquet(path: Path, frame: "pandas.DataFrame") -> None:
    """Write a frame as Parquet, whole or not at all.

    Columns of mixed types are written as text, and so are JSON objects, whose types may all differ.
    """
    import pyarrow

    def is_mixed(name: str) -> bool:
        try:
            cells = pyarrow.array(frame[name], from_pandas=True)
        except (pyarrow.ArrowException, OverflowError):
            return True
        return pyarrow.types.is_nested(cells.type)

    mixed = [name for name in frame.columns if frame[name].dtype == object and is_mixed(name)]
    texts = {name: frame[name].map(_as_text, na_action="ignore") for name in mixed}
    with atomic_file(path) as partial:
        frame.assign(**texts).to_parquet(partial, index=False)


def _as_text(cell: object) -> str:
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list | dict) else str(cell)


def _join_parquet(parts: Sequence[Path], output: Path) -> None:
    """Join parts into one Parquet file; a column may have different types in different parts."""
    import pyarrow
    from pyarrow import parquet

    def common(name: str) -> "pyarrow.Field":
        """Return a column's common type: text if types differ; parts without values have none."""
        fields = [schema.field(name) for schema in schemas]
        try:
            one_each = [pyarrow.schema([field]) for field in fields]
            return pyarrow.unify_schemas(one_each, promote_options="permissive").field(name)
        except pyarrow.ArrowException:
            return pyarrow.field(name, pyarrow.string())

    schemas = [parquet.read_schema(part).remove_metadata() for part in parts]
    schema = pyarrow.schema([common(name) for name in schemas[0].names])
    with parquet.ParquetWriter(output, schema) as writer:
        for part in parts:
            writer.write_table(parquet.read_table(part).cast(schema))
