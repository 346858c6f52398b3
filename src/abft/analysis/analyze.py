"""All analyses of a run, each computed once: what `abft analyze` writes and `abft report` shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from abft.analysis.arrays import (
    fingerprint,
    key_of,
    read_arrays,
    refuse_unwritable,
    write_arrays,
    write_legend,
)
from abft.analysis.basin import LINE, PLANE, line, plane
from abft.analysis.causality import CAUSALITY, causality
from abft.analysis.changes import CHANGES, changes
from abft.analysis.evaluation import EVALUATION, UNSEEN, UNSEEN_PROMPTS, evaluation, unseen
from abft.analysis.examples import EXAMPLES, examples
from abft.analysis.study import Study, open_study, refuse_as_e2e
from abft.errors import AbftError
from abft.runs.run_folder import read_config, refuse_unfinished

Arrays = dict[str, np.ndarray]


DOCUMENTED: dict[str, tuple[str, Mapping[str, str]]] = {
    "evaluation": ("predictions and head maps on the test prompts", EVALUATION),
    "unseen": ("the same where every demonstration has another label than the query", UNSEEN),
    "examples": ("attention rows of single test prompts", EXAMPLES),
    "changes": ("changes of W_Q and W_K by layer", CHANGES),
    "line": ("accuracy along the run's change of weights", LINE),
    "plane": ("accuracy on the plane of the run's and an end-to-end run's change", PLANE),
    "causality": ("accuracy with heads switched off", CAUSALITY),
}


@dataclass(frozen=True)
class Choices:
    """What a user can choose about analyses."""

    e2e: Path | None = None
    """an end-to-end run of the same base model, to compare with"""
    test_prompts: int | None = None
    """test prompts for predictions and head maps; default: as many as the run's own evaluation"""
    points: int = 64
    """test prompts behind every point of the basin and every accuracy with heads off"""
    resolution: int = 5
    """points on each side of the plane; 5 and 9 hold the models themselves"""
    model: str | None = None
    """where the base model is now, if not where the run says"""
    device: str | None = None
    """where to compute, if not where the run did: auto, cpu, cuda or balanced"""
    trust_remote_code: bool = False
    """run Python code that the model's repository brings"""

    def __post_init__(self) -> None:
        for name, least in (("points", 1), ("resolution", 2), ("test_prompts", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise AbftError(f"{name.replace('_', '-')} = {value}: expected at least {least}")


DEFAULTS = Choices()


@dataclass
class Analyses:
    """Arrays by analysis, and why one is missing."""

    found: dict[str, Arrays] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def analyze(run: str | Path, choices: Choices = DEFAULTS) -> Analyses:
    """Compute what is missing, damaged or out of date in RUN_DIR/analysis, and return everything.

    Raises:
        AbftError: an unfinished run, no run at all, an E2E run of another base model, no space to
            write.
    """
    run = Path(run)
    refuse_unfinished(run)
    if choices.e2e is not None:
        refuse_as_e2e(run, choices.e2e)
    count = choices.test_prompts or read_config(run).test_prompts
    if count < 1:
        raise AbftError(f"the run in {run} has no test prompts; give --test-prompts")
    run_key = fingerprint(run)
    e2e_key = fingerprint(choices.e2e) if choices.e2e is not None else None
    used = {"unseen": UNSEEN_PROMPTS, "line": choices.points, "plane": choices.points}
    keys = {
        name: key_of(
            run=run_key,
            e2e=e2e_key if name != "line" else None,
            test_prompts=min(count, used.get(name, count)),
            points=min(count, choices.points) if name == "causality" else None,
            resolution=choices.resolution if name == "plane" else None,
        )
        for name in DOCUMENTED
        if name != "plane" or choices.e2e is not None
    }
    analyses, opened = Analyses(), list[Study]()

    def study() -> Study:
        if not opened:
            refuse_unwritable(run)
            changed = {"test_prompts": count, "trust_remote_code": choices.trust_remote_code}
            changed |= {
                name: value
                for name in ("model", "device")
                if (value := getattr(choices, name)) is not None
            }
            opened.append(open_study(run, choices.e2e, **changed))
        return opened[0]

    made: dict[str, Callable[[], Arrays]] = {
        "evaluation": lambda: evaluation(study()),
        "unseen": lambda: unseen(study()),
        "examples": lambda: examples(study(), analyses.found["evaluation"]),
        "changes": lambda: changes(study()),
        "line": lambda: line(study(), choices.points),
        "plane": lambda: plane(study(), choices.points, choices.resolution),
        "causality": lambda: causality(study(), analyses.found["evaluation"], choices.points),
    }
    for name, key in keys.items():
        stored = read_arrays(run, name, DOCUMENTED[name][1], key)
        if stored is None:
            study()  # what is wrong with the run as a whole is an error, not a missing analysis
            try:
                stored = made[name]()
            except AbftError as error:
                if name == "evaluation":  # others need it
                    raise
                analyses.missing[name] = str(error)
                continue
            write_arrays(run, name, stored, key)
        analyses.found[name] = stored
    if "plane" not in keys:
        analyses.missing["plane"] = "needs an end-to-end run of the same base model: --e2e RUN_DIR"
    if opened:
        write_legend(run, DOCUMENTED)
    return analyses
