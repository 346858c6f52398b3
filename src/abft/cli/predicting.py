"""`abft predict`: the command, and where its texts come from."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from abft.cli.labelling import Labelling, Source
from abft.cli.options import Json, Run, RunArgument, chosen_run, with_settings
from abft.cli.predictions import SUFFIXES, check_output, check_table
from abft.cli.quiet import quiet
from abft.data.tables import READERS, decoded, open_table, writable
from abft.errors import AbftError
from abft.method.settings import DATA
from abft.runs.config import OUTPUT
from abft.runs.predict_settings import PredictSettings
from abft.runs.prediction_files import alone


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
    from abft.runs.run_folder import check_predictable, read_heads, read_task
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
    task = read_task(run)[0] if shown is None else shown[0]
    if data is None:
        source = _written_texts(text)
    else:
        table = open_table(data, tuple(READERS))
        source = Source("text" if table.kind == "lines" else text_column(settings, run), table)
        check_table(table, source.column, None if explain else output, task.labels)
        if table.assumed:
            print(table.assumed, file=sys.stderr)

    if output is not None:
        ctx.with_resource(alone(output))  # until the command ends
    quiet()
    if settings.readout == "attention":
        from abft.runs.session import heads_read

        print(heads_read(read_heads(run)), file=sys.stderr)

    labelling = Labelling(run, source, settings, shown, task.labels)
    if explain:
        labelling.explain(output, as_json)
    elif output is not None:
        labelling.write(output)
    else:
        labelling.show(as_json)
    if output is not None:
        print(f"wrote {output}", file=sys.stderr)


def _written_texts(given: Sequence[str] | None) -> Source:
    """Return the texts of the command line, or of stdin. Raises AbftError if one is missing."""
    # Arguments may hold bytes that are not UTF-8.
    texts = [writable(each) for each in given] if given else _stdin_lines()
    if not any(each.strip() for each in texts) or (given and not all(map(str.strip, texts))):
        raise AbftError("no text, or an empty one, to classify; give --text, --data or stdin lines")
    return Source("text", texts=texts)


def _stdin_lines() -> list[str]:
    """Return the lines of stdin, of any encoding; blank ones keep their place."""
    if sys.stdin.isatty():
        print("reading texts, one a line, until Ctrl-D (or give --text or --data)", file=sys.stderr)
    return [line.rstrip("\n") for line in io.StringIO(decoded(sys.stdin.buffer.read()), None)]
