"""Generate the command line's options from settings, and make a configuration of them."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

import typer

from abft.errors import AbftError
from abft.method.settings import TRAINING
from abft.runs.config import (
    MODEL,
    OUTPUT,
    RECIPES,
    RUNS,
    RunConfig,
    current_values,
    is_whole,
    written_settings,
)
from abft.settings import (
    Setting,
    check_keys,
    choices_of,
    default_of,
    from_mapping,
    names,
    read_yaml,
    required,
    settings_of,
)

S = TypeVar("S")

Run = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a finished run.",
        show_default="the newest in runs/",
        rich_help_panel=MODEL,
    ),
]
RunArgument = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="The same as --run.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=OUTPUT)]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="paper: the paper's settings of method and training (its prompts: --prompt-style "
        "staicc); paper-lora: those for large models; reader: many tasks, so that the model reads "
        "any demonstrations. Other options override the recipe's.",
        show_default="chosen on small models",
        rich_help_panel=TRAINING,
    ),
]


def chosen_run(argument: Path | None, option: Path | None) -> Path:
    """Return the run that the user named as argument or option, or else the newest, and say so.

    Raises:
        AbftError: two different runs, or none at all.
    """
    if argument is not None and option is not None and argument != option:
        raise AbftError(f"got two runs, {argument} and --run {option}; give one")
    run = argument or option
    if run is None:
        from abft.runs.run_folder import newest_run

        run = newest_run(RUNS)
        print(f"run: {run} (the newest)", file=sys.stderr)
    return run


def option_of(settings: type, name: str, known: Setting) -> inspect.Parameter:
    """Make the option of a setting. Its value is None if the user does not give it."""
    kind = next(f.type for f in fields(settings) if f.name == name)
    default = default_of(settings, name)
    flag = known.flag or f"--{name.replace('_', '-')}"
    if kind is bool and default is True and "/" not in flag:
        flag += f"/--no-{flag.removeprefix('--')}"

    values = "|".join(choices_of(settings, name))
    pairs = "LABEL=word" if kind == dict[str, str] else None
    option = typer.Option(
        flag,
        help=known.help,
        rich_help_panel=known.panel,
        show_default=known.follows or _default_text(default),
        metavar=values or pairs,
    )
    annotation = Annotated[_option_type(kind) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _default_text(default: object) -> str | bool:
    """Return a default as help shows it; False if there is nothing to show."""
    if default is None or default is False:
        return False
    return "on" if default is True else str(default).replace("\n", "\\n")


def _option_type(kind: Any) -> Any:
    """Return the type of an option; for typer, choices are plain text, which the setting checks."""
    kind = required(kind)
    if get_origin(kind) is dict:
        return list[str]
    return kind if kind in (int, float, bool, str, Path) else str


def options_of(settings: type, chosen: Sequence[str] | None = None) -> list[inspect.Parameter]:
    """Make an option for every setting of a dataclass, or only for those named in `chosen`."""
    return [
        option_of(settings, name, known)
        for name, known in settings_of(settings).items()
        if chosen is None or name in chosen
    ]


@dataclass(frozen=True)
class Request:
    """What the user asked of a command that takes a model and a task."""

    given: Mapping[str, object]  # settings on the command line
    file: Mapping[str, object]  # settings of --config
    recipe: str | None
    as_json: bool

    def config(
        self, run: Path | None = None, defaults: Mapping[str, object] | None = None
    ) -> RunConfig:
        """Return the configuration: command line over --config over --recipe over the defaults.

        Args:
            run: start from this run's configuration instead of the defaults.
            defaults: the command's own defaults.

        Raises:
            AbftError: values that make no sense, alone or together.
        """
        recipe = RECIPES[self.recipe] if self.recipe else {}
        merged = {**recipe, **self.file, **self.given}
        # null in a file means the default, also over a run's own value.
        chosen = {
            name: default_of(RunConfig, name) if value is None else value
            for name, value in merged.items()
        }
        self._check_objective(chosen)
        if run is None:
            return RunConfig.from_dict({**(defaults or {}), **chosen}, "the command line")

        from abft.runs.run_folder import read_config

        if "task" in chosen or "data" in chosen:
            # Settings that describe the run's own task do not hold for another one.
            of_task = names(RunConfig, lambda known: known.of_task)
            chosen = {name: default_of(RunConfig, name) for name in of_task} | chosen
        trust = chosen.pop("trust_remote_code", False) is True
        config = read_config(run, trust_remote_code=trust)
        return replace(config, **{**(defaults or {}), **chosen})

    def _check_objective(self, chosen: Mapping[str, object]) -> None:
        """Raise AbftError if a file's settings belong to another objective than the chosen one."""
        theirs = self.file.get("objective")
        if theirs is None or chosen["objective"] == theirs:
            return
        follow = names(RunConfig, lambda known: known.follows_objective)
        stale = [
            name for name in follow if self.file.get(name) is not None and name not in self.given
        ]
        if stale:
            options = ", ".join("--" + name.replace("_", "-") for name in stale)
            raise AbftError(
                f"the file of --config sets {', '.join(stale)} for objective {theirs!r}; with "
                f"--objective {chosen['objective']} give {options} too"
            )


