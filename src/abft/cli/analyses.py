"""`abft analyze` and `abft report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from abft.analysis.choices import Choices
from abft.cli.options import Json, Run, RunArgument, chosen_run, with_settings
from abft.cli.quiet import quiet
from abft.errors import AbftError
from abft.runs.run_folder import ANALYSIS, check_finished, read_config


@with_settings(Choices)
def analyze(
    choices: Choices,
    argument: RunArgument = None,
    run: Run = None,
    as_json: Json = False,
) -> None:
    """Compute what changed inside the model, as plain arrays in RUN/analysis.

    The arrays hold predictions, head maps, attention rows of single prompts, changes of weights,
    accuracy between and beyond the weights, accuracy with heads switched off, and predictions
    without demonstrations. This takes minutes on the default model. Existing results are reused.

    **Examples**

    `abft analyze runs/sst2`

    `abft analyze runs/sst2 --e2e runs/sst2-e2e --resolution 9`
    """
    run = chosen_run(argument, run)
    check_finished(run)
    quiet()
    from abft.analysis.analyze import DOCUMENTED
    from abft.analysis.analyze import analyze as analyze_run
    from abft.cli.tables import print_table

    analyses = analyze_run(run, choices)
    folder = run / ANALYSIS
    if as_json:
        computed = list(analyses.arrays)
        print(json.dumps({"folder": str(folder), "found": computed, "missing": analyses.missing}))
        return
    files = {name: f"{name}.npz" for name in analyses.arrays}
    files |= {name: f"missing: {reason}" for name, reason in analyses.missing.items()}
    rows = [(title, files[name]) for name, (title, _) in DOCUMENTED.items()]
    print_table([("analysis", "left"), ("file", "left")], rows)
    print(f"{folder}: numpy.load reads the files, README.md explains every array")


@with_settings(Choices)
def report(
    choices: Choices,
    argument: RunArgument = None,
    run: Run = None,
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; default RUN/report.html.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Another run to draw in the charts of training; repeat."),
    ] = None,
) -> None:
    """Write one HTML file that shows what changed inside the model.

    Missing results of `abft analyze` are computed first.

    **Examples**

    `abft report runs/sst2`

    `abft report runs/sst2 --e2e runs/sst2-e2e --compare runs/sst2-seed1 --output sst2.html`
    """
    run = chosen_run(argument, run)
    for each in (run, *(compare or [])):
        read_config(each)
    quiet()
    try:
        from abft.report.page import report as write_report
    except ModuleNotFoundError as error:
        raise AbftError(f"a report needs {error.name}: pip install 'abft[report]'") from None
    print(f"wrote {write_report(run, output, choices, compare or [])}")
