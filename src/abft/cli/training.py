"""`abft train` and `abft merge`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from abft.cli.options import Recipe, Request, Run, chosen_run, with_run_settings
from abft.cli.quiet import quiet
from abft.errors import AbftError, RunInterrupted
from abft.runs.config import OUTPUT, RUNS, RunConfig, check_effect, resolve
from abft.runs.run_folder import check_free, check_new_folder, read_config
from abft.runs.task_data import load_run_data


@with_run_settings
def train(
    request: Request,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The run folder.",
            show_default="runs/ and the name of task or data",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    recipe: Recipe = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the run in the folder, once the new one is finished.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in the folder.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Fine-tune W_Q and W_K of a model and measure it before and after.

    **Examples**

    `abft train` (SST2; the run folder is runs/SST2)

    `abft train --model openai-community/gpt2-large --task TREC --output runs/trec`

    `abft train --data reviews.csv --text-column review --label-column stars --output runs/mine`

    `abft train --config runs/sst2/config.yaml --seed 1 --output runs/sst2-seed1`

    `abft train --recipe paper --model openai-community/gpt2-xl --output runs/paper` (the
    paper's settings)

    `abft train --objective e2e --output runs/sst2-e2e` (end to end, to compare with)
    """
    if overwrite and resume:
        raise AbftError("give --overwrite or --resume, not both")
    config = request.config(output) if resume and output is not None else request.config()
    if output is None:
        output = RUNS / _run_name(config)
        config = request.config(output) if resume else config

    # What needs no model is checked now, before importing torch, which takes seconds.
    data = None
    if not resume:
        check_effect(config)
        check_free(output, overwrite)
        data = load_run_data(config, resolve(config).task_queries)
    quiet()
    from abft.cli.tables import print_result
    from abft.runs.train import train_run

    try:
        metrics = train_run(config, output, overwrite=overwrite, resume=resume, data=data).metrics
    except KeyboardInterrupt:
        if not (output / "config.yaml").is_file():
            raise RunInterrupted("stopped before anything was written") from None
        if (output / "metrics.json").is_file():
            raise RunInterrupted(f"stopped; {output} holds a finished run") from None
        raise RunInterrupted(
            f"stopped. Go on with: abft train --resume --output {output}"
        ) from None

    if request.as_json:
        print(json.dumps(metrics))
    elif metrics:
        print_result(metrics, output)


def _run_name(config: RunConfig) -> str:
    return config.task_name or Path(str(config.data)).stem


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN] OUTPUT",
            help="The finished run, by default the newest, and the folder of the plain checkpoint.",
            show_default=False,
        ),
    ],
    run: Run = None,
    factor: Annotated[float, typer.Option(help="Write theta0 + factor * (theta - theta0).")] = 1.0,
    model: Annotated[str | None, typer.Option(help="Base model, if not the run's own.")] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run Python code of the model's repository."),
    ] = False,
) -> None:
    """Merge a run into a plain checkpoint that AutoModelForCausalLM loads without abft.

    **Examples**

    `abft merge runs/sst2 merged`

    `abft merge runs/sst2 bolder --factor 1.5`

    `abft merge --run runs/sst2 merged`
    """
    if len(folders) > 2:
        raise AbftError(f"got {len(folders)} folders; expected a run and an output folder")
    *argument, output = folders
    run = chosen_run(argument[0] if argument else None, run)
    if model is None:
        read_config(run)
    check_new_folder(output)
    quiet()
    from abft.runs.merge import merge as merge_run

    folder = merge_run(run, output, factor=factor, model=model, trust_remote_code=trust_remote_code)
    print(f"wrote {folder}")
