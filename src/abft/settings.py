"""A setting is one dataclass field: name, type, default, help, bounds and what it applies to.

Command-line options, `config.yaml`, `RunConfig`, `ABFTConfig`, grid files, the classifier and model
cards are derived from these fields. A new setting costs one field and the line that uses it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from abft.errors import AbftError

T = TypeVar("T")
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is known about a setting besides its name, type and default."""

    help: str
    panel: str = "Other"  # heading above its option in `--help`
    follows: str | None = None  # what its value follows from if it is left open (None)
    at_least: float | None = None
    below: float | None = None
    choices: Callable[[], Sequence[str]] | None = None  # of a text; a Literal lists its own
    flag: str | None = None  # of its option; default: its name with dashes
    measuring: bool = False  # decides what is measured too, not only how a model is trained
    affects_result: bool = True  # False: speed and places only
    objectives: tuple[str, ...] = ()  # the only objectives that have it; () = all
    follows_objective: bool = False  # if it is left open, its value depends on the objective
    defines_method: bool = False  # part of what a method of the benchmark is
    axis: bool = False  # a grid sets it by an axis of its own
    of_task: bool = False  # names or describes the task: another task needs another value
    describes_own_data: bool = False  # has a meaning only together with `data`
    of_mixture: bool = False  # has a meaning only when training on a mixture of tasks
    path: bool = False  # names a file or folder, if there is one of that name
    listed: bool = False  # text of comma-separated values; a list, or one number, is accepted too
    card: bool = False  # shown in model cards


def setting(default: T, help: str, **known: Any) -> T:
    """Declare a dataclass field that is a setting; `known` are fields of `Setting`."""
    return _declared(default, {"help": help, _KEY: Setting(help, **known)})


def _declared(default: T, metadata: dict[str, Any]) -> T:
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata=metadata)  # type: ignore[return-value]
    return field(default=default, metadata=metadata)


def with_default(settings: type, name: str, default: T) -> T:
    """Declare the setting `name` of another dataclass again, with a default of its own."""
    inherited = next(f for f in fields(settings) if f.name == name)
    return _declared(default, dict(inherited.metadata))


def same_as(settings: type, name: str) -> Any:
    """Declare the setting `name` of another dataclass again, with its default."""
    return with_default(settings, name, default_of(settings, name))


def settings_of(settings: Any) -> dict[str, Setting]:
    """Return the settings of a dataclass, or of an object of it, by name."""
    return _settings_of(settings if isinstance(settings, type) else type(settings))


# A grid makes thousands of configurations, and checks each.
@functools.cache
def _settings_of(kind: Any) -> dict[str, Setting]:
    return {f.name: f.metadata[_KEY] for f in fields(kind) if _KEY in f.metadata}


def names(settings: Any, condition: Callable[[Setting], bool]) -> list[str]:
    """Return the names of the settings for which `condition` holds."""
    return [name for name, known in settings_of(settings).items() if condition(known)]


def default_of(settings: Any, name: str) -> Any:
    """Return a field's default."""
    known = next(f for f in fields(settings) if f.name == name)
    if known.default_factory is not dataclasses.MISSING:
        return known.default_factory()
    return known.default


def changed(settings: Any, among: Sequence[str]) -> list[str]:
    """Return which of the settings `among` differ from their defaults."""
    return [name for name in among if getattr(settings, name) != default_of(settings, name)]


def choices_of(settings: Any, name: str) -> tuple[str, ...]:
    """Return the values that a setting can take; () if any value of its type will do."""
    known = settings_of(settings)[name]
    if known.choices is not None:
        return tuple(known.choices())
    kind = required(next(f.type for f in fields(settings) if f.name == name))
    return get_args(kind) if get_origin(kind) is Literal else ()


def required(kind: Any) -> Any:
    """Return a field's type without None."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return kind


def as_declared(settings: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values of settings to the types of their fields, if it is clear what is meant.

    YAML reads 3e-4 as text, and the 10 of `layers: 10` as a number.
    """
    known = settings_of(settings)
    types = _types_of(settings if isinstance(settings, type) else type(settings))
    return {
        name: _as_declared(value, types[name], known[name]) if name in known else value
        for name, value in values.items()
    }


@functools.cache
def _types_of(kind: Any) -> dict[str, Any]:
    return {f.name: required(f.type) for f in fields(kind) if _KEY in f.metadata}


