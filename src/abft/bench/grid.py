"""The grid file: models x tasks x methods x scenarios x seeds, and the cells it makes."""

import dataclasses
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from abft.bench.methods import METHODS, Named
from abft.bench.scenarios import SCENARIOS
from abft.data.builtin import TASKS, task_named
from abft.errors import AbftError
from abft.runs.config import (
    PAPER,
    PAPERS_OWN,
    RunConfig,
    read_yaml,
    refuse_unknown_keys,
    refuse_without_effect,
)

VERSION = 1  # of cell files; a change of what is measured, or of BASELINE, raises it


BASELINE = {**PAPER, "lr": None}  # what every cell begins with; the rate follows the model's size


_CELL_FIELDS = ("model", "task", "data", "seed")  # set by the grid's axes


_WITHOUT_EFFECT = ("device", "eval_batch_size", "save_steps", "trust_remote_code")  # on results


_MODEL_FIELDS = ("model", "revision", "dtype", "load_in_4bit")


_DATA_FIELDS = (
    "task",
    "data",
    "text_column",
    "label_column",
    "test_data",
    "template",
    "label_words",
    "protocol",
)


_EVALUATION_FIELDS = (*_MODEL_FIELDS, *_DATA_FIELDS, "k", "threshold", "test_prompts", "seed")


_OF_METHODS = (
    "objective",
    "train_on",
    "lora_targets",
)  # what a method is; not for all cells at once


NAME_LIMIT = 180  # characters of a file name


@dataclass(frozen=True)
class Cell:
    """One measurement: a model, a task, a method, a scenario (in one of its variants) and a
    seed.
    """

    model: str
    task: str
    method: str  # the grid's name
    kind: str  # key of METHODS
    scenario: str
    seed: int
    config: RunConfig  # everything that decides the training and the test prompts
    variant: Mapping[str, Any] = field(default_factory=dict)
    calibration_prompts: int = 512

    @property
    def name(self) -> str:
        """For people and file names."""
        changed = "".join(f"-{key}={value}" for key, value in self.variant.items())
        return _safe(
            "__".join(
                (
                    self.model,
                    self.task,
                    self.method,
                    f"{self.scenario}{changed}",
                    f"seed{self.seed}",
                )
            )
        )

    @functools.cached_property
    def digest(self) -> str:
        """Everything that decides the result, as a hash; a stored result of another digest is not
        used.
        """
        names = _EVALUATION_FIELDS if self.trained is None else None
        calibration = self.calibration_prompts if METHODS[self.kind].calibration else None
        return _hash(
            [
                VERSION,
                _changed(self.config, names),
                self.kind,
                self.scenario,
                dict(self.variant),
                calibration,
            ]
        )

    @property
    def trained(self) -> RunConfig | None:
        """The configuration of the training that this cell needs; None = the untouched model."""
        return (
            None
            if METHODS[self.kind].training is None
            else dataclasses.replace(self.config, test_prompts=0)
        )

    @functools.cached_property
    def weights(self) -> str | None:
        """Name of the folder of the trained weights; cells with equal training share it."""
        if self.trained is None:
            return None
        return _safe(
            f"{self.task}-{self.kind}-seed{self.seed}-{_hash([VERSION, _changed(self.trained)])}"
        )

    @functools.cached_property
    def subject(self) -> str:
        """Names the model that this cell measures: the untouched one, or the trained one."""
        return _hash([VERSION, _changed(self.config, _MODEL_FIELDS), self.weights])

    @property
    def job(self) -> tuple[object, ...]:
        """Cells of one job share a loaded model and the way it is asked."""
        config = self.config
        how = (
            config.protocol,
            config.threshold,
            config.device,
            config.eval_batch_size,
            config.trust_remote_code,
        )
        return self.model, self.task, self.subject, *how


def _safe(name: str) -> str:
    """A name as a file name; a long one is cut and told apart by a hash."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_=.+") else "-" for c in name)
    return plain if len(plain) <= NAME_LIMIT else f"{plain[:NAME_LIMIT]}-{_hash(name)}"


def _changed(config: RunConfig, names: Sequence[str] | None = None) -> dict[str, Any]:
    """What a configuration changes of the baseline and that has an effect; settings added later
    leave it as it is.
    """
    defaults = RunConfig(**BASELINE)
    chosen = names or [f.name for f in fields(config) if f.name not in _WITHOUT_EFFECT]
    values = {name: getattr(config, name) for name in chosen}
    changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
    local = {
        name: _content(values[name]) for name in ("model", "data", "test_data") if values.get(name)
    }
    return {
        **changed,
        **{f"content of {name}": content for name, content in local.items() if content},
    }


@functools.cache
def _content(path: str) -> str | None:
    """What tells a changed local file or model folder from the one that was measured; None for
    names of a hub.
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

    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not (math.isfinite(value) and value >= 0)
            ):
                raise AbftError(f"resources: {name} = {value!r}, expected a number of at least 0")


