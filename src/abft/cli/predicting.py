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
from abft.data.tables import READERS, TableFile, batches, decoded, open_table, writable
from abft.errors import AbftError, RunInterrupted
from abft.files import stamp_of_file
from abft.method.settings import DATA
from abft.runs.config import OUTPUT
from abft.runs.predict_settings import ANSWERS, PredictSettings
from abft.runs.prediction_files import Parts, Prediction, alone

if TYPE_CHECKING:
    import pandas

    from abft.runs.explain import Explanation

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
    table: TableFile | None = None
    texts: list[str] = []
    if data is not None:
        table = open_table(data, tuple(READERS))
        column = "text" if table.kind == "lines" else text_column(settings, run)
        task = read_task(run)[0] if shown is None else shown[0]
        check_table(table, column, None if explain else output, task.labels)
        if table.assumed:
            print(table.assumed, file=sys.stderr)
    else:
        # Arguments may hold bytes that are not UTF-8.
        texts = [writable(each) for each in text] if text else _stdin_lines()
        column = "text"
        if not any(each.strip() for each in texts) or (text and not all(map(str.strip, texts))):
            raise AbftError(
                "no text, or an empty one, to classify; give --text, --data or stdin lines"
            )

    origin = str(data or "the texts")
    in_batch = settings.calibrate == "batch"
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
            rows, empty, cut = predict_on_ray(
                run, table, parts, column, settings, shown, bar.update
            )
        _check_rows(parts, origin, rows, empty)
        if in_batch:
            from abft.runs.batch_calibration import calibrate_parts

            calibrate_parts(parts, table.chunks(CHUNK_ROWS), column, task.labels)
        _finish(parts, origin, cut)
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
    labels = predictor.task.labels

    def frames() -> "Iterator[pandas.DataFrame]":
        return table.chunks(CHUNK_ROWS) if table else _frames(texts)

    predicting = FramePredictor(predictor, column, origin, settings)
    explanations: list[Explanation | None] = []
    shown_later: list[tuple[Iterable, Sequence[Prediction | None]]] = []
    if parts:
        parts.start()
    total = table.rows if table else len(texts)
    title = "explain" if explain else "predict"
    # Predictions are shown as they come, unless calibration needs all of them first.
    quietly = not explain and parts is None and not in_batch
    rows = 0
    with progress_bar(title, total, "text", disable=quietly) as bar:
        try:
            for number, frame in enumerate(frames()):
                if number in done:
                    predicting.texts(frame, rows)  # counts those without a text, or refuses them
                elif explain:
                    explanations += predicting.explain(frame, rows)
                elif parts:
                    predicting.write(parts, number, frame, rows)
                elif in_batch:
                    shown_later.append((frame[column], predicting.predict(frame, rows)))
                else:
                    _print(frame[column], predicting.predict(frame, rows), as_json)
                rows += len(frame)
                bar.update(len(frame))
        except KeyboardInterrupt:
            said = f"{rows:,} rows are kept; the same command goes on" if parts else "stopped"
            raise RunInterrupted(said) from None

    _check_rows(parts, origin, rows, predicting.empty)
    if in_batch:
        from abft.runs import batch_calibration

        if parts:
            batch_calibration.calibrate_parts(parts, frames(), column, labels)
        elif explain:
            explanations = batch_calibration.calibrate_explanations(
                explanations, predicting.content_free, labels
            )
        else:
            chunks = batch_calibration.calibrate_predictions(
                [predictions for _, predictions in shown_later], predicting.content_free, labels
            )
            for (cells, _), predictions in zip(shown_later, chunks, strict=True):
                _print(cells, predictions, as_json)
    _finish(parts, origin, predicting.cut)
    if explain and output is not None:
        write_explanations(output, explanations)
    elif explain:
        for explanation in explanations:
            if explanation is None:
                continue
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


def _check_rows(parts: Parts | None, origin: str, rows: int, empty: Sequence[int]) -> None:
    """Say on stderr which rows were left out.

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


def _finish(parts: Parts | None, origin: str, cut: int) -> None:
    """Join the parts, and say on stderr how many texts were cut."""
    if parts:
        parts.join()
    if cut:
        print(
            f"{origin}: {cut} texts are longer than the run's limit (--max-text-tokens), or than "
            "fits into the model's context; only their beginning was read",
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
    if settings.calibrate == "batch":
        answers["prior"] = "of all rows"  # earlier versions had one for each part
    if settings.demonstrations is not None:
        answers["shown"] = stamp_of_file(Path(settings.demonstrations))
    return answers