def with_run_settings(
    command: Callable[..., None] | None = None, *, measuring: bool = False
) -> Callable[..., Any]:
    """Give a command the options of `RunConfig`, --config and --json; it gets a `Request` first.

    Args:
        command: takes a `Request`, then its own options.
        measuring: only the settings that decide what is measured, not those of training.
    """
    if command is None:
        return functools.partial(with_run_settings, measuring=measuring)

    wanted = names(RunConfig, lambda known: known.measuring or not measuring)
    own = list(inspect.signature(command).parameters.values())[1:]
    extra = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_config_option()
        ),
    ]
    options = options_of(RunConfig, wanted)
    json_option = inspect.Parameter(
        "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json
    )

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = {option.name: arguments[option.name] for option in options}
        file = _file_settings(arguments["ctx"])
        recipe = arguments.get("recipe")
        _check_recipe(recipe, file)
        request = Request(_given_settings(given), file, recipe, arguments["as_json"])
        command(request, **{parameter.name: arguments[parameter.name] for parameter in own})

    _set_signature(run, [*extra, *options, *own, json_option])
    return run


def with_settings(settings: type[S]) -> Callable[..., Any]:
    """Give a command the options of a settings dataclass; its first argument is such an object."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        options = options_of(settings)

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = _parsed({option.name: arguments[option.name] for option in options})
            given = written_settings(settings, given)
            chosen = from_mapping(settings, given, "the command line")
            command(chosen, **{parameter.name: arguments[parameter.name] for parameter in own})

        _set_signature(run, [*own, *options])
        return run

    return decorate


def _set_signature(function: Any, parameters: Sequence[inspect.Parameter]) -> None:
    """Let typer see these parameters."""
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    function.__signature__ = inspect.Signature(keyword)
    function.__annotations__ = {p.name: p.annotation for p in keyword}


_FILE = "abft.config"  # key of the context


def _config_option() -> Any:
    return Annotated[
        Path | None,
        typer.Option(
            "--config",
            callback=_read_config_file,
            is_eager=True,
            help="YAML file that sets any of these options.",
        ),
    ]


def _read_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """Keep a file's settings; its values for other options of the command become defaults."""
    if path is not None and not ctx.resilient_parsing:
        own = [p.name or "" for p in ctx.command.params if p.name not in ("config", "help")]
        settings = [f.name for f in fields(RunConfig)]  # a run's config.yaml fits every command
        values = current_values(read_yaml(path), str(path))
        check_keys(values, [*own, *settings], str(path))
        ctx.meta[_FILE] = {name: values[name] for name in settings if name in values}
        ctx.default_map = {name: values[name] for name in own if name in values}
        ctx.default_map = {n: v for n, v in ctx.default_map.items() if n not in settings}
    return path


def _file_settings(ctx: typer.Context) -> dict[str, object]:
    """Return the settings of --config.

    A file cannot switch on remote code: it may be somebody else's.
    """
    values = dict(ctx.meta.get(_FILE, {}))
    if values.pop("trust_remote_code", False):
        print("--config cannot switch on remote code: give --trust-remote-code", file=sys.stderr)
    return written_settings(RunConfig, values)


def _check_recipe(recipe: str | None, file: Mapping[str, object]) -> None:
    if recipe is None:
        return
    if recipe not in RECIPES:
        raise AbftError(f"recipe = {recipe!r}: expected one of {', '.join(RECIPES)}")
    differing = [name for name, value in RECIPES[recipe].items() if file.get(name, value) != value]
    if differing and is_whole(file):
        raise AbftError(
            f"--recipe {recipe} and the file of --config set different {', '.join(differing)}; "
            "give one of the two"
        )


def _given_settings(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that the user gave, as `RunConfig` takes them."""
    return written_settings(RunConfig, _parsed(arguments))


def _parsed(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that the user gave, with LABEL=word pairs parsed."""
    given = {name: value for name, value in arguments.items() if value not in (None, [])}
    pairs = given.get("label_words")
    if isinstance(pairs, list):
        words = {}
        for pair in pairs:
            label, equals, word = pair.partition("=")
            if not equals:
                raise AbftError(f"--label-words {pair!r}: expected LABEL=word")
            words[label] = word
        given["label_words"] = words
    return given
