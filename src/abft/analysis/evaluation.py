"""Measure predictions and head maps before and after training (Fig. 1 C; Fig. 4, 10-14).

The same is measured with queries whose label no demonstration has.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from abft.analysis.study import Study
from abft.bench.scenarios import SCENARIOS, Setting
from abft.data.builtin import load_task
from abft.data.encoding import EncodedPrompt
from abft.errors import AbftError
from abft.runs.session import progress_bar
from abft.scoring.evaluate import HeadReport

EVALUATION = {
    "models_M": "before, after (the run), and e2e where one was given",
    "layers_L": "number in the model of every attention layer, from 0",
    "labels_C": "name of every class",
    "targets_N": "class of every test prompt's query",
    "probabilities_MNC": "probability of every class",
    "induction_rate_MLH": "share of prompts in which the head passes the filter",
    "correct_mass_MLH": "attention from the query position on correct label tokens, mean over "
    "prompts",
    "incorrect_mass_MLH": "the same on incorrect label tokens",
}

# Without correct labels there is no attention on them.
UNSEEN = {name: EVALUATION[name] for name in EVALUATION if name != "correct_mass_MLH"}
UNSEEN_PROMPTS = 128


def by_passing(induction_rate_LH: np.ndarray, on_labels_LH: np.ndarray) -> np.ndarray:
    """Return numbers of heads, those that pass the filter most often first, (L * H,).

    Few heads may pass at all: the others follow by how much they look at labels.
    """
    return np.lexsort((-on_labels_LH.ravel(), -induction_rate_LH.ravel()))


def evaluation(study: Study) -> dict[str, np.ndarray]:
    """Return predictions and head maps on the test prompts."""
    return _evaluate_models(study, study.prompts, "test prompts")


def unseen(study: Study) -> dict[str, np.ndarray]:
    """Return the same on prompts whose demonstrations all have another label than the query.

    It follows Fig. 3 and 12-14.
    """
    count = min(UNSEEN_PROMPTS, len(study.session.written))
    config = study.session.config
    setting = Setting(
        study.session.data,
        config.k,
        count,
        config.prompt_style,
        lambda name: load_task(name, config.prompt_style),
        study.session.tokenizer,
    )
    # The scenario writes one set of prompts, of the run's own task.
    (prompt_set,) = SCENARIOS["unseen_label"].write(setting)
    prompts = study.session.encode(prompt_set.prompts)

    arrays = _evaluate_models(study, prompts, "unseen label")
    return {name: arrays[name] for name in UNSEEN}


def _evaluate_models(
    study: Study, prompts: Sequence[EncodedPrompt], title: str
) -> dict[str, np.ndarray]:
    """Return the arrays of `EVALUATION` for prompts.

    Raises:
        AbftError: probabilities that are not finite.
    """
    probabilities_by_model: list[np.ndarray] = []
    reports: list[HeadReport] = []
    for name, factors in study.models.items():
        with progress_bar(f"{title}, {name}", len(prompts)) as bar:
            probabilities, report = study.evaluate(factors, prompts, bar)
        if not np.isfinite(probabilities).all():
            raise AbftError(
                f"the model's probabilities {name} are no numbers; is "
                f"{study.session.config.dtype} too narrow for it?"
            )
        probabilities_by_model.append(probabilities)
        reports.append(report)

    maps: dict[str, Any] = {
        f"{field}_MLH": np.stack([getattr(report, f"{field}_LH") for report in reports])
        for field in ("induction_rate", "correct_mass", "incorrect_mass")
    }
    return {
        "models_M": np.array(list(study.models)),
        "layers_L": np.array(study.layers),
        "labels_C": np.array(study.session.data.task.labels),
        "targets_N": np.array([prompt.target for prompt in prompts]),
        "probabilities_MNC": np.stack(probabilities_by_model),
        **maps,
    }
