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
from abft.data.mixture_settings import is_file, task_list
from abft.errors import AbftError
from abft.method.settings import PAPER
from abft.runs.config import (
    MODEL,
    ResolvedConfig,
    RunConfig,
    check_effect,
    resolve,
    written_settings,
)
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

VERSION = 1  # of cell files; increased by a change of what is measured, or of BASELINE
BASELINE = {**PAPER, "lr": None}  # what every cell starts from; the rate follows the model's size
NAME_LIMIT = 180  # characters of a file name
_STORED_NAMES = {"prompt_style": "protocol"}  # settings that were renamed after cells were stored


@dataclass(frozen=True)
class Cell:
    """One measurement: model, task, method, scenario (in one of its variants) and seed."""

    model: str
    task: str
    method: str  # its name in the grid
    kind: str  # key of METHODS
    scenario: str
    seed: int
    config: ResolvedConfig  # everything that decides the training and the test prompts
    variant: Mapping[str, Any] = field(default_factory=dict)
    calibration_prompts: int = 512

    @property
    def name(self) -> str:
        """Return the cell's name, for people and for its files."""
        changes = "".join(f"-{key}={value}" for key, value in self.variant.items())
        scenario = f"{self.scenario}{changes}"
        return _safe(f"{self.model}__{self.task}__{self.method}__{scenario}__seed{self.seed}")

    @functools.cached_property
    def digest(self) -> str:
        """Return a hash of everything that decides the result.

        Stored results with another digest are not used.
        """
        # Training settings do not matter for an untouched model, but the seed does: calibrations
        # and draws of labelled texts follow it.
        if self.trained is None:
            measured = names(
                RunConfig, lambda run_setting: run_setting.measuring and run_setting.affects_result
            )
            changes = _changed(self.config, [*measured, "seed"])
        else:
            changes = _changed(self.config)

        calibration = self.calibration_prompts if METHODS[self.kind].calibration else None
        variant = dict(self.variant)
        parts = [VERSION, changes, self.kind, self.scenario, variant, calibration]

        # What was changed after cells had been stored; all other cells keep their digest.
        if revision := METHODS[self.kind].revision:
            parts.append(revision)
        if self.config.max_text_tokens is not None:
            parts.append("cut in measuring too")
        if self.scenario == "template_consistency" and self.config.data is not None:
            parts.append("line ends before labels")
        return _hash(parts)

    @property
    def trained(self) -> ResolvedConfig | None:
        """Return the training configuration that this cell needs; None = the untouched model."""
        if METHODS[self.kind].training is None:
            return None

        # The scenarios measure, the training run itself does not.
        return dataclasses.replace(self.config, test_prompts=0)

    @functools.cached_property
    def weights(self) -> str | None:
        """Return the folder name of the trained weights; cells with equal training share it."""
        if self.trained is None:
            return None
        digest = _hash([VERSION, _changed(self.trained)])
        return _safe(f"{self.task}-{self.kind}-seed{self.seed}-{digest}")

    @property
    def factor(self) -> float:
        """Return by how much the change of the weights is multiplied; 1 = as trained."""
        return float(self.variant.get("factor", 1))

    @functools.cached_property
    def subject(self) -> str:
        """Return a name for the model that this cell measures, untouched or trained."""
        model_settings = names(
            RunConfig, lambda run_setting: run_setting.panel == MODEL and run_setting.affects_result
        )
        changes = _changed(self.config, model_settings)
        classifier = METHODS[self.kind].classifier
        if classifier is not None:
            return _hash([VERSION, changes, classifier])
        factor = [] if self.factor == 1 else [self.factor]
        return _hash([VERSION, changes, self.weights, *factor])

    @property
    def job(self) -> tuple[object, ...]:
        """Return what the cells of one job share: a loaded model and the way it is scored."""
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
    """Return a name as a file name; a long one is cut and ends in a hash of the whole."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_=.+") else "-" for c in name)
    return plain if len(plain) <= NAME_LIMIT else f"{plain[:NAME_LIMIT]}-{_hash(name)}"


def _changed(config: RunConfig, chosen: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings that affect results and differ from the baseline.

    With `chosen`, only of these. Local files and folders count by their content.
    """
    baseline = resolve(RunConfig(**BASELINE))
    chosen = chosen or names(RunConfig, lambda run_setting: run_setting.affects_result)
    values = {name: getattr(config, name) for name in chosen}

    # Only differences: a setting that is added to abft later leaves digests as they are.
    changes = {
        _STORED_NAMES.get(name, name): value
        for name, value in values.items()
        if value != getattr(baseline, name)
    }

    # A file that was edited keeps its name.
    contents = {name: _content(values[name]) for name in _path_names() if values.get(name)}
    files = [name for name in task_list(values.get("tasks")) or () if is_file(name)]
    contents |= {f"task {i}": _content(name) for i, name in enumerate(files)}
    by_content = {f"content of {name}": content for name, content in contents.items() if content}
    return {**changes, **by_content}


def _path_names() -> list[str]:
    return names(RunConfig, lambda run_setting: run_setting.path)


