"""A finished run made ready for analyses: its session, and the weights between its models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from abft.analysis.choices import Choices
from abft.analysis.space import WeightSpace
from abft.data.encoding import EncodedPrompt
from abft.errors import AbftError
from abft.model.capabilities import capabilities
from abft.runs.config import MODEL, RunConfig
from abft.runs.run_folder import check_finished, read_config, read_digest
from abft.runs.session import Session, open_session, say_if_data_changed
from abft.scoring import metrics
from abft.scoring.evaluate import HeadReport
from abft.settings import names

RUN, E2E = "run", "e2e"


@dataclass(frozen=True)
class Study:
    """A run's session, and the models that analyses compare.

    Attributes:
        session: model, data and test prompts.
        space: moves the model between the weights of the runs.
        layers: number in the model of every attention layer.
        models: points of the weight space by name (before, after, perhaps e2e): factors of the
            run's and of the E2E run's change.
    """

    session: Session
    space: WeightSpace
    layers: tuple[int, ...]
    models: Mapping[str, Mapping[str, float]]

    @property
    def prompts(self) -> Sequence[EncodedPrompt]:
        """Return the test prompts."""
        return self.session.prompts

    def evaluate(
        self,
        at: Mapping[str, float],
        prompts: Sequence[EncodedPrompt],
        bar: tqdm,
        head_gates: dict[int, Tensor] | None = None,
    ) -> tuple[np.ndarray, HeadReport]:
        """Return label probabilities (N, C) and head statistics at a point of the space."""
        self.space.move(at)
        return self.session.evaluate(prompts, bar, head_gates)


def accuracy_of(probabilities_NC: np.ndarray, prompts: Sequence[EncodedPrompt]) -> float:
    """Return the accuracy; NaN where extrapolated weights give no finite probabilities."""
    if not np.isfinite(probabilities_NC).all():
        return float("nan")
    return metrics.accuracy(probabilities_NC, np.array([prompt.target for prompt in prompts]))


def open_study(run: Path, choices: Choices) -> Study:
    """Load a finished run, and the end-to-end run to compare with.

    Prompts and weights are checked.

    Raises:
        AbftError: weights of another model, prompts that are too long, data that are gone.
    """
    # What the user chooses comes before what the run recorded.
    config = read_config(run, trust_remote_code=choices.trust_remote_code)
    config = replace(
        config,
        test_prompts=choices.test_prompts or config.test_prompts,
        model=choices.model or config.model,
        device=choices.device or config.device,
    )

    session = open_session(config)
    say_if_data_changed(run, config, session.whole)
    # Unsupported families are refused now, not in the middle of an analysis.
    capabilities(session.model).implementation  # noqa: B018
    layers = tuple(session.layers)

    runs = {RUN: run} | ({E2E: choices.e2e} if choices.e2e is not None else {})
    space = WeightSpace(session.model, runs)
    session.model = space.model

    models: dict[str, dict[str, float]] = {"before": {}, "after": {RUN: 1.0}}
    if choices.e2e is not None:
        models["e2e"] = {E2E: 1.0}
    return Study(session, space, layers, models)


def check_e2e_run(run: Path, e2e: Path) -> None:
    """Raise AbftError unless `e2e` is a finished end-to-end run of `run`'s base model and data."""
    check_finished(e2e)
    config, e2e_config = read_config(run), read_config(e2e)
    if e2e_config.objective != "e2e":
        raise AbftError(
            f"{e2e} is no end-to-end run (its objective is {e2e_config.objective!r}); compare it "
            "with --compare"
        )

    # Settings of the model that do not affect the result may differ.
    model_settings = names(RunConfig, lambda entry: entry.panel == MODEL and entry.affects_result)
    of_task = {*names(RunConfig, lambda entry: entry.of_task)} - {"task", "strict"}
    for name in (*model_settings, "task_name", *sorted(of_task), "prompt_style"):
        value, e2e_value = getattr(config, name), getattr(e2e_config, name)
        if value != e2e_value:
            raise AbftError(
                f"{run} has {name.removesuffix('_name')} {value!r}, {e2e} has {e2e_value!r}: "
                "base model and data have to be the same"
            )
    if None not in (digests := {read_digest(run), read_digest(e2e)}) and len(digests) > 1:
        raise AbftError(f"{config.data} was another file when {e2e} was trained than for {run}")
