"""The command line. Heavy modules are imported inside the commands, so that `abft --help` is
instant.
"""

import dataclasses
import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from abft.cli.options import (
    DATA,
    DEFAULTS,
    METHOD,
    MODEL,
    OUTPUT,
    TRAINING,
    AnalysisPrompts,
    BaseModel,
    E2ERun,
    Json,
    OtherDevice,
    Points,
    Recipe,
    Resolution,
    Run,
    TestPrompts,
    Trust,
    config_of,
    was_given,
    with_shared_options,
)
from abft.errors import AbftError, RunInterrupted
from abft.runs.config import DEFAULT_TASK, RUNS, RunConfig

app = typer.Typer(
    name="abft",
    help="Attention Behavior Fine-Tuning: teach a language model's attention heads where to "
    "look in few-shot prompts.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"abft {version('abft')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@with_shared_options
def train(
    chosen: dict[str, Any],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The run folder.",
            show_default="runs/ and the name of task or data",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    recipe: Recipe = None,
    nd: Annotated[
        int, typer.Option("--nd", help="Training prompts.", rich_help_panel=TRAINING)
    ] = DEFAULTS.nd,
    queries: Annotated[
        int | None,
        typer.Option(
            help="Training queries behind one set of demonstrations, read once.",
            show_default="4, or 1 where it does not divide nd, nb and batch size",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    nb: Annotated[
        int,
        typer.Option(
            "--nb", help="Prompts in a pseudo-batch (one step).", rich_help_panel=TRAINING
        ),
    ] = DEFAULTS.nb,
    batch_size: Annotated[
        int, typer.Option(help="Prompts in a forward pass.", rich_help_panel=TRAINING)
    ] = DEFAULTS.batch_size,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimizer steps.",
            show_default="vote 16, abft 32, e2e 24",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate.", show_default="by model size", rich_help_panel=TRAINING),
    ] = None,
    lora_r: Annotated[
        int | None,
        typer.Option(help="LoRA rank.", show_default="full rank", rich_help_panel=TRAINING),
    ] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(help="LoRA scale; default its rank.", rich_help_panel=TRAINING)
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help='Layers to train, e.g. "10-19,25".', rich_help_panel=TRAINING)
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Compute in bfloat16.", rich_help_panel=TRAINING)
    ] = False,
    activation_checkpointing: Annotated[
        int,
        typer.Option(
            help="Recompute every n-th layer: less memory, more time; 0: off.",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.activation_checkpointing,
    lora_targets: Annotated[
        str,
        typer.Option(
            help="What LoRA adapts: qk; all-linear with --objective e2e.", rich_help_panel=TRAINING
        ),
    ] = DEFAULTS.lora_targets,
    objective: Annotated[
        str,
        typer.Option(
            help="vote (of all heads for the right labels), abft (the paper's) or e2e "
            "(cross-entropy of the label word).",
            rich_help_panel=METHOD,
        ),
    ] = DEFAULTS.objective,
    cross_entropy: Annotated[
        float | None,
        typer.Option(
            help="Weight of the label word's cross-entropy beside abft or vote; 0: none.",
            show_default="vote 1, abft 0",
            rich_help_panel=METHOD,
        ),
    ] = None,
    train_on: Annotated[
        str,
        typer.Option(
            help="task; others: prompts of all other built-in tasks (MetaICL).",
            rich_help_panel=TRAINING,
        ),
    ] = DEFAULTS.train_on,
    A0: Annotated[
        float,
        typer.Option(
            "--A0", help="Punishment of wrong labels at the start.", rich_help_panel=METHOD
        ),
    ] = DEFAULTS.A0,
    B0: Annotated[
        float, typer.Option("--B0", help="Reward of right labels.", rich_help_panel=METHOD)
    ] = DEFAULTS.B0,
    Cp: Annotated[
        float, typer.Option("--Cp", help="PID: proportional gain.", rich_help_panel=METHOD)
    ] = DEFAULTS.Cp,
    Ci: Annotated[
        float, typer.Option("--Ci", help="PID: integral gain.", rich_help_panel=METHOD)
    ] = DEFAULTS.Ci,
    Cd: Annotated[
        float, typer.Option("--Cd", help="PID: differential gain.", rich_help_panel=METHOD)
    ] = DEFAULTS.Cd,
    pid: Annotated[
        bool, typer.Option("--pid/--no-pid", help="Control A by PID.", rich_help_panel=METHOD)
    ] = True,
    head_filter: Annotated[
        bool,
        typer.Option("--filter/--no-filter", help="Induction heads only.", rich_help_panel=METHOD),
    ] = True,
    seed: Annotated[
        int, typer.Option(help="Training prompts and order.", rich_help_panel=TRAINING)
    ] = DEFAULTS.seed,
    test_prompts: TestPrompts = DEFAULTS.test_prompts,
    save_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints.", rich_help_panel=TRAINING)
    ] = DEFAULTS.save_steps,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run there.", rich_help_panel=OUTPUT)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run there.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Fine-tune W_Q and W_K of a model and measure it before and after.

    **Examples**

    `abft train` (SST2; the run folder is runs/SST2)

    `abft train --model openai-community/gpt2-large --task TREC --output runs/trec`

    `abft train --data reviews.csv --text-column review --label-column stars --output runs/mine`

    `abft train --config runs/sst2/config.yaml --seed 1 --output runs/sst2-seed1`

    `abft train --recipe paper --model openai-community/gpt2-xl --output runs/paper` (nothing but
    the paper's settings)

    `abft train --objective e2e --output runs/sst2-e2e` (end to end, to compare with)
    """
    if overwrite and resume:
        raise AbftError("give --overwrite or --resume, not both")
    if output is None:
        output = RUNS / (
            Path(chosen["data"]).stem if chosen["data"] else chosen["task"] or DEFAULT_TASK
        )
    wanted = config_of(chosen["ctx"], chosen, output if resume else None)
    _quiet()
    from abft.cli.tables import print_result
    from abft.runs.train import train as run

    try:
        result = run(wanted, output, overwrite=overwrite, resume=resume)
    except KeyboardInterrupt:
        if not (output / "config.yaml").is_file():
            raise RunInterrupted("stopped before anything was written") from None
        raise RunInterrupted(
            f"stopped. Go on with: abft train --resume --output {output}"
        ) from None
    if chosen["as_json"]:
        print(json.dumps(result))
    elif result:
        print_result(result, output)


@app.command("eval")
@with_shared_options
def evaluate(
    chosen: dict[str, Any],
    run: Run = None,
    test_prompts: TestPrompts = DEFAULTS.test_prompts,
) -> None:
    """Measure a model, or a finished run, on a task: accuracy, macro-F1, ECE, heads over the
    threshold.

    **Examples**

    `abft eval --task TREC` (the untouched default model)

    `abft eval --run runs/sst2 --task MR` (out of domain)
    """
    loaded = _load(config_of(chosen["ctx"], chosen, run), run)
    from abft.cli.tables import number, print_table
    from abft.runs.train import scored

    summary, _ = scored(
        loaded.model, loaded.prompts, loaded.words, loaded.implementation, loaded.config, "model"
    )
    shown: dict[str, Any] = {
        "model": loaded.config.model,
        "run": str(run) if run else None,
        "task": loaded.data.task.name,
        **summary,
    }
    if chosen["as_json"]:
        print(json.dumps({**shown, "test_prompts": len(loaded.prompts)}))
    else:
        print_table(
            [("metric", "left"), ("value", "right")],
            [(name, number(value)) for name, value in shown.items()],
        )


@app.command()
@with_shared_options
def heads(
    chosen: dict[str, Any],
    run: Run = None,
    test_prompts: TestPrompts = 64,
    top: Annotated[int, typer.Option(help="Rows of the table.", rich_help_panel=OUTPUT)] = 20,
) -> None:
    """List a model's induction heads on a task: how often each passes the filter and where it
    looks.

    **Examples**

    `abft heads --task SST2`

    `abft heads --run runs/sst2 --top 10 --json`
    """
    settings = config_of(chosen["ctx"], chosen, run)
    if run is not None and not was_given(chosen["ctx"], "test_prompts"):
        settings = dataclasses.replace(settings, test_prompts=test_prompts)
    loaded = _load(settings, run)
    from abft.cli.tables import print_table
    from abft.runs.train import scored

    summary, report = scored(
        loaded.model, loaded.prompts, loaded.words, loaded.implementation, loaded.config, "heads"
    )
    layers, count = report.induction_rate_LH.shape
    cells = [(layer, head) for layer in range(layers) for head in range(count)]
    cells.sort(key=lambda cell: (-report.induction_rate_LH[cell], -report.right_mass_LH[cell]))
    rows = [
        {
            "layer": loaded.layers[layer],
            "head": head,
            "induction_rate": float(report.induction_rate_LH[layer, head]),
            "right_mass": float(report.right_mass_LH[layer, head]),
            "wrong_mass": float(report.wrong_mass_LH[layer, head]),
        }
        for layer, head in cells[:top]
    ]
    if chosen["as_json"]:
        print(
            json.dumps(
                {
                    "heads_over_threshold": summary["heads"],
                    "test_prompts": len(loaded.prompts),
                    "heads": rows,
                }
            )
        )
        return
    columns = [
        ("layer", "right"),
        ("head", "right"),
        ("passes in", "right"),
        ("on right labels", "right"),
        ("on wrong", "right"),
    ]
    print_table(
        columns,
        [
            (
                str(r["layer"]),
                str(r["head"]),
                f"{r['induction_rate']:.0%}",
                f"{r['right_mass']:.3f}",
                f"{r['wrong_mass']:.3f}",
            )
            for r in rows
        ],
    )
    print(
        f"{summary['heads']:.1f} of {layers * count} heads pass the threshold in a prompt "
        f"(mean over {len(loaded.prompts)} prompts); "
        f"an average head puts {summary['mean_right_mass'] + summary['mean_wrong_mass']:.1%} of "
        f"its attention on label tokens"
    )


@app.command()
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
    trust_remote_code: Trust = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write a file: .csv, .tsv, .parquet (the rows of --data and more columns) or "
            ".jsonl.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts in a forward pass.", rich_help_panel=OUTPUT)
    ] = 16,
    as_json: Json = False,
) -> None:
    """Label new texts with a finished run. Reads lines from stdin if neither --text nor --data is
    given.

    **Examples**

    `abft predict --run runs/sst2 --text "a film to remember"`

    `abft predict --data new.csv --output scored.csv` (with the newest run in runs/)

    `abft predict --run runs/mine --data new.csv --text-column review --output labels.jsonl`
    """
    from abft.cli.predictions import (
        json_lines,
        refuse_bad_output,
        refuse_taken_columns,
        write_scored,
    )
    from abft.runs.run_folder import newest_run, read_config, refuse_unfinished

    if text and data:
        raise AbftError("give --text or --data, not both")
    if output is not None:
        refuse_bad_output(output)
    if run is None:
        run = newest_run(RUNS)
        print(f"run: {run}", file=sys.stderr)
    refuse_unfinished(run)
    table = None
    if data is not None:
        from abft.data.datasets import read_table, texts_of
        from abft.runs.run_folder import read_task

        table = read_table(data)
        texts = texts_of(table, text_column or read_config(run).text_column, str(data))
        if output is not None:
            refuse_taken_columns(output, table.column_names, read_task(run)[0].labels)
    else:
        texts = list(text) if text else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts or not all(t.strip() for t in texts):
        raise AbftError(
            "no text, or an empty one, to classify; give --text, --data or lines on stdin"
        )
    _quiet()
    from abft.runs.predictor import Predictor

    labelled = Predictor.from_run(run, trust_remote_code=trust_remote_code).predict(
        texts, batch_size=batch_size
    )
    if output is not None:
        write_scored(output, texts, labelled, table)
        print(f"wrote {output}", file=sys.stderr)
    elif as_json:
        print(json_lines(texts, labelled), end="")
    else:
        for each, (label, scores) in zip(texts, labelled, strict=True):
            print(f"{label}\t{max(scores.values()):.3f}\t{' '.join(each.split())}")


@app.command()
def analyze(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    e2e: E2ERun = None,
    test_prompts: AnalysisPrompts = None,
    points: Points = 64,
    resolution: Resolution = 5,
    model: BaseModel = None,
    device: OtherDevice = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Compute what changed inside the model, as plain arrays in RUN/analysis: minutes on the
    default model.

    Predictions, head maps, attention rows of single prompts, changes of weights, accuracy between
    and beyond the weights, accuracy with heads switched off. What is there already is not computed
    again.

    **Examples**

    `abft analyze runs/sst2`

    `abft analyze runs/sst2 --e2e runs/sst2-e2e --resolution 9`
    """
    _quiet()
    from abft.analysis.analyze import DOCUMENTED, Choices
    from abft.analysis.analyze import analyze as analyze_run

    analyses = analyze_run(
        run, Choices(e2e, test_prompts, points, resolution, model, device, trust_remote_code)
    )
    if as_json:
        print(
            json.dumps(
                {
                    "folder": str(run / "analysis"),
                    "found": list(analyses.found),
                    "missing": analyses.missing,
                }
            )
        )
        return
    from abft.cli.tables import print_table

    said = {name: f"{name}.npz" for name in analyses.found} | {
        name: f"missing: {why}" for name, why in analyses.missing.items()
    }
    print_table(
        [("analysis", "left"), ("file", "left")],
        [(DOCUMENTED[name][0], said[name]) for name in DOCUMENTED],
    )
    print(f"{run / 'analysis'}: numpy.load reads the files, README.md says what every array is")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; default RUN/report.html.")
    ] = None,
    e2e: E2ERun = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Another run whose training is drawn beside; repeat.")
    ] = None,
    test_prompts: AnalysisPrompts = None,
    points: Points = 64,
    resolution: Resolution = 5,
    model: BaseModel = None,
    device: OtherDevice = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write one HTML file that shows what changed inside the model; what `abft analyze` computes is
    computed if missing.

    **Examples**

    `abft report runs/sst2`

    `abft report runs/sst2 --e2e runs/sst2-e2e --compare runs/sst2-seed1 --output sst2.html`
    """
    _quiet()
    from abft.analysis.analyze import Choices

    try:
        from abft.report.page import report as write_report
    except ModuleNotFoundError as error:
        raise AbftError(f"a report needs {error.name}: pip install 'abft[report]'") from None
    choices = Choices(e2e, test_prompts, points, resolution, model, device, trust_remote_code)
    print(f"wrote {write_report(run, output, choices, compare or [])}")


@app.command()
def bench(
    config: Annotated[Path, typer.Option(help="The grid file (YAML).")],
    output: Annotated[Path, typer.Option(help="Folder of results and tables; run again to go on.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells with an estimate of their time.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="serial: one cell after another; ray: jobs on Ray workers.")
    ] = "serial",
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, e.g. host:6379 or auto.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run models x tasks x methods x scenarios x seeds and write the paper's tables to
    OUTPUT/tables/GRID.

    Finished cells are skipped, so a grid that was stopped goes on, and a longer grid reuses what is
    there.

    **Examples**

    `abft bench --config grid.yaml --output results --dry-run`

    `abft bench --config grid.yaml --output results`

    `abft bench --config grid.yaml --output results --engine ray --ray-address auto`
    """
    if engine not in ("serial", "ray"):
        raise AbftError(f"engine {engine!r}: expected serial or ray")
    if ray_address is not None and engine != "ray":
        raise AbftError("--ray-address goes with --engine ray")
    _quiet()
    from abft.bench.grid import read_grid
    from abft.bench.store import Store

    grid, store = read_grid(config), Store(output)
    if dry_run:
        _print_plan(grid, store, as_json)
        return
    from abft.bench.engine import failures, run_grid
    from abft.bench.report import write_tables
    from abft.bench.results import Results

    store.prepare(config)
    tables = store.tables(config)
    try:
        failed = run_grid(grid, store, engine, ray_address)
    except RunInterrupted:
        write_tables(Results(grid, store), tables)  # of what is finished
        raise
    made = write_tables(Results(grid, store), tables)
    if as_json:
        print((tables / "tables.json").read_text(encoding="utf-8"), end="")
    else:
        print("\n".join(table.markdown() for table in made))
        print(f"tables: {tables}")
    if failed:
        for name, error in failures(grid, store):
            print(f"failed: {name}: {error}", file=sys.stderr)
        raise AbftError(
            f"{failed} of {len(grid.cells())} cells failed; run the same command to try them again"
        )


def _print_plan(grid: Any, store: Any, as_json: bool) -> None:
    """The cells of a grid, with estimated minutes."""
    from abft.bench.plan import plan

    plans = plan(grid.cells(), store)
    total = sum(p.seconds for p in plans) / 60
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "cell": p.cell.name,
                        "seconds": p.seconds,
                        "done": p.done,
                        "problem": p.problem,
                    }
                    for p in plans
                ]
            )
        )
        return
    for p in plans:
        print(
            f"{'done' if p.done else f'{p.seconds / 60:.1f} min':>9}  {p.cell.name}"
            + (f"  would fail: {p.problem}" if p.problem else "")
        )
    done = sum(p.done for p in plans)
    print(
        f"{len(plans)} cells, {done} done, {len(plans) - done} left: about {total:.0f} minutes "
        f"on this machine"
    )


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Path, typer.Argument(help="Folder of the plain checkpoint.")],
    factor: Annotated[float, typer.Option(help="theta0 + factor * (theta - theta0).")] = 1.0,
    model: Annotated[str | None, typer.Option(help="Base model, if not the run's own.")] = None,
    trust_remote_code: Trust = False,
) -> None:
    """Merge a run into a plain checkpoint that AutoModelForCausalLM loads without abft.

    **Examples**

    `abft merge runs/sst2 merged`

    `abft merge runs/sst2 bolder --factor 1.5`
    """
    _quiet()
    from abft.runs.merge import merge as merge_run

    print(
        f"wrote "
        f"{merge_run(run, output, factor=factor, model=model, trust_remote_code=trust_remote_code)}"
    )


