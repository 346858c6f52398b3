"""Read a grid file."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from abft.bench.grid import RUN_SETTINGS, Grid, Resources, chosen_variants
from abft.bench.methods import METHODS, Named
from abft.bench.scenarios import SCENARIOS
from abft.data.builtin import TASKS, task_named
from abft.errors import AbftError
from abft.runs.config import RunConfig, written_settings
from abft.settings import check_keys, did_you_mean, from_mapping, read_yaml


def read_grid(path: str | Path, *, trust_remote_code: bool = False) -> Grid:
    """Read a grid from YAML.

    Args:
        trust_remote_code: run Python code of the models' repositories; no file switches this on.

    Raises:
        AbftError: anything that is not understood; the message names the nearest known name.
    """
    values, origin = read_yaml(path), str(path)
    check_keys(values, [f.name for f in fields(Grid)], origin)

    axes = {name: _entries(values, name, origin) for name in _EXAMPLES}
    settings = values.get("settings") or {}
    _check_names(settings, f"{origin}, settings", of_methods=False)
    assert isinstance(settings, dict)

    # A key without a value counts as left out.
    parsed: dict[str, object] = {
        **{name: value for name, value in values.items() if value is not None},
        "models": [_model(entry, f"{origin}, models") for entry in axes["models"]],
        "tasks": [_task(entry, f"{origin}, tasks") for entry in axes["tasks"]],
        "methods": [_method(entry, f"{origin}, methods") for entry in axes["methods"]],
        "scenarios": [_scenario(entry, origin) for entry in axes["scenarios"]],
        "settings": {
            **written_settings(RunConfig, settings),
            "trust_remote_code": trust_remote_code,
        },
    }

    try:
        if isinstance(parsed.get("resources"), dict):
            resources = values["resources"]
            parsed["resources"] = from_mapping(Resources, resources, f"{origin}, resources")  # type: ignore[arg-type]
        elif "resources" in parsed:
            raise AbftError("resources: expected for example `resources: {cpus: 2, gpus: 1}`")
        grid = from_mapping(Grid, parsed, origin)
    except AbftError as error:
        # The checks of a grid do not know its file.
        message = str(error)
        raise AbftError(message if message.startswith(origin) else f"{origin}: {message}") from None

    if not grid.cells():
        raise AbftError(f"{origin}: no cell; none of the scenarios applies to any of the methods")
    return grid


_EXAMPLES = {
    "models": "SmolLM2-135M-Instruct",
    "tasks": "SST2, TREC",
    "methods": "vanilla, abft",
    "scenarios": "standard",
}


def _entries(values: Mapping[str, object], axis: str, origin: str) -> list[object]:
    entries = values.get(axis)
    if not isinstance(entries, list) or not entries:
        raise AbftError(
            f"{origin}: {axis} is missing or no list; expected for example "
            f"`{axis}: [{_EXAMPLES[axis]}]`"
        )
    return entries


def _known(name: object, table: Mapping[str, Any], what: str, origin: str) -> str:
    if not isinstance(name, str) or name not in table:
        near = did_you_mean(str(name).lower(), list(table))
        raise AbftError(f"{origin}: unknown {what} {name!r}{near}. Known: {', '.join(table)}")
    return name


def _named(entry: object, origin: str) -> Named:
    if isinstance(entry, str):
        return Named(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise AbftError(f"{origin}: got {entry!r}, expected a name, or `name: ...` with settings")
    settings = {key: value for key, value in entry.items() if key != "name"}
    return Named(entry["name"], written_settings(RunConfig, settings))


def _scenario(entry: object, origin: str) -> Named:
    """Read a scenario, and which of its variants are measured: `{name: factors, A0: [0.5]}`."""
    values = entry if isinstance(entry, dict) else {"name": entry}
    name = _known(values.get("name"), SCENARIOS, "scenario", origin)
    chosen = {key: value for key, value in values.items() if key != "name"}

    variants = SCENARIOS[name].variants
    for key, value in chosen.items():
        if key not in variants[0]:
            has = (
                f"its variants differ in {', '.join(variants[0])}" if variants[0] else "no variants"
            )
            raise AbftError(f"{origin}, {name}: unknown key {key!r}; {has}")
        measured = list(dict.fromkeys(variant[key] for variant in variants))
        unknown = [v for v in value if v not in measured] if isinstance(value, list) else [value]
        if unknown or not value:
            raise AbftError(
                f"{origin}, {name}: {key} = {value!r}, expected a list of some of {measured}"
            )

    scenario = Named(name, chosen)
    if not chosen_variants(scenario):
        raise AbftError(f"{origin}, {name}: no variant has all of {chosen}")
    return scenario


def _model(entry: object, origin: str) -> Named:
    named = _named(entry, origin)
    _check_names(named.settings, f"{origin}, {named.name}", "model", of_methods=False)
    if "model" in named.settings:
        return named
    return Named(named.name, written_settings(RunConfig, {**named.settings, "model": named.name}))


def _task(entry: object, origin: str) -> Named:
    named = _named(entry, origin)
    _check_names(named.settings, f"{origin}, {named.name}", "data", of_methods=False)
    if "data" not in named.settings:
        return Named(task_named(named.name).name, named.settings)
    data = named.settings["data"]
    if not isinstance(data, str) or not data:
        raise AbftError(f"{origin}, {named.name}: data = {data!r}, expected a file or a hub id")
    if named.name in TASKS:
        raise AbftError(f"{origin}: {named.name!r} is a built-in task; give own data another name")
    return named


def _method(entry: object, origin: str) -> tuple[Named, str]:
    named = _named(entry, origin)
    settings = dict(named.settings)
    kind = _known(settings.pop("method", named.name), METHODS, "method", origin)
    _check_names(settings, f"{origin}, {named.name}", of_methods=True)
    return Named(named.name, settings), kind


def _check_names(
    settings: object, origin: str, own_axis: str | None = None, *, of_methods: bool
) -> None:
    """Raise AbftError for keys that are not allowed as settings here.

    Settings that an axis of the grid sets are not allowed, except for the entry's `own_axis`. Those
    that define a method are allowed only in an entry of methods.
    """
    if not isinstance(settings, Mapping):
        raise AbftError(f"{origin}: got {settings!r}, expected keys and values")
    if settings.get("trust_remote_code"):
        raise AbftError(
            f"{origin}: a file cannot switch on trust_remote_code; give --trust-remote-code"
        )

    misplaced = [
        key for key in settings if key in RUN_SETTINGS and RUN_SETTINGS[key].defines_method
    ]
    if misplaced and not of_methods:
        raise AbftError(f"{origin}: {misplaced[0]} defines a method; set it in an entry of methods")

    allowed = [
        name
        for name, run_setting in RUN_SETTINGS.items()
        if not run_setting.axis or name == own_axis
    ]
    check_keys(settings, allowed, origin)
