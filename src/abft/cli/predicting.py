"""`abft predict`: texts come in chunks, so that a file may be larger than the memory."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abft.cli.options import Device, Json, Run, RunArgument, chosen_run
from abft.cli.predictions import (
    SUFFIXES,
    Parts,
    check_output,
    check_table,
    json_line,
    prediction_line,
    prediction_rows,
    print_explanation,
    write_explanations,
)
from abft.cli.quiet import quiet
from abft.data.tables import READERS, TableFile, batches, decoded, open_table
from abft.errors import AbftError, RunInterrupted
from abft.method.settings import DATA
from abft.runs.config import MODEL, OUTPUT

if TYPE_CHECKING:
    import pandas

    from abft.runs.predictor import Predictor

CHUNK_ROWS = 1024  # what an interrupted command loses at most


def predict(
    argument: RunArgument = None,
    run: Run = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to classify; repeat.", rich_help_panel=DATA)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="File of texts (.csv, .tsv, .jsonl, .json, also .gz; .parquet, .xlsx), or .txt "
            "with a text in each line; encoding and separator are detected.",
            rich_help_panel=DATA,
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the texts.", show_default="as in training", rich_help_panel=DATA
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Refuse rows with an empty text instead of leaving them without a label.",
            rich_help_panel=DATA,
        ),
    ] = False,
    device: Device = "auto",
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run Python code of the model's repository.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write a file: .csv, .tsv, .parquet (the rows of --data and more columns) or "
            ".jsonl. A command that was interrupted goes on where it stopped.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which demonstrations and tokens the heads looked at; --output may end in "
            ".html too.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts in a forward pass.", rich_help_panel=OUTPUT)
    ] = 16,
    as_json: Json = False,
) -> None:
    """Label new texts with a finished run, or a merged one.

    Reads lines from stdin without --text and --data.

    **Examples**

    `abft predict --run runs/sst2 --text "a film to remember"`

    `abft predict --data new.csv --output scored.csv` (with the newest run in runs/)

    `abft predict --run runs/mine --data big.parquet --text-column review --output labels.parquet`

    `abft predict --text "a film to remember" --explain --output why.html`
    """
    from abft.runs.run_folder import check_predictable, read_task, text_column_of

    # Everything that can be refused without a model comes first.
    if text and data:
        raise AbftError("give --text or --data, not both")
    if output is not None:
        check_output(output, (".jsonl", ".html") if explain else SUFFIXES)
    run = chosen_run(argument, run)
    check_predictable(run)

    table = None
    if data is not None:
        table = open_table(data, tuple(READERS))
        column = "text" if table.kind == "lines" else text_column or text_column_of(run)
        check_table(table, column, None if explain else output, read_task(run)[0].labels)
        if table.assumed:
            print(table.assumed, file=sys.stderr)
    else:
        texts = list(text) if text else _stdin_lines()
        column = "text"
        if not texts or not all(each.strip() for each in texts):
            raise AbftError(
                "no text, or an empty one, to classify; give --text, --data or stdin lines"
            )

    parts = None
    if output is not None and not explain:
        parts = Parts(output, {"run": str(run.resolve()), "column": column, **_identity(table)})

    skip = parts.rows if parts else 0
    if skip:
        print(f"{output}: going on after {skip:,} rows", file=sys.stderr)
    quiet()
    from abft.runs.predictor import Predictor

    predictor = Predictor.from_run(run, device=device, trust_remote_code=trust_remote_code)
    source = table.chunks(CHUNK_ROWS, skip) if table else _frames(texts, skip)
    job = _Job(predictor, column, str(data or "the texts"), strict, batch_size, skip)
    total = table.rows if table else len(texts)
    if explain:
        explanations = [e for frame in source for e in job.explain(frame)]
        if output is not None:
            write_explanations(output, explanations)
            print(f"wrote {output}", file=sys.stderr)
        else:
            for explanation in explanations:
                if as_json:
                    print(json_line(explanation), end="")
                else:
                    print_explanation(explanation)
        job.report()
        return

    from abft.runs.session import progress_bar

    with progress_bar("predict", total, "text", skip) as bar:
        try:
            for frame in source:
                predictions = job.predict(frame)
                if parts:
                    parts.write(prediction_rows(frame, column, predictions, predictor.task.labels))
                else:
                    for each, prediction in zip(frame[column], predictions, strict=True):
                        if prediction is not None:
                            print(prediction_line(str(each), prediction, as_json), flush=True)
                bar.update(len(frame))
        except KeyboardInterrupt:
            done = f"{parts.rows:,} rows are kept; the same command goes on" if parts else "stopped"
            raise RunInterrupted(done) from None
    job.report()
    if parts:
        parts.join()
        print(f"wrote {output}", file=sys.stderr)


class _Job:
    """Predicts frames of texts, and counts what is left out and what is cut."""

    def __init__(
        self,
        predictor: "Predictor",
        column: str,
        origin: str,
        strict: bool,
        batch_size: int,
        done: int,
    ) -> None:
        self.predictor, self.column, self.origin = predictor, column, origin
        self.strict, self.batch_size = strict, batch_size
        self.rows, self.cut = done, 0
        self.empty: list[int] = []

    def texts(self, frame: "pandas.DataFrame") -> tuple[list[int], list[str]]:
        """Return which rows of a frame hold a text, and the texts, cut to what fits."""
        from abft.data.datasets import check_empty, texts_of

        cells = texts_of(frame, self.column, self.origin)
        held = [i for i, cell in enumerate(cells) if cell]
        empty = [self.rows + i + 1 for i, cell in enumerate(cells) if not cell]
        if self.strict:
            check_empty(empty, self.rows + len(cells), self.origin, "text", strict=True)
        self.empty += empty
        self.rows += len(cells)

        texts = [cells[i] for i in held]
        fitted = self.predictor.fit(texts)
        self.cut += sum(a != b for a, b in zip(texts, fitted, strict=True))
        return held, fitted

    def predict(self, frame: "pandas.DataFrame") -> list[tuple[str, dict[str, float]] | None]:
        """Return label and probabilities of every row; None where it has no text."""
        held, texts = self.texts(frame)
        predictions: list[tuple[str, dict[str, float]] | None] = [None] * len(frame)
        for i, prediction in zip(held, self.predictor.predict(texts, self.batch_size), strict=True):
            predictions[i] = prediction
        return predictions

    def explain(self, frame: "pandas.DataFrame") -> Sequence:
        """Return the explanations of the rows with a text."""
        return self.predictor.explain(self.texts(frame)[1], self.batch_size)

    def report(self) -> None:
        """Say on stderr what was left out and what was cut."""
        from abft.data.datasets import check_empty

        check_empty(self.empty, self.rows, self.origin, "text", strict=False)
        if self.cut:
            print(
                f"{self.origin}: {self.cut} texts are longer than fits into the model's context; "
                "only their beginning was read",
                file=sys.stderr,
            )


def _stdin_lines() -> list[str]:
    """Return the lines of stdin that are not blank, of any encoding."""
    lines = decoded(sys.stdin.buffer.read()).splitlines()
    return [line for line in lines if line.strip()]


def _frames(texts: Sequence[str], skip: int) -> "Iterator[pandas.DataFrame]":
    import pandas

    for chunk in batches(iter(texts[skip:]), CHUNK_ROWS):
        yield pandas.DataFrame({"text": chunk}, dtype=object)


def _identity(table: TableFile | None) -> dict[str, object]:
    """Return what tells one source of rows from another."""
    if table is None:
        return {}
    status = table.path.stat()
    return {"data": str(table.path.resolve()), "bytes": status.st_size, "time": status.st_mtime_ns}
