"""`abft predict`: texts come in chunks, so that a file may be larger than the memory."""

import hashlib
import io
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
from abft.files import stamp_of_file
from abft.method.settings import DATA
from abft.runs.config import OUTPUT
from abft.runs.predict_settings import ANSWERS, PredictSettings
from abft.runs.prediction_files import Parts, Prediction, alone, prediction_rows

if TYPE_CHECKING:
    import pandas

CHUNK_ROWS = 1024  # what an interrupted command loses at most


@with_settings(PredictSettings)
def predict(
    settings: PredictSettings,
    ctx: typer.Context,
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
    from abft.runs.run_folder import check_predictable, read_heads, read_task, stamp
    from abft.runs.task_data import load_shown, text_column

    # Everything that can be refused without a model comes first.
    if text and data:
        raise AbftError("give --text or --data, not both")
    if settings.engine == "ray" and (data is None or output is None or explain):
        raise AbftError("--engine ray goes with --data and --output, without --explain")
    if as_json and output is not None:
        raise AbftError("--json is for the terminal; for a file, end --output in .jsonl")
    if output is not None:
        check_output(output, (".jsonl", ".html") if explain else SUFFIXES)
    run = chosen_run(argument, run)
    check_predictable(run)

    shown = load_shown(settings, run)
    table, texts = None, []
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
        if not any(each.strip() for each in texts) or (text and not all(map(str.strip, texts))):
            raise AbftError(
                "no text, or an empty one, to classify; give --text, --data or stdin lines"
            )

    origin = str(data or "the texts")
    parts = None
    if output is not None:
        ctx.with_resource(alone(output))  # until the command ends
    if output is not None and not explain:
        job = {
            "run": str(run.resolve()),
            "files": stamp(run),
            "column": column,
            **_identity(table, texts),
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
        _finish(parts, origin, *counts)
        print(f"wrote {output}", file=sys.stderr)
        return

    # Workers of --engine ray can leave gaps between finished parts.
    done = set(parts.done) if parts else set()
    if done:
        kept = len(done) * CHUNK_ROWS
        print(f"{output}: going on, {kept:,} rows were labelled before", file=sys.stderr)
    quiet()
    from abft.runs.predict_frames import FramePredictor, open_predictor
    from abft.runs.session import heads_read, progress_bar

    if settings.readout == "attention":
        print(heads_read(read_heads(run)), file=sys.stderr)
    predictor = open_predictor(run, settings, shown)
    frames = table.chunks(CHUNK_ROWS) if table else _frames(texts)
    predicting = FramePredictor(predictor, column, origin, settings)
    explanations = []
    if parts:
        parts.start()
    total = table.rows if table else len(texts)
    title = "explain" if explain else "predict"
    quietly = not explain and parts is None  # predictions themselves are shown as they come
    rows = 0
    with progress_bar(title, total, "text", disable=quietly) as bar:
        try:
            for number, frame in enumerate(frames):
                if number in done:
                    predicting.texts(frame, rows)  # counts those without a text, or refuses them
                elif explain:
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
            said = f"{rows:,} rows are kept; the same command goes on" if parts else "stopped"
            raise RunInterrupted(said) from None

    _finish(parts, origin, rows, predicting.empty, predicting.cut)
    if explain and output is not None:
        write_explanations(output, explanations)
    elif explain:
        for explanation in explanations:
            if as_json:
                print(json_line(explanation), end="")
            else:
                print_explanation(explanation)
    if output is not None:
        print(f"wrote {output}", file=sys.stderr)


def _print(cells: Iterable, predictions: "Sequence[Prediction | None]", as_json: bool) -> None:
    for cell, prediction in zip(cells, predictions, strict=True):
        if prediction is not None:
            print(prediction_line(str(cell), prediction, as_json), flush=True)


def _finish(parts: Parts | None, origin: str, rows: int, empty: Sequence[int], cut: int) -> None:
    """Join the parts, and say on stderr which rows were left out and how many texts were cut.

    Raises AbftError, and deletes the parts, if there is no text.
    """
    from abft.data.datasets import check_empty

    try:
        if not rows:
            raise AbftError(f"{origin}: no rows")
        check_empty(empty, rows, origin, "text", strict=False)
    except AbftError:
        if parts:
            parts.drop()
        raise
    if parts:
        parts.join()
    if cut:
        print(
            f"{origin}: {cut} texts are longer than fits into the model's context; only their "
            "beginning was read",
            file=sys.stderr,
        )


def _stdin_lines() -> list[str]:
    """Return the lines of stdin, of any encoding; blank ones keep their place."""
    if sys.stdin.isatty():
        print("reading texts, one a line, until Ctrl-D (or give --text or --data)", file=sys.stderr)
    return [line.rstrip("\n") for line in io.StringIO(decoded(sys.stdin.buffer.read()), None)]


def _frames(texts: Sequence[str]) -> "Iterator[pandas.DataFrame]":
    import pandas

    for chunk in batches(iter(texts), CHUNK_ROWS):
        yield pandas.DataFrame({"text": chunk}, dtype=object)


def _identity(table: TableFile | None, texts: Sequence[str]) -> dict[str, object]:
    """Return values that distinguish one source of rows from another."""
    if table is None:
        content = "\n".join(texts).encode("utf-8", errors="replace")
        return {"texts": hashlib.sha256(content).hexdigest()}
    return {"data": str(table.path.resolve()), **stamp_of_file(table.path)}


def _answers(settings: PredictSettings) -> dict[str, object]:
    """Return the settings that distinguish predictions for the same run and texts."""
    answers: dict[str, object] = {name: getattr(settings, name) for name in ANSWERS}
    if settings.demonstrations is not None:
        answers["shown"] = stamp_of_file(Path(settings.demonstrations))
    return answers