@dataclass(frozen=True)
class Grid:
    """A benchmark. Entries of models, tasks and methods are names, or a name with `RunConfig`
    values.
    """

    models: tuple[Named, ...]
    tasks: tuple[Named, ...]
    methods: tuple[tuple[Named, str], ...]  # with the key of METHODS each stands for
    scenarios: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)  # RunConfig values of every cell
    reference: str = "vanilla"  # the method that others are compared with
    calibration_prompts: int = 512
    keep_weights: bool = True
    resources: Resources = field(default_factory=Resources)

    def cells(self) -> list[Cell]:
        """Every cell, cells of one job next to each other. Combinations that mean nothing are left
        out.
        """
        found = []
        for model in self.models:
            for task in self.tasks:
                for method, kind in self.methods:
                    for scenario in self.scenarios:
                        for variant in SCENARIOS[scenario].variants:
                            cells = [
                                self._cell(model, task, method, kind, scenario, variant, s)
                                for s in self.seeds
                            ]
                            found += [cell for cell in cells if applies(cell)]
        twice = [name for name, count in Counter(cell.name for cell in found).items() if count > 1]
        if twice:
            raise AbftError(f"the grid names a cell twice: {twice[0]}")
        order = {job: i for i, job in reversed(list(enumerate(cell.job for cell in found)))}
        return sorted(found, key=lambda cell: order[cell.job])

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
        shared = {**self.settings, **model.settings, **task.settings}
        if training.get("objective", "abft") != "abft":
            shared = {name: value for name, value in shared.items() if name not in PAPERS_OWN}
        own = {} if "data" in task.settings else {"task": task.name}
        values = {**BASELINE, "model": model.name, **own, **shared, **training, "seed": seed}
        try:
            if METHODS[kind].training is not None:
                refuse_without_effect(RunConfig(**values))
            config = RunConfig(**{**values, **variant})
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
    """A grid from YAML. Raises AbftError, naming the nearest known name, for anything that is not
    understood.
    """
    values, origin = read_yaml(path), str(path)
    refuse_unknown_keys(values, [f.name for f in fields(Grid)], origin)
    for name in ("models", "tasks", "methods", "scenarios"):
        if not isinstance(values.get(name), list) or not values[name]:
            raise AbftError(
                f"{origin}: {name} is missing or no list; expected for example `{name}: "
                f"[{_EXAMPLES[name]}]`"
            )
    settings = values.get("settings") or {}
    _refuse_bad_settings(settings, f"{origin}, settings", without=_OF_METHODS)
    settings = _absolute(settings)
    methods = tuple(_method(entry, f"{origin}, methods") for entry in values["methods"])
    grid = Grid(
        models=tuple(_model(entry, f"{origin}, models") for entry in values["models"]),
        tasks=tuple(_task(entry, f"{origin}, tasks") for entry in values["tasks"]),
        methods=methods,
        scenarios=tuple(
            _known(entry, SCENARIOS, "scenario", origin) for entry in values["scenarios"]
        ),
        seeds=_seeds(values.get("seeds", [0]), origin),
        settings=settings,
        reference=_reference(values.get("reference"), [named.name for named, _ in methods], origin),
        calibration_prompts=_count(values.get("calibration_prompts", 512), origin),
        keep_weights=_flag(values.get("keep_weights", True), origin),
        resources=_resources(values.get("resources") or {}, origin),
    )
    _refuse_repetition("models", [named.name for named in grid.models], origin)
    _refuse_repetition("tasks", [named.name for named in grid.tasks], origin)
    _refuse_repetition("methods", [named.name for named, _ in grid.methods], origin)
    _refuse_repetition("scenarios", grid.scenarios, origin)
    _refuse_repetition("seeds", grid.seeds, origin)
    if not grid.cells():
        raise AbftError(f"{origin}: no cell; none of the scenarios applies to any of the methods")
    return grid


_EXAMPLES = {
    "models": "SmolLM2-135M-Instruct",
    "tasks": "SST2, TREC",
    "methods": "vanilla, abft",
    "scenarios": "standard",
}


