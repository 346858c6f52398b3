"""`abft predict`: texts come in chunks, so that a file may be larger than the memory."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abft.cli.options import Json, Run, RunArgument, chosen_run, with_settings
from abft.cli.predictions import (
    SUFFIXES,
    check_output,
    check_table,
    json_line,
    prediction_line,
    print_explanation,
    write_explanations,
)
from abft.cli.quiet import quiet
from abft.data.tables import READERS, TableFile, batches, decoded, open_table
from abft.errors import AbftError, RunInterrupted
from abft.method.settings import DATA
from abft.runs.config import OUTPUT
from abft.runs.predict_settings import ANSWERS, PredictSettings
from abft.runs.prediction_files import Parts, Prediction, prediction_rows

if TYPE_CHECKING:
    import pandas

CHUNK_ROWS = 1024  # what an interrupted command loses at most


@with_settings(PredictSettings)
def predict(
    settings: PredictSettings,
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
    as_json: Json = False,
) -> None:
    """Label new texts with a finished run, or a merged one.

    Reads lines from stdin without --text and --data.

    **Examples**

    `abft predict --run runs/sst2 --text "a film to remember"`

    `abft predict --data new.csv --output scored.csv` (with the newest run in runs/)

    `abft predict --run runs/mine --data big.parquet --text-column review --output labels.parquet`

    `abft predict --text "a film to remember" --explain --output why.html`

    `abft predict --data big.parquet --output labels.parquet --engine ray --ray-address auto`

    `abft predict runs/reader --demonstrations labelled.csv --data new.csv` (a reader: any task)
    """
    from abft.runs.run_folder import check_predictable, read_heads, read_task
    from abft.runs.task_data import load_shown, text_column

    # Everything that can be refused without a model comes first.
    if text and data:
        raise AbftError("give --text or --data, not both")
    if settings.engine == "ray" and (data is None or output is None or explain):
        raise AbftError("--engine ray goes with --data and --output, without --explain")
    if output is not None:
        check_output(output, (".jsonl", ".html") if explain else SUFFIXES)
    run = chosen_run(argument, run)
    check_predictable(run)

    shown = load_shown(settings, run)
    table = None
    if data is not None:
        table = open_table(data, tuple(READERS))
        column = "text" if table.kind == "lines" else text_column(settings, run)
        task = read_task(run)[0] if shown is None else shown[0]
        check_table(table, column, None if explain else output, task.labels)
        if table.assumed:
            print(table.assumed, file=sys.stderr)
    else:
        texts = list(text) if text else _stdin_lines()
        column = "text"
        if not texts or not all(each.strip() for each in texts):
            raise AbftError(
                "no text, or an empty one, to classify; give --text, --data or stdin lines"
            )

    origin = str(data or "the texts")
    parts = None
    if output is not None and not explain:
        job = {
            "run": str(run.resolve()),
            "column": column,
            **_identity(table),
            **_answers(settings),
        }
        parts = Parts(output, job, CHUNK_ROWS)
    if settings.engine == "ray":
        assert table is not None
        assert parts is not None
        quiet()
        from abft.runs.predict_on_ray import predict_on_ray
        from abft.runs.session import progress_bar

        with progress_bar("predict", table.rows, "text") as bar:
            counts = predict_on_ray(run, table, parts, column, settings, shown, bar.update)
        parts.join()
        _report(origin, *counts)
        print(f"wrote {output}", file=sys.stderr)
        return

    # Parts follow each other: those that are there are the first.
    first = len(parts.done) if parts else 0
    rows = first * CHUNK_ROWS
    if rows:
        print(f"{output}: going on after {rows:,} rows", file=sys.stderr)
    quiet()
    from abft.runs.predict_frames import FramePredictor, open_predictor
    from abft.runs.session import heads_read, progress_bar

    if settings.readout == "attention":
        print(heads_read(read_heads(run)), file=sys.stderr)
    predictor = open_predictor(run, settings, shown)
    frames = table.chunks(CHUNK_ROWS, rows) if table else _frames(texts, rows)
    predicting = FramePredictor(predictor, column, origin, settings)
    explanations = []
    if parts:
        parts.start()
    total = table.rows if table else len(texts)
    title = "explain" if explain else "predict"
    quietly = not explain and parts is None  # predictions themselves are shown as they come
    with progress_bar(title, total, "text", rows, disable=quietly) as bar:
        try:
            for number, frame in enumerate(frames, start=first):
                if explain:
                    explanations += predicting.explain(frame, rows)
                else:
                    predictions = predicting.predict(frame, rows)
                    if parts:
                        labels = predictor.task.labels
                        parts.write(number, prediction_rows(frame, column, predictions, labels))
                    else:
                        _print(frame[column], predictions, as_json)
                rows += len(frame)
                bar.update(len(frame))
        except KeyboardInterrupt:
            done = f"{rows:,} rows are kept; the same command goes on" if parts else "stopped"
            raise RunInterrupted(done) from None

    if explain and output is not None:
        write_explanations(output, explanations)
    elif explain:
        for explanation in explanations:
            if as_json:
                print(json_line(explanation), end="")
            else:
                print_explanation(explanation)
    elif parts:
        parts.join()
    _report(origin, rows, predicting.empty, predicting.cut)
    if output is not None:
        print(f"wrote {output}", file=sys.stderr)


def _print(cells: Iterable, predictions: "Sequence[Prediction | None]", as_json: bool) -> None:
    for cell, prediction in zip(cells, predictions, strict=True):
        if prediction is not None:
            print(prediction_line(str(cell), prediction, as_json), flush=True)


def _report(origin: str, rows: int, empty: Sequence[int], cut: int) -> None:
    """Say on stderr what was left out and what was cut."""
    from abft.data.datasets import check_empty

    check_empty(empty, rows, origin, "text", strict=False)
    if cut:
        print(
            f"{origin}: {cut} texts are longer than fits into the model's context; only their "
            "beginning was read",
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
    return {"data": str(table.path.resolve()), **_stamp(table.path)}


def _answers(settings: PredictSettings) -> dict[str, object]:
    """Return what tells predictions of the same run and texts from others."""
    answers: dict[str, object] = {name: getattr(settings, name) for name in ANSWERS}
    if settings.demonstrations is not None:
        answers["shown"] = _stamp(Path(settings.demonstrations))
    return answers


def _stamp(path: Path) -> dict[str, object]:
    status = path.stat()
    return {"bytes": status.st_size, "time": status.st_mtime_ns}
