"""What is compared: the untouched model, calibrations of it, ways to train it, and its peers.

A trained method is a set of `RunConfig` values, so that every method is trained by the same code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from abft.bench.calibration import CALIBRATIONS
from abft.method.objectives import OBJECTIVES


@dataclass(frozen=True)
class Method:
    """One row of the benchmark's tables."""

    title: str
    training: Mapping[str, Any] | None = None  # RunConfig values; None = not trained
    calibration: str | None = None  # key of CALIBRATIONS; how probabilities are corrected
    classifier: str | None = None  # key of CLASSIFIERS; fitted on labelled texts, without prompts
    ablation: bool = False  # a row of Table 4
    revision: int = 0  # of a classifier; increased by a change of what it does


def _training(objective: str, **values: Any) -> dict[str, Any]:
    """Return the `RunConfig` values of a training with an objective.

    LoRA and tasks are as in the paper.
    """
    return {
        "objective": objective,
        "train_on": "task",
        "lora_targets": "qk",
        "cross_entropy": 0.0,
        "kl": 0.0,
        **values,
    }


_ABFT = _training("abft", pid=True, head_filter=True)
_E2E = _training("e2e")
_VOTE = _training("vote")
_ALL_LAYERS = {"lora_r": 16, "lora_targets": "all-linear"}

METHODS: dict[str, Method] = {
    # Nothing is trained.
    "vanilla": Method("vanilla"),
    **{
        f"{name}_calibration": Method(calibration.title, calibration=name)
        for name, calibration in CALIBRATIONS.items()
    },
    # The paper's method and the ablations of its Table 4. A = 0 goes without the PID controller,
    # which would move A away from 0.
    "abft": Method(OBJECTIVES["abft"].long_title, _ABFT, ablation=True),
    "abft_no_pid": Method("ABFT, no PID", {**_ABFT, "pid": False}, ablation=True),
    "abft_no_pid_no_filter": Method(
        "ABFT, no PID, no filter", {**_ABFT, "pid": False, "head_filter": False}, ablation=True
    ),
    "abft_no_punishment": Method("ABFT, A = 0", {**_ABFT, "A0": 0.0, "pid": False}, ablation=True),
    "abft_no_reward": Method("ABFT, B = 0", {**_ABFT, "B0": 0.0}, ablation=True),
    "vote": Method(OBJECTIVES["vote"].long_title, _VOTE),
    # What `abft train` does by default.
    "vote_and_cross_entropy": Method(
        "ABFT, vote and cross-entropy", {**_VOTE, "cross_entropy": 1.0}
    ),
    # Cross-entropy of the correct label word at the query position.
    "e2e": Method("E2E, W_Q and W_K", _E2E),
    "e2e_lora": Method("E2E, LoRA on W_Q and W_K", {**_E2E, "lora_r": 16}),
    "e2e_lora_all": Method("E2E, LoRA on all linear layers", {**_E2E, **_ALL_LAYERS}),
    # Min et al. 2022, arXiv 2110.15943.
    "metaicl": Method("MetaICL, W_Q and W_K", {**_E2E, "train_on": "others", "queries": 1}),
    # What needs no language model, or a small encoder only.
    "tfidf": Method("TF-IDF + logistic regression", classifier="tfidf"),
    "minilm": Method("MiniLM + logistic regression", classifier="minilm"),
    "minilm_knn": Method("MiniLM, nearest neighbours", classifier="minilm_knn"),
    "setfit": Method("SetFit, MiniLM", classifier="setfit"),
    # A probe of the untouched model without demonstrations; `ABFTClassifier` with the best of all
    # read-outs, without and with training. Their cells also hold what each read-out scores.
    "untrained_probe": Method("probe of the untouched model", classifier="untrained_probe"),
    "untrained": Method("ABFTClassifier, untrained", classifier="untrained", revision=1),
    "trained": Method("ABFTClassifier, trained", classifier="trained", revision=1),
}


@dataclass(frozen=True)
class Named:
    """An entry of the grid file: its name in tables, and its `RunConfig` values."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