def _known(name: object, table: Mapping[str, Any], what: str, origin: str) -> str:
    if not isinstance(name, str) or name not in table:
        near = get_close_matches(str(name).lower(), table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise AbftError(f"{origin}: unknown {what} {name!r}: {hint}Known: {', '.join(table)}")
    return name


def _named(entry: object, origin: str) -> Named:
    if isinstance(entry, str):
        return Named(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise AbftError(
            f"{origin}: got {entry!r}, expected a name, or `name: ...` with settings beside it"
        )
    settings = {key: value for key, value in entry.items() if key != "name"}
    return Named(entry["name"], _absolute(settings))


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Local files by their whole path, so that workers elsewhere and later runs find the same
    ones.
    """
    local = {
        name: str(Path(value).resolve())
        for name in ("model", "data", "test_data")
        if isinstance(value := settings.get(name), str) and value and Path(value).exists()
    }
    return {**settings, **local}


def _model(entry: object, origin: str) -> Named:
    named = _named(entry, origin)
    _refuse_bad_settings(named.settings, f"{origin}, {named.name}", ("model",), _OF_METHODS)
    return (
        named
        if "model" in named.settings
        else Named(named.name, _absolute({**named.settings, "model": named.name}))
    )


def _task(entry: object, origin: str) -> Named:
    named = _named(entry, origin)
    _refuse_bad_settings(named.settings, f"{origin}, {named.name}", ("data",), _OF_METHODS)
    if "data" not in named.settings:
        return Named(task_named(named.name).name, named.settings)
    if not isinstance(named.settings["data"], str) or not named.settings["data"]:
        raise AbftError(
            f"{origin}, {named.name}: data = {named.settings['data']!r}, expected a file or a "
            f"hub data set id"
        )
    if named.name in TASKS:
        raise AbftError(f"{origin}: {named.name!r} is a built-in task; give own data another name")
    return named


def _method(entry: object, origin: str) -> tuple[Named, str]:
    named = _named(entry, origin)
    settings = dict(named.settings)
    kind = _known(settings.pop("method", named.name), METHODS, "method", origin)
    _refuse_bad_settings(settings, f"{origin}, {named.name}")
    return Named(named.name, settings), kind


def _refuse_bad_settings(
    settings: object, origin: str, axes: Sequence[str] = (), without: Sequence[str] = ()
) -> None:
    if not isinstance(settings, Mapping):
        raise AbftError(f"{origin}: got {settings!r}, expected keys and values")
    names = [f.name for f in fields(RunConfig)]
    misplaced = [key for key in settings if key in without]
    if misplaced:
        raise AbftError(
            f"{origin}: {misplaced[0]} makes a method what it is; set it in an entry of methods"
        )
    known = [name for name in names if name not in _CELL_FIELDS or name in axes]
    refuse_unknown_keys(dict(settings), known, origin)


def _refuse_repetition(axis: str, names: Sequence[object], origin: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AbftError(
            f"{origin}: {axis} names {twice[0]!r} twice, so the grid would name a cell twice"
        )


def _reference(reference: object, methods: Sequence[str], origin: str) -> str:
    if reference is None:
        return "vanilla" if "vanilla" in methods else methods[0]
    if not isinstance(reference, str) or reference not in methods:
        raise AbftError(
            f"{origin}: reference {reference!r} is none of the methods {', '.join(methods)}"
        )
    return reference


def _count(count: object, origin: str) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise AbftError(
            f"{origin}: calibration_prompts = {count!r}, expected a whole number of at least 1"
        )
    return count


def _flag(keep: object, origin: str) -> bool:
    if not isinstance(keep, bool):
        raise AbftError(f"{origin}: keep_weights = {keep!r}, expected true or false")
    return keep


def _resources(resources: object, origin: str) -> Resources:
    if not isinstance(resources, dict):
        raise AbftError(
            f"{origin}: resources = {resources!r}, expected for example `resources: "
            f"{{cpus: 2, gpus: 1}}`"
        )
    refuse_unknown_keys(resources, [f.name for f in fields(Resources)], f"{origin}, resources")
    return Resources(**resources)


def _seeds(seeds: object, origin: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds:
        raise AbftError(
            f"{origin}: seeds = {seeds!r}, expected a list of whole numbers such as [0, 1, 2, 3]"
        )
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise AbftError(f"{origin}: seed {seed!r} is no whole number")
    return tuple(seeds)
