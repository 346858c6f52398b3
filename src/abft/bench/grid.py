"""The grid file: models x tasks x methods x scenarios x seeds, and the cells it makes."""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from abft.bench.methods import METHODS, Named
from abft.bench.scenarios import SCENARIOS
from abft.data.builtin import TASKS, task_named
from abft.errors import AbftError
from abft.method.settings import PAPER
from abft.runs.config import MODEL, ResolvedConfig, RunConfig, check_effect, resolve
from abft.settings import (
    Setting,
    check_keys,
    check_settings,
    did_you_mean,
    from_mapping,
    names,
    read_yaml,
    setting,
    settings_of,
)

VERSION = 1  # of cell files; a change of what is measured, or of BASELINE, raises it
BASELINE = {**PAPER, "lr": None}  # what every cell starts from; the rate follows the model's size
NAME_LIMIT = 180  # characters of a file name
_STORED_NAMES = {"prompt_style": "protocol"}  # settings that were renamed after cells were stored


@dataclass(frozen=True)
class Cell:
    """One measurement: model, task, method, scenario (in one of its variants) and seed."""

    model: str
    task: str
    method: str  # the grid's name
    kind: str  # key of METHODS
    scenario: str
    seed: int
    config: ResolvedConfig  # everything that decides the training and the test prompts
    variant: Mapping[str, Any] = field(default_factory=dict)
    calibration_prompts: int = 512

    @property
    def name(self) -> str:
        """For people and file names."""
        changed = "".join(f"-{key}={value}" for key, value in self.variant.items())
        scenario = f"{self.scenario}{changed}"
        return _safe(f"{self.model}__{self.task}__{self.method}__{scenario}__seed{self.seed}")

    @functools.cached_property
    def digest(self) -> str:
        """Everything that decides the result, as a hash; results of another digest are not used."""
        if self.trained is None:
            measured = names(RunConfig, lambda known: known.measuring and known.affects_result)
            changed = _changed(self.config, [*measured, "seed"])
        else:
            changed = _changed(self.config)
        calibration = self.calibration_prompts if METHODS[self.kind].calibration else None
        variant = dict(self.variant)
        return _hash([VERSION, changed, self.kind, self.scenario, variant, calibration])

    @property
    def trained(self) -> ResolvedConfig | None:
        """The configuration of the training that this cell needs; None = the untouched model."""
        if METHODS[self.kind].training is None:
            return None
        return dataclasses.replace(self.config, test_prompts=0)

    @functools.cached_property
    def weights(self) -> str | None:
        """Name of the folder of the trained weights; cells with equal training share it."""
        if self.trained is None:
            return None
        digest = _hash([VERSION, _changed(self.trained)])
        return _safe(f"{self.task}-{self.kind}-seed{self.seed}-{digest}")

    @functools.cached_property
    def subject(self) -> str:
        """A name for the model that this cell measures: the untouched one, or the trained one."""
        of_model = names(RunConfig, lambda known: known.panel == MODEL and known.affects_result)
        return _hash([VERSION, _changed(self.config, of_model), self.weights])

    @property
    def job(self) -> tuple[object, ...]:
        """Cells of one job share a loaded model and the way it is scored."""
        config = self.config
        scoring = (
            config.prompt_style,
            config.threshold,
            config.device,
            config.eval_batch_size,
            config.trust_remote_code,
        )
        return self.model, self.task, self.subject, *scoring


def _safe(name: str) -> str:
    """Return a name as a file name; a long one is cut and told apart by a hash."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_=.+") else "-" for c in name)
    return plain if len(plain) <= NAME_LIMIT else f"{plain[:NAME_LIMIT]}-{_hash(name)}"


def _changed(config: RunConfig, chosen: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what a configuration changes of the baseline and that affects results.

    Settings that are added later leave it as it is.
    """
    baseline = resolve(RunConfig(**BASELINE))
    chosen = chosen or names(RunConfig, lambda known: known.affects_result)
    values = {name: getattr(config, name) for name in chosen}
    changed = {
        _STORED_NAMES.get(name, name): value
        for name, value in values.items()
        if value != getattr(baseline, name)
    }
    local = {name: _content(values[name]) for name in _path_names() if values.get(name)}
    return {
        **changed,
        **{f"content of {name}": content for name, content in local.items() if content},
    }


