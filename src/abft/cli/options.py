"""The command line's options, shared by the commands, and the `RunConfig` they make."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from abft.errors import AbftError
from abft.runs.config import (
    RECIPES,
    RunConfig,
    is_whole,
    read_yaml,
    refuse_unknown_keys,
    with_settings_of_its_time,
)

DEFAULTS = RunConfig()


DEFAULT_TEMPLATE = DEFAULTS.template.replace("\n", "\\n")


RECIPE_GIVEN, FILE_VALUES = (
    "abft.recipe",
    "abft.runs.config",
)  # kept in the context, whichever comes first


def read_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Values of a YAML file become this command's defaults; the command line overrides them."""
    if path is not None and not ctx.resilient_parsing:
        values = with_settings_of_its_time(read_yaml(path))
        known = [
            *_own_names(ctx),
            *(f.name for f in fields(RunConfig)),
        ]  # a run's config.yaml fits every command
        refuse_unknown_keys(values, known, str(path))
        ctx.meta[FILE_VALUES] = values
        _set_defaults(ctx)
    return path


def _own_names(ctx: typer.Context) -> list[str]:
    """The options of this command that a file may set."""
    return [
        parameter.name or ""
        for parameter in ctx.command.params
        if parameter.name not in ("config", "help")
    ]


def read_recipe(ctx: typer.Context, name: str | None) -> str | None:
    """A recipe's settings become this command's defaults, behind those of --config."""
    if name is not None and not ctx.resilient_parsing:
        if name not in RECIPES:
            raise AbftError(f"recipe = {name!r}: expected one of {', '.join(RECIPES)}")
        ctx.meta[RECIPE_GIVEN] = name
        _set_defaults(ctx)
    return name


def _set_defaults(ctx: typer.Context) -> None:
    """The recipe's settings and over them the file's, where null stands for no setting."""
    name, values = ctx.meta.get(RECIPE_GIVEN), ctx.meta.get(FILE_VALUES, {})
    recipe = RECIPES[name] if name else {}
    differing = [key for key, value in recipe.items() if key in values and values[key] != value]
    if differing and is_whole(values):
        raise AbftError(
            f"--recipe {name} and the file of --config set different {', '.join(differing)}; "
            f"give one of the two"
        )
    own = _own_names(ctx)
    defaults = {
        key: value
        for key, value in {**recipe, **values}.items()
        if key in own and value is not None
    }
    if isinstance(defaults.get("label_words"), dict):  # `_chosen` takes the mapping itself
        defaults["label_words"] = [
            f"{label}={word}" for label, word in defaults["label_words"].items()
        ]
    ctx.default_map = defaults


MODEL, DATA, METHOD, TRAINING, OUTPUT = (
    "Model",
    "Task and data",
    "Method (arXiv 2505.14233)",
    "Training",
    "Output",
)


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=read_config_file,
        is_eager=True,
        help="YAML file that sets any of these options.",
    ),
]


Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        callback=read_recipe,
        is_eager=True,
        help="paper: exactly the paper's settings; paper-lora: those for large models. Other "
        "options change them.",
        show_default="chosen on small models",
        rich_help_panel=TRAINING,
    ),
]


Model = Annotated[str, typer.Option(help="Hub id, folder or .gguf file.", rich_help_panel=MODEL)]


Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=MODEL)
]


Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, float16 or auto.", rich_help_panel=MODEL)
]


FourBit = Annotated[
    bool,
    typer.Option("--load-in-4bit", help="nf4 base weights; needs --lora-r.", rich_help_panel=MODEL),
]


Trust = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the repository's own code.", rich_help_panel=MODEL
    ),
]


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or balanced.", rich_help_panel=MODEL)]


TaskName = Annotated[
    str | None,
    typer.Option("--task", help="Built-in task, e.g. SST2 (default), TREC.", rich_help_panel=DATA),
]


Data = Annotated[
    str | None,
    typer.Option(
        help="Own data: .csv, .tsv, .jsonl, .parquet or a hub data set id.", rich_help_panel=DATA
    ),
]


TextColumn = Annotated[str, typer.Option(help="Column of the texts.", rich_help_panel=DATA)]


LabelColumn = Annotated[str, typer.Option(help="Column of the labels.", rich_help_panel=DATA)]


TestData = Annotated[
    str | None, typer.Option(help="Own test queries; default: held out.", rich_help_panel=DATA)
]


TemplateText = Annotated[
    str, typer.Option(help="A demonstration of --data; \\n is a newline.", rich_help_panel=DATA)
]


LabelWords = Annotated[
    list[str] | None, typer.Option(help="LABEL=word; repeat.", rich_help_panel=DATA)
]


ProtocolName = Annotated[str, typer.Option(help="consistent or staicc.", rich_help_panel=DATA)]


K = Annotated[int, typer.Option("--k", help="Demonstrations in a prompt.", rich_help_panel=DATA)]


TestPrompts = Annotated[
    int, typer.Option(help="Test prompts; 0: no evaluation.", rich_help_panel=DATA)
]


EvalBatch = Annotated[
    int, typer.Option(help="Prompts in a forward pass of evaluation.", rich_help_panel=OUTPUT)
]


Threshold = Annotated[
    float | None,
    typer.Option(
        help="Fixed filter threshold.", show_default="k / (k + ln n)", rich_help_panel=METHOD
    ),
]


Run = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a finished run: its model, weights and task.", rich_help_panel=MODEL
    ),
]


