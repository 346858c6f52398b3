"""`abft eval` and `abft heads`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abft.cli.options import Request, Run, RunArgument, chosen_run, with_run_settings
from abft.cli.quiet import quiet
from abft.errors import AbftError
from abft.runs.config import OUTPUT, RUNS, RunConfig
from abft.runs.predict_settings import PredictSettings
from abft.runs.run_folder import finished_runs
from abft.runs.task_data import load_run_data
from abft.settings import choices_of, default_of, from_mapping, settings_of

if TYPE_CHECKING:
    from abft.runs.session import Session

HEADS_PROMPTS = 64  # enough to see which heads pass the filter


def _predicted_as(name: str) -> Any:
    """Return the option of `abft predict` with this name."""
    return typer.Option(
        help=settings_of(PredictSettings)[name].help,
        metavar="|".join(choices_of(PredictSettings, name)),
        rich_help_panel=OUTPUT,
    )


@with_run_settings(measuring=True)
def evaluate(
    request: Request,
    argument: RunArgument = None,
    run: Run = None,
    readout: Annotated[str, _predicted_as("readout")] = default_of(PredictSettings, "readout"),
    calibrate: Annotated[str, _predicted_as("calibrate")] = default_of(
        PredictSettings, "calibrate"
    ),
) -> None:
    """Measure a finished run, or the untouched --model, on a task: accuracy, macro-F1, ECE, heads.

    **Examples**

    `abft eval runs/sst2 --task MR` (out of domain)

    `abft eval --model SmolLM2-135M-Instruct --task TREC` (the untouched model)

    `abft eval` (the newest run, on its own task)

    `abft eval runs/reader --data tickets.csv --k 16 --readout attention` (read from chosen heads)

    `abft eval runs/reader --data tickets.csv --k 16 --calibrate batch`
    """
    given = {"readout": readout, "calibrate": calibrate}
    chosen = from_mapping(PredictSettings, given, "the command line")
    run = _run(request, argument, run)
    session = _open(request.config(run), run)
    summary, _ = session.measure("model", chosen.readout, chosen.calibrate)
    from abft.cli.tables import number, print_table

    values = {
        "model": session.config.model,
        "run": str(run) if run else None,
        "task": session.data.task.name,
        "readout": chosen.readout,
        "calibrate": chosen.calibrate,
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
    argument: RunArgument = None,
    run: Run = None,
    top: Annotated[
        int, typer.Option(help="Rows of the table.", min=1, rich_help_panel=OUTPUT)
    ] = 20,
) -> None:
    """List a model's induction heads on a task: how often each passes the filter, where it looks.

    **Examples**

    `abft heads --model SmolLM2-135M-Instruct --task SST2` (the untouched model, on 64 test prompts)

    `abft heads runs/sst2 --top 10 --json`
    """
    run = _run(request, argument, run)
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


def _run(request: Request, argument: Path | None, run: Path | None) -> Path | None:
    """Return the run to measure; None = the untouched model, if the user names it or has no run."""
    named = "model" in {**request.file, **request.given}
    if argument is None and run is None and (named or not finished_runs(RUNS)):
        if not named:
            print(f"no run in {RUNS}: the untouched {RunConfig.model} is measured", file=sys.stderr)
        return None
    return chosen_run(argument, run)


def _open(config: RunConfig, run: Path | None) -> "Session":
    """Load model (with a run's weights), data and prompts."""
    if config.test_prompts < 1:
        raise AbftError("test_prompts = 0: nothing to measure")
    if run is not None:
        from abft.runs.run_folder import check_finished

        check_finished(run)
    data = load_run_data(config)
    quiet()
    from abft.runs.session import open_session

    return open_session(config, run, data=data)
