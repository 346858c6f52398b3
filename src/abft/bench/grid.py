"""A benchmark: models x tasks x methods x scenarios x seeds, and the cells it makes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abft.bench.cell import BASELINE, Cell, applies, changed_settings
from abft.bench.methods import METHODS, Named
from abft.bench.scenarios import SCENARIOS
from abft.errors import AbftError
from abft.method.settings import PAPER
from abft.runs.config import ResolvedConfig, RunConfig, check_effect, resolve
from abft.settings import Setting, check_settings, setting, settings_of


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
            for variant in chosen_variants(scenario)
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


def chosen_variants(scenario: Named) -> list[Mapping[str, Any]]:
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
        without += changed_settings(config, ["dtype", "load_in_4bit", "revision", "prompt_style"])
    if without:
        raise AbftError(
            f"grid, method {method.name}: {kind} is fitted on texts and does not have "
            f"{', '.join(without)}"
        )