@dataclasses.dataclass
class _Loaded:
    """A model ready to be measured."""

    config: RunConfig
    data: Any
    model: Any
    implementation: Any
    layers: list[int]
    words: Any
    prompts: list[Any]


def _load(config: RunConfig, run: Path | None) -> _Loaded:
    """Model (with a run's weights), data and encoded prompts; everything is checked before the
    first forward pass.
    """
    if config.test_prompts < 1:
        raise AbftError("test_prompts = 0: nothing to measure")
    if run is not None:
        from abft.runs.run_folder import refuse_unfinished

        refuse_unfinished(run)
    _quiet()
    from abft.model.capabilities import supported_implementation
    from abft.model.checkpoints import apply_weights
    from abft.model.qk_weights import qk_modules
    from abft.runs.session import encoded_tests, load_run_data, load_run_model

    data = load_run_data(config)
    data.check(config.k)
    model, tokenizer = load_run_model(config)
    words, prompts = encoded_tests(config, data, model, tokenizer)
    if run is not None:
        model = apply_weights(model, run)
    layers = sorted({qk.layer for qk in qk_modules(model)})
    return _Loaded(config, data, model, supported_implementation(model), layers, words, prompts)


def _quiet() -> None:
    """Only our own progress bars and messages."""
    import logging
    import warnings

    import transformers

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in (
        "accelerate",
        "bitsandbytes",
        "kernels",
    ):  # the last two say what they would need on another machine
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Entry point: users' mistakes end in one line on stderr, not in a traceback."""
    os.environ.setdefault(
        "THP_MEM_ALLOC_ENABLE", "1"
    )  # PyTorch on Linux: activations in huge pages (PERFORMANCE.md)
    try:
        app()
    except AbftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
