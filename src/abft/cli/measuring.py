"""`abft eval`, `abft heads` and `abft predict`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abft.cli.options import Json, Request, Run, with_run_settings
from abft.cli.quiet import quiet
from abft.errors import AbftError
from abft.method.settings import DATA
from abft.runs.config import MODEL, OUTPUT, RUNS, RunConfig

if TYPE_CHECKING:
    from abft.runs.session import Session

HEADS_PROMPTS = 64  # enough to see which heads pass the filter


@with_run_settings(measuring=True)
def evaluate(request: Request, run: Run = None) -> None:
    """Measure a model, or a finished run, on a task: accuracy, macro-F1, ECE, heads.

    **Examples**

    `abft eval --task TREC` (the untouched default model)

    `abft eval --run runs/sst2 --task MR` (out of domain)
    """
    session = _open(request.config(run), run)
    summary, _ = session.measure("model")
    from abft.cli.tables import number, print_table

    values = {
        "model": session.config.model,
        "run": str(run) if run else None,
        "task": session.data.task.name,
        **summary,
    }
    if request.as_json:
        print(json.dumps({**values, "test_prompts": len(session.prompts)}))
    else:
        rows = [(name, number(value)) for name, value in values.items()]
        print_table([("metric", "left"), ("value", "right")], rows)


@with_run_settings(measuring=True)
def heads(
    request: Request,
    run: Run = None,
    top: Annotated[int, typer.Option(help="Rows of the table.", rich_help_panel=OUTPUT)] = 20,
) -> None:
    """List a model's induction heads on a task: how often each passes the filter, where it looks.

    **Examples**

    `abft heads --task SST2` (on 64 test prompts)

    `abft heads --run runs/sst2 --top 10 --json`
    """
    session = _open(request.config(run, {"test_prompts": HEADS_PROMPTS}), run)
    summary, report = session.measure("heads")
    from abft.cli.tables import print_table

    layers, count = report.induction_rate_LH.shape
    cells = [(layer, head) for layer in range(layers) for head in range(count)]
    cells.sort(key=lambda cell: (-report.induction_rate_LH[cell], -report.correct_mass_LH[cell]))
    rows = [
        {
            "layer": session.layers[layer],
            "head": head,
            "induction_rate": float(report.induction_rate_LH[layer, head]),
            "correct_mass": float(report.correct_mass_LH[layer, head]),
            "incorrect_mass": float(report.incorrect_mass_LH[layer, head]),
        }
        for layer, head in cells[:top]
    ]
    prompts = len(session.prompts)
    if request.as_json:
        result = {"heads_over_threshold": summary["heads"], "test_prompts": prompts, "heads": rows}
        print(json.dumps(result))
        return

    titles = ("layer", "head", "passes in", "on correct labels", "on incorrect")
    texts = [
        (
            str(row["layer"]),
            str(row["head"]),
            f"{row['induction_rate']:.0%}",
            f"{row['correct_mass']:.3f}",
            f"{row['incorrect_mass']:.3f}",
        )
        for row in rows
    ]
    print_table([(title, "right") for title in titles], texts)
    on_labels = summary["mean_correct_mass"] + summary["mean_incorrect_mass"]
    print(
        f"{summary['heads']:.1f} of {layers * count} heads pass the threshold in a prompt (mean "
        f"over {prompts} prompts); an average head puts {on_labels:.1%} of its attention on label "
        "tokens"
    )


def _open(config: RunConfig, run: Path | None) -> "Session":
    """Load model (with a run's weights), data and prompts."""
    if config.test_prompts < 1:
        raise AbftError("test_prompts = 0: nothing to measure")
    if run is not None:
        from abft.runs.run_folder import check_finished

        check_finished(run)
    quiet()
    from abft.runs.session import open_session

    return open_session(config, run)


def predict(
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished run.",
            show_default="the newest in runs/",
            rich_help_panel=MODEL,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text to classify; repeat.", rich_help_panel=DATA)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="File of texts (.csv, .tsv, .jsonl, .parquet).", rich_help_panel=DATA),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the texts.", show_default="as in training", rich_help_panel=DATA
        ),
    ] = None,
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
            ".jsonl.",
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
    """Label new texts with a finished run. Reads lines from stdin without --text and --data.

    **Examples**

    `abft predict --run runs/sst2 --text "a film to remember"`

    `abft predict --data new.csv --output scored.csv` (with the newest run in runs/)

    `abft predict --run runs/mine --data new.csv --text-column review --output labels.jsonl`

    `abft predict --text "a film to remember" --explain --output why.html`
    """
    from abft.cli.predictions import (
        SUFFIXES,
        check_columns,
        check_output,
        json_line,
        json_lines,
        print_explanation,
        write_explanations,
        write_predictions,
    )
    from abft.runs.run_folder import check_finished, newest_run, read_config, read_task

    # Everything that can be refused without a model comes first.
    if text and data:
        raise AbftError("give --text or --data, not both")
    if output is not None:
        check_output(output, (".jsonl", ".html") if explain else SUFFIXES)
    if run is None:
        run = newest_run(RUNS)
        print(f"run: {run}", file=sys.stderr)
    check_finished(run)

    table = None
    if data is not None:
        from abft.data.datasets import read_table, texts_of

        table = read_table(data)
        texts = texts_of(table, text_column or read_config(run).text_column, str(data))
        if output is not None and not explain:
            check_columns(output, table.column_names, read_task(run)[0].labels)
    elif text:
        texts = list(text)
    else:
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts or not all(each.strip() for each in texts):
        raise AbftError("no text, or an empty one, to classify; give --text, --data or stdin lines")

    quiet()
    from abft.runs.predictor import Predictor

    predictor = Predictor.from_run(run, trust_remote_code=trust_remote_code)
    if explain:
        explanations = predictor.explain(texts, batch_size)
        if output is not None:
            write_explanations(output, explanations)
            print(f"wrote {output}", file=sys.stderr)
        elif as_json:
            print("".join(map(json_line, explanations)), end="")
        else:
            for explanation in explanations:
                print_explanation(explanation)
        return

    predictions = predictor.predict(texts, batch_size=batch_size)
    if output is not None:
        write_predictions(output, texts, predictions, table)
        print(f"wrote {output}", file=sys.stderr)
    elif as_json:
        print(json_lines(texts, predictions), end="")
    else:
        for each, (label, probabilities) in zip(texts, predictions, strict=True):
            print(f"{label}\t{max(probabilities.values()):.3f}\t{' '.join(each.split())}")
