"""One measurement of a benchmark: what decides its result, and the names of its files."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abft.bench.methods import METHODS
from abft.bench.scenarios import SCENARIOS
from abft.data.mixture_settings import is_file, task_list
from abft.method.settings import PAPER
from abft.runs.config import MODEL, ResolvedConfig, RunConfig, resolve
from abft.settings import names

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
            changes = changed_settings(self.config, [*measured, "seed"])
        else:
            changes = changed_settings(self.config)

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
        digest = _hash([VERSION, changed_settings(self.trained)])
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
        changes = changed_settings(self.config, model_settings)
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


def changed_settings(config: RunConfig, chosen: Sequence[str] | None = None) -> dict[str, Any]:
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
