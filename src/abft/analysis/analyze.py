"""Run all analyses of a run, each once, for `abft analyze` to write and `abft report` to show."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from abft.analysis.arrays import (
    fingerprint,
    key_of,
    make_folder,
    read_arrays,
    write_arrays,
    write_legend,
)
from abft.analysis.basin import LINE, PLANE, line, plane
from abft.analysis.causality import CAUSALITY, causality
from abft.analysis.changes import CHANGES, changes
from abft.analysis.choices import Choices
from abft.analysis.deletion import DELETION, deletion
from abft.analysis.evaluation import EVALUATION, UNSEEN, UNSEEN_PROMPTS, evaluation, unseen
from abft.analysis.examples import EXAMPLES, examples
from abft.analysis.study import Study, check_e2e_run, open_study
from abft.errors import AbftError
from abft.runs.run_folder import check_finished, read_config

Arrays = dict[str, np.ndarray]

DOCUMENTED: dict[str, tuple[str, Mapping[str, str]]] = {
    "evaluation": ("predictions and head maps on the test prompts", EVALUATION),
    "unseen": ("the same where every demonstration has another label than the query", UNSEEN),
    "examples": ("attention rows of single test prompts", EXAMPLES),
    "changes": ("changes of W_Q and W_K by layer", CHANGES),
    "line": ("accuracy along the run's change of weights", LINE),
    "plane": ("accuracy on the plane of the run's and an end-to-end run's change", PLANE),
    "causality": ("accuracy with heads switched off", CAUSALITY),
    "deletion": ("predictions without the demonstrations that heads look at", DELETION),
}

DEFAULTS = Choices()


@dataclass
class Analyses:
    """Arrays by analysis, and why one is missing."""

    arrays: dict[str, Arrays] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def analyze(run: str | Path, choices: Choices = DEFAULTS) -> Analyses:
    """Compute what is missing, damaged or out of date in RUN_DIR/analysis, and return everything.

    Raises:
        AbftError: an unfinished run, no run at all, an E2E run of another base model, no space to
            write.
    """
    run = Path(run)
    check_finished(run)
    if choices.e2e is not None:
        check_e2e_run(run, choices.e2e)
    config = read_config(run)
    count = choices.test_prompts or config.test_prompts
    if count < 1:
        raise AbftError(f"the run in {run} has no test prompts; give --test-prompts")

    # A key holds everything that an analysis depends on, and nothing else: it is computed again
    # only where its key changed.
    run_key = fingerprint(run)
    e2e_key = fingerprint(choices.e2e) if choices.e2e is not None else None
    prompt_limits = {"unseen": UNSEEN_PROMPTS, "line": choices.points, "plane": choices.points}
    analyses = Analyses()
    if choices.e2e is None:
        analyses.missing["plane"] = "needs an end-to-end run of the same base model: --e2e RUN_DIR"
    if config.k < 2:
        analyses.missing["deletion"] = "needs prompts of at least two demonstrations"
    keys = {
        name: key_of(
            run=run_key,
            e2e=e2e_key if name != "line" else None,
            # "changes" depends on weights alone, not on any prompt.
            test_prompts=None if name == "changes" else min(count, prompt_limits.get(name, count)),
            points=min(count, choices.points) if name in ("causality", "deletion") else None,
            resolution=choices.resolution if name == "plane" else None,
        )
        for name in DOCUMENTED
        if name not in analyses.missing
    }

    studies: list[Study] = []

    def study() -> Study:
        """Load the model when the first analysis needs it."""
        if not studies:
            make_folder(run)
            studies.append(open_study(run, choices))
        return studies[0]

    computations: dict[str, Callable[[], Arrays]] = {
        "evaluation": lambda: evaluation(study()),
        "unseen": lambda: unseen(study()),
        "examples": lambda: examples(study(), analyses.arrays["evaluation"]),
        "changes": lambda: changes(study()),
        "line": lambda: line(study(), choices.points),
        "plane": lambda: plane(study(), choices.points, choices.resolution),
        "causality": lambda: causality(study(), analyses.arrays["evaluation"], choices.points),
        "deletion": lambda: deletion(study(), analyses.arrays["evaluation"], choices.points),
    }
    for name, key in keys.items():
        arrays = read_arrays(run, name, DOCUMENTED[name][1], key)
        if arrays is None:
            # A fault of the run as a whole is an error, not a missing analysis.
            study()
            try:
                arrays = computations[name]()
            except AbftError as error:
                # Other analyses are computed from the evaluation.
                if name == "evaluation":
                    raise
                analyses.missing[name] = str(error)
                continue
            write_arrays(run, name, arrays, key)
        analyses.arrays[name] = arrays

    if studies:
        write_legend(run, DOCUMENTED)
    return analyses