def _as_declared(value: Any, kind: Any, known: Setting) -> Any:
    # numpy's True and False do not count as integers, but Python's do.
    if isinstance(value, bool):
        return value
    if kind is int and isinstance(value, Integral):
        return int(value)
    # A whole number stays one: it passes for a float, and is shown as it was given.
    if kind is float and isinstance(value, Real) and not isinstance(value, int):
        return float(value)
    if kind is float and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if kind is str and known.listed:
        several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
        return ",".join(str(_text(each)) for each in value) if several else _text(value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {_text(key): _text(each) for key, each in value.items()}
    return value


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _text(value: Any) -> Any:
    """Write a number as text; true and false, as YAML reads yes and no, are refused later."""
    return str(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def check_settings(settings: Any) -> None:
    """Raise AbftError for an object's first setting that is of the wrong type or out of bounds.

    Changes `settings`: values are converted to their fields' types, see `as_declared`.
    """
    given = {name: getattr(settings, name) for name in settings_of(settings)}
    for name, value in as_declared(settings, given).items():
        object.__setattr__(settings, name, value)  # of frozen ones too
    for f in fields(settings):
        if _KEY not in f.metadata:
            continue
        value, known = getattr(settings, f.name), f.metadata[_KEY]

        options = choices_of(settings, f.name)
        is_open = value is None and is_a(None, f.type)
        if options and value not in options and not is_open:
            raise AbftError(f"{f.name} = {value!r}: expected one of {', '.join(options)}")
        if not is_a(value, f.type):
            raise AbftError(f"{f.name} = {value!r}: expected {_TYPE_NAMES.get(f.type, f.type)}")

        if value is None or (known.at_least is None and known.below is None):
            continue
        low = -math.inf if known.at_least is None else known.at_least
        high = math.inf if known.below is None else known.below
        if not low <= value < high:
            raise AbftError(f"{f.name} = {value}: expected {_bounds(f.type, known)}")


def _bounds(kind: Any, known: Setting) -> str:
    number = "" if kind in (int, int | None) else "a finite number of "
    if known.below is None:
        return f"{number}at least {known.at_least:g}"
    return f"a number from {known.at_least:g} to less than {known.below:g}"


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    int | None: "a whole number",
    float | None: "a number",
    str | None: "text",
    list[int]: "a list of whole numbers such as [0, 1, 2]",
    dict[str, str]: "label: word pairs of text (in YAML, yes and no need quotes)",
}


def is_a(value: object, kind: Any) -> bool:
    """Return whether a value from YAML or a caller is of a field's type.

    Whole numbers pass as floats, true and false do not pass as numbers.
    """
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(is_a(value, part) for part in get_args(kind))
    if kind is NoneType:
        return value is None
    if get_origin(kind) is list:
        return isinstance(value, list) and all(is_a(part, get_args(kind)[0]) for part in value)
    if get_origin(kind) is dict:
        key, entry = get_args(kind)
        return isinstance(value, dict) and all(
            is_a(k, key) and is_a(v, entry) for k, v in value.items()
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def from_mapping(settings: type[T], values: Mapping[str, object], origin: str) -> T:
    """Make a settings object from keys and values. Raises AbftError for unknown keys.

    `origin` names the file, for the message.
    """
    check_keys(values, [f.name for f in fields(settings)], origin)  # type: ignore[arg-type]
    return settings(**values)


def check_keys(values: Mapping[str, object], known: Sequence[str], origin: str) -> None:
    """Raise AbftError for the first key of `values` that is not `known`, naming the nearest."""
    for key in values:
        if key not in known:
            raise AbftError(f"{origin}: unknown key {key!r}{did_you_mean(str(key), known)}")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known name, "" if none is near."""
    from difflib import get_close_matches  # only where something is refused

    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_yaml(path: str | Path) -> dict[str, object]:
    """Read a mapping from a YAML file. Raises AbftError if it does not hold one."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AbftError(f"no such file: {path}") from None
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            reason = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise AbftError(f"{path} could not be read as YAML: {reason}") from None
    if not isinstance(values, dict):
        raise AbftError(f"{path}: expected keys and values, for example `lr: 0.0003`")
    return values


def document_settings(settings: type, arguments: Mapping[str, str]) -> Callable[[type[T]], type[T]]:
    """Add settings' help texts to the `Args` of a class's docstring.

    Args:
        settings: the dataclass that declares them.
        arguments: argument of the class -> name of the setting.
    """
    known = settings_of(settings)
    lines = [f"        {argument}: {known[name].help}\n" for argument, name in arguments.items()]

    def decorate(documented: type[T]) -> type[T]:
        documented.__doc__ = (documented.__doc__ or "").replace(
            "Args:\n", "Args:\n" + "".join(lines)
        )
        return documented

    return decorate
