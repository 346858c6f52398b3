"""`abft predict`: texts come in chunks, so that a file may be larger than the memory."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abft.cli.options import Device, Json, Run, RunArgument, chosen_run
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
from abft.runs.config import MODEL, OUTPUT
from abft.runs.prediction_files import Parts, Prediction, prediction_rows

if TYPE_CHECKING:
    import pandas

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
    engine: Annotated[
        str,
        typer.Option(
            help="serial: this process; ray: Ray Data, a worker for each GPU or for so many cores.",
            rich_help_panel=OUTPUT,
        ),
    ] = "serial",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster, e.g. host:6379 or auto; its nodes share the folder of "
            "--output.",
            show_default="one on this machine",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int, typer.Option(min=1, help="Cores of a Ray worker.", rich_help_panel=OUTPUT)
    ] = 1,
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
    """
    from abft.runs.run_folder import check_predictable, read_task, text_column_of

    # Everything that can be refused without a model comes first.
    if text and data:
        raise AbftError("give --text or --data, not both")
    if engine not in ("serial", "ray"):
        raise AbftError(f"engine {engine!r}: expected serial or ray")
    if ray_address is not None and engine != "ray":
        raise AbftError("--ray-address goes with --engine ray")
    if engine == "ray" and (data is None or output is None or explain):
        raise AbftError("--engine ray goes with --data and --output, without --explain")
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

    origin = str(data or "the texts")
    parts = None
    if output is not None and not explain:
        job = {"run": str(run.resolve()), "column": column, **_identity(table)}
        parts = Parts(output, job, CHUNK_ROWS)
    if engine == "ray":
        assert table is not None
        assert parts is not None
        quiet()
        from abft.runs.predict_on_ray import predict_on_ray
        from abft.runs.session import progress_bar

        with progress_bar("predict", table.rows, "text") as bar:
            counts = predict_on_ray(
                run,
                table,
                parts,
                column,
                origin=origin,
                strict=strict,
                batch_size=batch_size,
                address=ray_address,
                cpus_per_worker=cpus_per_worker,
                trust_remote_code=trust_remote_code,
                progress=bar.update,
            )
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
    from abft.runs.predict_frames import FramePredictor
    from abft.runs.predictor import Predictor
    from abft.runs.session import progress_bar

    predictor = Predictor.from_run(run, device=device, trust_remote_code=trust_remote_code)
    frames = table.chunks(CHUNK_ROWS, rows) if table else _frames(texts, rows)
    predicting = FramePredictor(predictor, column, origin, strict, batch_size)
    explanations = []
    if parts:
        parts.start()
    total = table.rows if table else len(texts)
    with progress_bar("explain" if explain else "predict", total, "text", rows) as bar:
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
    status = table.path.stat()
    return {"data": str(table.path.resolve()), "bytes": status.st_size, "time": status.st_mtime_ns}
