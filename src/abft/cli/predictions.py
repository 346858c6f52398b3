"""Write predictions to a file: the rows read, each with its label and every label's probability."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from abft.cli.tables import print_table
from abft.data.datasets import check_columns
from abft.data.tables import TableFile
from abft.errors import AbftError
from abft.files import atomic_file, write_json, write_text

if TYPE_CHECKING:
    import pandas

    from abft.runs.explain import Explanation

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LABEL, PROBABILITY = "predicted_label", "probability_"
Prediction = tuple[str, dict[str, float]]  # what `Predictor.predict` returns of a text


def prediction_line(text: str, prediction: Prediction, as_json: bool) -> str:
    """Return what the terminal shows of a text: label, probability, text; or JSON."""
    label, probabilities = prediction
    if as_json:
        row = {"text": text, "label": label, "probabilities": probabilities}
        return json.dumps(row, ensure_ascii=False)
    return f"{label}\t{max(probabilities.values()):.3f}\t{' '.join(text.split())}"


def check_output(output: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Raise AbftError unless `output` is a new file of a known kind in an existing folder."""
    if output.suffix.lower() not in suffixes:
        raise AbftError(f"--output {output}: expected a file ending in {', '.join(suffixes)}")
    if output.suffix.lower() == ".html" and find_spec("jinja2") is None:
        raise AbftError("an HTML page needs jinja2: pip install 'abft[report]'")
    if output.exists():
        raise AbftError(f"{output} exists; give another --output")
    if not output.parent.is_dir():
        raise AbftError(f"{output} is in no folder; give another --output")


def check_table(table: TableFile, column: str, output: Path | None, labels: Sequence[str]) -> None:
    """Raise AbftError if a file lacks the column of texts, or has one that `output` would write.

    JSON lines hold none of the source's columns.
    """
    check_columns(table.columns, column, str(table.path), "text")
    new_columns = {LABEL, *(PROBABILITY + label for label in labels)}
    clashes = sorted(new_columns & set(table.columns))
    if clashes and output is not None and output.suffix.lower() != ".jsonl":
        raise AbftError(
            f"--data has a column {clashes[0]!r} already, which --output would write; rename it"
        )


def json_line(explanation: "Explanation") -> str:
    """Return an explanation as one line of JSON."""
    return json.dumps(explanation.record(), ensure_ascii=False) + "\n"


def write_explanations(output: Path, explanations: "Sequence[Explanation]") -> None:
    """Write explanations as JSON lines or as an HTML page, at once or not at all."""
    if output.suffix.lower() == ".html":
        from abft.report.explanations import explanation_page

        write_text(output, explanation_page(explanations))
    else:
        write_text(output, "".join(map(json_line, explanations)))


def print_explanation(explanation: "Explanation", longest: int = 54, tokens: int = 5) -> None:
    """Print a table of the demonstrations, and the tokens that were looked at most."""

    def short(text: str) -> str:
        line = " ".join(text.split())
        return line if len(line) <= longest else line[: longest - 1] + "…"

    print(f"{explanation.label} {explanation.probabilities[explanation.label]:.3f}  ", end="")
    print(short(explanation.text))
    order = explanation.token_shares.argsort()[::-1][:tokens]
    most = [f"{explanation.tokens[i].strip()} {explanation.token_shares[i]:.0%}" for i in order]
    print(f"tokens looked at most: {', '.join(most)}")

    if len(explanation.shares):
        rows = [
            (f"{explanation.shares[i]:.1%}", *map(short, reversed(explanation.demonstrations[i])))
            for i in explanation.shares.argsort()[::-1]
        ]
        print_table([("share", "right"), ("label", "left"), ("demonstration", "left")], rows)


def prediction_rows(
    frame: "pandas.DataFrame",
    column: str,
    predictions: Sequence[Prediction | None],
    labels: Sequence[str],
) -> "pandas.DataFrame":
    """Return a frame with the predictions of its texts in more columns; empty where None."""
    import pandas

    words = [None if each is None else each[0] for each in predictions]
    new: dict[str, pandas.Series] = {LABEL: pandas.Series(words, dtype=object)}
    for label in labels:
        values = [None if each is None else each[1][label] for each in predictions]
        new[PROBABILITY + label] = pandas.Series(values, dtype=float)
    frame = frame.assign(**new)
    frame.attrs["column"] = column
    return frame


class Parts:
    """Writes a file in parts, which are joined at the end: a killed job goes on after the last.

    Args:
        output: the file; its ending says the format.
        job: what the parts belong to, JSON-ready; others' parts are refused.

    Attributes:
        rows: how many rows of the source are in the parts.
    """

    def __init__(self, output: Path, job: Mapping[str, object]) -> None:
        self.output, self.kind = output, output.suffix.lower()
        self.folder = output.with_name(f"{output.name}.parts")
        self._job = self.folder / "job.json"
        self.rows = 0
        self._sizes: list[int] = []
        if self.folder.exists():
            try:
                record = json.loads(self._job.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                record = {}
            if record.get("job") != job:
                raise AbftError(
                    f"{self.folder} holds parts of another job; delete it, or give another --output"
                )
            self._sizes = record["sizes"]
            self.rows = sum(self._sizes)
        self.job = dict(job)

    def write(self, frame: "pandas.DataFrame") -> None:
        """Write the next part; it counts once job.json names it."""
        self.folder.mkdir(exist_ok=True)
        path = self._part(len(self._sizes))
        if self.kind == ".parquet":
            frame.to_parquet(path, index=False)
        elif self.kind == ".jsonl":
            write_text(path, _json_lines(frame))
        else:
            write_text(path, _csv(frame, "\t" if self.kind == ".tsv" else ",", not self._sizes))
        self._sizes.append(len(frame))
        self.rows += len(frame)
        write_json(self._job, {"job": self.job, "sizes": self._sizes})

    def join(self) -> None:
        """Make the file of all parts, and delete them."""
        parts = [self._part(number) for number in range(len(self._sizes))]
        with atomic_file(self.output) as partial:
            if self.kind == ".parquet":
                _join_parquet(parts, partial)
            else:
                with partial.open("wb") as file:
                    for part in parts:
                        with part.open("rb") as content:
                            shutil.copyfileobj(content, file)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.kind}"


def _json_lines(frame: "pandas.DataFrame") -> str:
    """Return one JSON object in a line for each row: text, label, probabilities."""
    import pandas

    columns = [name for name in frame.columns if name.startswith(PROBABILITY)]
    lines = []
    for _, row in frame.iterrows():
        label = None if pandas.isna(row[LABEL]) else row[LABEL]
        probabilities = {name.removeprefix(PROBABILITY): row[name] for name in columns}
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


def _join_parquet(parts: Sequence[Path], output: Path) -> None:
    """Write parts into one Parquet file; columns may have become other types in some."""
    import pyarrow
    from pyarrow import parquet

    # A column without values in one part has no type there.
    schemas = [parquet.read_schema(part).remove_metadata() for part in parts]
    schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
    with parquet.ParquetWriter(output, schema) as writer:
        for part in parts:
            writer.write_table(parquet.read_table(part).cast(schema))