def _path_names() -> list[str]:
    return names(RunConfig, lambda known: known.path)


@functools.cache
def _content(path: str) -> str | None:
    """Return what tells a changed local file or model folder from the one that was measured.

    None for names of a hub.
    """
    place = Path(path)
    if place.is_file() and place.suffix != ".gguf":
        read_as = b"cells as text" if place.suffix.lower() in (".csv", ".tsv") else b""
        return hashlib.sha256(read_as + place.read_bytes()).hexdigest()[:16]
    files = (
        [place]
        if place.is_file()
        else sorted([*place.glob("*.safetensors"), *place.glob("*.json")])
    )
    return (
        _hash([[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]) if files else None
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Resources:
    """What a job occupies under `--engine ray`."""

    cpus: float = setting(1, "CPU cores of a job.", at_least=0)
    gpus: float = setting(0, "GPUs of a job.", at_least=0)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class Grid:
    """A benchmark. Entries of models, tasks and methods are names, or a name with settings."""

    models: Sequence[Named]
    tasks: Sequence[Named]
    methods: Sequence[tuple[Named, str]]  # with the key of METHODS of each
    scenarios: Sequence[str]
    seeds: list[int] = setting([0], "Seeds of the training prompts.")
    settings: Mapping[str, Any] = field(default_factory=dict)  # RunConfig values of every cell
    reference: str | None = setting(
        None, "The method that others are compared with.", follows="vanilla, or the first"
    )
    calibration_prompts: int = setting(512, "Prompts of a calibration.", at_least=1)
    keep_weights: bool = setting(True, "Keep trained weights when their cells are finished.")
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        check_settings(self)
        axes: dict[str, list[object]] = {
            "models": [named.name for named in self.models],
            "tasks": [named.name for named in self.tasks],
            "methods": [*self.method_names],
            "scenarios": [*self.scenarios],
            "seeds": [*self.seeds],
        }
        for axis, entries in axes.items():
            if not entries:
                raise AbftError(f"{axis} is empty; expected at least one entry")
            twice = [entry for entry, count in Counter(entries).items() if count > 1]
            if twice:
                raise AbftError(
                    f"{axis} names {twice[0]!r} twice, so the grid would name a cell twice"
                )
        if self.reference is not None and self.reference not in self.method_names:
            methods = ", ".join(self.method_names)
            raise AbftError(f"reference {self.reference!r} is none of the methods {methods}")

    @property
    def method_names(self) -> list[str]:
        """The methods' names in tables."""
        return [named.name for named, _ in self.methods]

    @property
    def reference_method(self) -> str:
        """The method that others are compared with."""
        first = "vanilla" if "vanilla" in self.method_names else self.method_names[0]
        return self.reference or first

    def cells(self) -> list[Cell]:
        """Return every cell, those of one job next to each other.

        Combinations that mean nothing are left out.
        """
        cells = [
            self._cell(model, task, method, kind, scenario, variant, seed)
            for model in self.models
            for task in self.tasks
            for method, kind in self.methods
            for scenario in self.scenarios
            for variant in SCENARIOS[scenario].variants
            for seed in self.seeds
        ]
        cells = [cell for cell in cells if applies(cell)]
        twice = [name for name, count in Counter(cell.name for cell in cells).items() if count > 1]
        if twice:
            raise AbftError(f"the grid names a cell twice: {twice[0]}")
        order = {job: i for i, job in reversed(list(enumerate(cell.job for cell in cells)))}
        return sorted(cells, key=lambda cell: order[cell.job])

    def _cell(
        self,
        model: Named,
        task: Named,
        method: Named,
        kind: str,
        scenario: str,
        variant: Mapping[str, Any],
        seed: int,
    ) -> Cell:
        training = {**(METHODS[kind].training or {}), **method.settings}
        objective = training.get("objective", PAPER["objective"])
        shared = {**self.settings, **model.settings, **task.settings}
        shared = {name: v for name, v in shared.items() if _has(objective, RUN_SETTINGS[name])}
        own = {} if "data" in task.settings else {"task": task.name}
        values = {**BASELINE, "model": model.name, **own, **shared, **training, "seed": seed}
        try:
            if METHODS[kind].training is not None:
                check_effect(RunConfig(**values))
            config = resolve(RunConfig(**{**values, **variant}))
        except AbftError as error:
            raise AbftError(f"grid, method {method.name}, task {task.name}: {error}") from None
        if config.test_prompts == 0:
            raise AbftError("grid: test_prompts = 0, so nothing would be measured")
        return Cell(
            model.name,
            task.name,
            method.name,
            kind,
            scenario,
            seed,
            config,
            variant,
            self.calibration_prompts,
        )


RUN_SETTINGS = settings_of(RunConfig)


def _has(objective: str, known: Setting) -> bool:
    """Whether an objective has a setting."""
    return not known.objectives or objective in known.objectives


def applies(cell: Cell) -> bool:
    """Whether a scenario means something for a method."""
    needs, trained = SCENARIOS[cell.scenario].needs, cell.trained
    return (
        needs == "any"
        or (needs == "own task" and (trained is None or trained.train_on == "task"))
        or (needs == "training" and trained is not None)
        or (needs == "abft" and cell.kind == "abft")
    )


def read_grid(path: str | Path) -> Grid:
    """Read a grid from YAML.

    Raises:
        AbftError: anything that is not understood; the message names the nearest known name.
    """
    values, origin = read_yaml(path), str(path)
    check_keys(values, [f.name for f in fields(Grid)], origin)
    axes = {name: _entries(values, name, origin) for name in _EXAMPLES}
    settings = values.get("settings") or {}
    _check_names(settings, f"{origin}, settings", of_methods=False)
    assert isinstance(settings, dict)
    parsed: dict[str, object] = {
        **{name: value for name, value in values.items() if value is not None},
        "models": [_model(entry, f"{origin}, models") for entry in axes["models"]],
        "tasks": [_task(entry, f"{origin}, tasks") for entry in axes["tasks"]],
        "methods": [_method(entry, f"{origin}, methods") for entry in axes["methods"]],
        "scenarios": [_known(e, SCENARIOS, "scenario", origin) for e in axes["scenarios"]],
        "settings": _absolute(settings),
    }
    try:
        if isinstance(parsed.get("resources"), dict):
            resources = values["resources"]
            parsed["resources"] = from_mapping(Resources, resources, f"{origin}, resources")  # type: ignore[arg-type]
        elif "resources" in parsed:
            raise AbftError("resources: expected for example `resources: {cpus: 2, gpus: 1}`")
        grid = from_mapping(Grid, parsed, origin)
    except AbftError as error:
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
    return Named(entry["name"], _absolute(settings))


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve local files, so that workers elsewhere and later runs use the same ones."""
    local = {
        name: str(Path(value).resolve())
        for name in _path_names()
        if isinstance(value := settings.get(name), str) and value and Path(value).exists()
    }
    return {**settings, **local}


def _model(entry: object, origin: str) -> Named:
    named = _named(entry, origin)
    _check_names(named.settings, f"{origin}, {named.name}", "model", of_methods=False)
    if "model" in named.settings:
        return named
    return Named(named.name, _absolute({**named.settings, "model": named.name}))


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
    """Raise AbftError for keys that are no settings here.

    Settings that an axis of the grid sets are none, but for the entry's `own_axis`, nor are those
    that define a method, outside of an entry of methods.
    """
    if not isinstance(settings, Mapping):
        raise AbftError(f"{origin}: got {settings!r}, expected keys and values")
    misplaced = [
        key for key in settings if key in RUN_SETTINGS and RUN_SETTINGS[key].defines_method
    ]
    if misplaced and not of_methods:
        raise AbftError(f"{origin}: {misplaced[0]} defines a method; set it in an entry of methods")
    known = [name for name, known in RUN_SETTINGS.items() if not known.axis or name == own_axis]
    check_keys(settings, known, origin)