@functools.cache
def _content(path: str) -> str | None:
    """Return a hash that changes with a local file or model folder; None for hub ids."""
    local = Path(path)
    if local.is_file() and local.suffix != ".gguf":
        # Earlier versions parsed numbers in tables: this keeps their results apart.
        read_as = b"cells as text" if local.suffix.lower() in (".csv", ".tsv") else b""
        return hashlib.sha256(read_as + local.read_bytes()).hexdigest()[:16]

    # Weights are large: name, size and time of change have to be enough.
    files = [local]
    if not local.is_file():
        files = sorted([*local.glob("*.safetensors"), *local.glob("*.json")])
    if not files:
        return None
    return _hash([[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files])


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
    """A benchmark. Entries of models, tasks and methods are names, or a name with settings.

    A scenario's settings choose among its variants.
    """

    models: Sequence[Named]
    tasks: Sequence[Named]
    methods: Sequence[tuple[Named, str]]  # with the key of METHODS of each
    scenarios: Sequence[Named]
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
            "scenarios": [named.name for named in self.scenarios],
            "seeds": [*self.seeds],
        }
        for axis, entries in axes.items():
            if not entries:
                raise AbftError(f"{axis} is empty; expected at least one entry")
            duplicates = [entry for entry, count in Counter(entries).items() if count > 1]
            if duplicates:
                raise AbftError(
                    f"{axis} names {duplicates[0]!r} twice, so the grid would name a cell twice"
                )

        if self.reference is not None and self.reference not in self.method_names:
            methods = ", ".join(self.method_names)
            raise AbftError(f"reference {self.reference!r} is none of the methods {methods}")

    @property
    def method_names(self) -> list[str]:
        """Return the methods' names in tables."""
        return [named.name for named, _ in self.methods]

    @property
    def reference_method(self) -> str:
        """Return the name of the method that others are compared with."""
        first = "vanilla" if "vanilla" in self.method_names else self.method_names[0]
        return self.reference or first

    def cells(self) -> list[Cell]:
        """Return every cell, those of one job next to each other.

        Combinations that make no sense are left out.
        """
        cells = [
            self._cell(model, task, method, kind, scenario.name, variant, seed)
            for model in self.models
            for task in self.tasks
            for method, kind in self.methods
            for scenario in self.scenarios
            for variant in _variants(scenario)
            for seed in self.seeds
        ]
        cells = [cell for cell in cells if applies(cell)]

        # Different entries can have the same file name.
        counts = Counter(cell.name for cell in cells)
        duplicates = [name for name, count in counts.items() if count > 1]
        if duplicates:
            raise AbftError(f"the grid names a cell twice: {duplicates[0]}")

        # Jobs in the order of their first cells.
        order: dict[tuple[object, ...], int] = {}
        for i, cell in enumerate(cells):
            order.setdefault(cell.job, i)
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

        # Settings that all methods share reach those whose objective has them.
        shared = {**self.settings, **model.settings, **task.settings}
        shared = {
            name: value for name, value in shared.items() if _has(objective, RUN_SETTINGS[name])
        }

        # An entry's settings override the grid's, a method's override all others.
        by_name = {} if "data" in task.settings else {"task": task.name}
        values = {**BASELINE, "model": model.name, **by_name, **shared, **training, "seed": seed}
        try:
            # An untouched model ignores all settings of a training.
            if METHODS[kind].training is not None:
                check_effect(RunConfig(**values))
            changes = {name: value for name, value in variant.items() if name in RUN_SETTINGS}
            config = resolve(RunConfig(**{**values, **changes}))
        except AbftError as error:
            raise AbftError(f"grid, method {method.name}, task {task.name}: {error}") from None

        if METHODS[kind].classifier is not None:
            _check_classifier(config, method, kind)
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


def _variants(scenario: Named) -> list[Mapping[str, Any]]:
    """Return the variants of a scenario that its entry asks for; all, if it says nothing."""
    return [
        variant
        for variant in SCENARIOS[scenario.name].variants
        if all(variant[name] in values for name, values in scenario.settings.items())
    ]


def _has(objective: str, run_setting: Setting) -> bool:
    """Return whether an objective has a setting."""
    return not run_setting.objectives or objective in run_setting.objectives


def _check_classifier(config: ResolvedConfig, method: Named, kind: str) -> None:
    """Raise AbftError for settings that a method fitted on texts does not have."""
    without = [*method.settings]
    # Methods with a language model load it as `ABFTClassifier` does.
    if METHODS[kind].classifier in ("untrained_probe", "untrained", "trained"):
        without += _changed(config, ["dtype", "load_in_4bit", "revision", "prompt_style"])
    if without:
        raise AbftError(
            f"grid, method {method.name}: {kind} is fitted on texts and does not have "
            f"{', '.join(without)}"
        )


def applies(cell: Cell) -> bool:
    """Return whether the cell's scenario makes sense for its method."""
    needs, trained = SCENARIOS[cell.scenario].needs, cell.trained
    is_classifier = METHODS[cell.kind].classifier is not None
    if is_classifier or needs == "classifier":
        return is_classifier and needs == "classifier"
    return (
        needs == "any"
        or (needs == "own task" and (trained is None or trained.train_on == "task"))
        or (needs == "training" and trained is not None)
        or (needs == "abft" and cell.kind == "abft" and cell.config.objective == "abft")
    )


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
    if not _variants(scenario):
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