E2ERun = Annotated[
    Path | None,
    typer.Option(
        "--e2e", help="Folder of an end-to-end run of the same base model, to compare with."
    ),
]


AnalysisPrompts = Annotated[
    int | None,
    typer.Option(
        "--test-prompts", help="Test prompts for predictions and head maps; default: as in the run."
    ),
]


BaseModel = Annotated[
    str | None, typer.Option("--model", help="Base model, if not where the run says.")
]


OtherDevice = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or balanced, if not as in the run.")
]


Points = Annotated[
    int, typer.Option(help="Test prompts behind every point of the basin and with heads off.")
]


Resolution = Annotated[
    int,
    typer.Option(
        help="Points on each side of the basin's plane; 5 and 9 hold the models themselves."
    ),
]


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=OUTPUT)]


def _chosen(ctx: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """RunConfig's values among a command's arguments."""
    chosen = {f.name: values[f.name] for f in fields(RunConfig) if f.name in values}
    words = ctx.meta.get(FILE_VALUES, {}).get("label_words")
    if isinstance(words, dict) and _source(ctx, "label_words") != "COMMANDLINE":
        words = {_text(label): _text(word) for label, word in words.items()}
    else:
        words = {}
        for pair in chosen.get("label_words") or []:
            label, equals, word = pair.partition("=")
            if not equals:
                raise AbftError(f"--label-words {pair!r}: expected LABEL=word")
            words[label] = word
    chosen["label_words"] = words
    if "template" in chosen:
        chosen["template"] = chosen["template"].replace("\\n", "\n").replace("\\t", "\t")
    for name in ("model", "data", "test_data"):  # so that config.yaml works from every folder
        if chosen.get(name) and Path(chosen[name]).exists():
            chosen[name] = str(Path(chosen[name]).resolve())
    return chosen


def _text(value: Any) -> Any:
    """Numbers of a YAML file as text; `RunConfig` refuses what is no text then, as yes and no,
    which YAML reads as truth.
    """
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _source(ctx: typer.Context, name: str) -> str:
    """Where an option's value comes from: COMMANDLINE, DEFAULT_MAP (a file or a recipe) or
    DEFAULT.
    """
    source = ctx.get_parameter_source(name)
    return source.name if source else "DEFAULT"


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user set an option, on the command line or in --config."""
    return _source(ctx, name) != "DEFAULT"


def _refuse_settings_of_another_objective(ctx: typer.Context, chosen: dict[str, Any]) -> None:
    """What follows from an objective, read from a file, says nothing about another one."""
    values = ctx.meta.get(FILE_VALUES, {})
    if "objective" not in chosen or values.get("objective") in (None, chosen["objective"]):
        return
    names = ("steps", "lr", "cross_entropy")
    stale = [
        name
        for name in names
        if values.get(name) is not None and _source(ctx, name) != "COMMANDLINE"
    ]
    if stale:
        options = ", ".join("--" + name.replace("_", "-") for name in stale)
        raise AbftError(
            f"the file of --config sets {', '.join(stale)} for objective "
            f"{values['objective']!r}; with --objective "
            f"{chosen['objective']} give {options} too"
        )


def config_of(ctx: typer.Context, values: dict[str, Any], run: Path | None) -> RunConfig:
    """The configuration of `run` (if given), changed by what the user set on the command line or in
    --config.
    """
    chosen = _chosen(ctx, values)
    _refuse_settings_of_another_objective(ctx, chosen)
    if run is None:
        return RunConfig(**chosen)
    from abft.runs.run_folder import read_config

    given = {name: value for name, value in chosen.items() if was_given(ctx, name)}
    if (
        "task" in given or "data" in given
    ):  # another task: nothing of the run's own data description holds
        own = (
            "task",
            "data",
            "text_column",
            "label_column",
            "test_data",
            "template",
            "label_words",
        )
        given = {name: getattr(DEFAULTS, name) for name in own} | given
    given["trust_remote_code"] = chosen[
        "trust_remote_code"
    ]  # a run folder from elsewhere cannot ask for it
    return dataclasses.replace(read_config(run), **given)


def _shared(
    ctx: typer.Context,
    config: ConfigFile = None,
    model: Model = DEFAULTS.model,
    revision: Revision = None,
    dtype: Dtype = DEFAULTS.dtype,
    load_in_4bit: FourBit = False,
    trust_remote_code: Trust = False,
    device: Device = DEFAULTS.device,
    task: TaskName = None,
    data: Data = None,
    text_column: TextColumn = DEFAULTS.text_column,
    label_column: LabelColumn = DEFAULTS.label_column,
    test_data: TestData = None,
    template: TemplateText = DEFAULT_TEMPLATE,
    label_words: LabelWords = None,
    protocol: ProtocolName = DEFAULTS.protocol,
    k: K = DEFAULTS.k,
    threshold: Threshold = None,
    eval_batch_size: EvalBatch = DEFAULTS.eval_batch_size,
    as_json: Json = False,
) -> None:
    """The options of every command that takes a model and a task; only this signature is used."""


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above; it is called with a dict of all of its arguments, its own
    ones included.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    everything = [*own, *inspect.signature(_shared).parameters.values()]
    signature = inspect.Signature(
        [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in everything]
    )

    @functools.wraps(command)
    def with_all(**arguments: Any) -> None:
        command(arguments, **{parameter.name: arguments[parameter.name] for parameter in own})

    with_all.__signature__ = signature  # type: ignore[attr-defined]
    with_all.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }
    return with_all
