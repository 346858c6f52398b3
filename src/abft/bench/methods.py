"""What is compared: the untouched model, calibrations of its probabilities, and ways to train it.

A trained method is a set of `RunConfig` values, so that every method is trained by the same code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from abft.method.objectives import OBJECTIVES

Calibration = Literal["contextual", "domain", "batch"]


@dataclass(frozen=True)
class Method:
    """One row of the benchmark's tables."""

    title: str
    training: Mapping[str, Any] | None = (
        None  # RunConfig values that make the training; None = not trained
    )
    calibration: Calibration | None = None  # how probabilities are corrected afterwards
    ablation: bool = False  # a row of Table 4


def _training(objective: str, **values: Any) -> dict[str, Any]:
    """Return what makes a training with an objective; LoRA and tasks as in the paper."""
    return {"objective": objective, "train_on": "task", "lora_targets": "qk", **values}


_ABFT = _training("abft", pid=True, head_filter=True)
_E2E = _training("e2e")
_VOTE = _training("vote")

METHODS: dict[str, Method] = {
    "vanilla": Method("vanilla"),
    "contextual_calibration": Method(
        "contextual calibration", calibration="contextual"
    ),  # Zhao et al. 2021
    "domain_calibration": Method(
        "domain-context calibration", calibration="domain"
    ),  # Fei et al. 2023
    "batch_calibration": Method("batch calibration", calibration="batch"),  # Zhou et al. 2024
    "abft": Method(OBJECTIVES["abft"].long_title, _ABFT, ablation=True),
    "abft_no_pid": Method("ABFT, no PID", {**_ABFT, "pid": False}, ablation=True),
    "abft_no_pid_no_filter": Method(
        "ABFT, no PID, no filter", {**_ABFT, "pid": False, "head_filter": False}, ablation=True
    ),
    "abft_no_punishment": Method("ABFT, A = 0", {**_ABFT, "A0": 0.0, "pid": False}, ablation=True),
    "abft_no_reward": Method("ABFT, B = 0", {**_ABFT, "B0": 0.0}, ablation=True),
    "vote": Method(OBJECTIVES["vote"].long_title, _VOTE),
    "vote_and_cross_entropy": Method(
        "ABFT, vote and cross-entropy", {**_VOTE, "cross_entropy": 1.0}
    ),  # as `abft train`
    "e2e": Method("E2E, W_Q and W_K", _E2E),
    "e2e_lora": Method("E2E, LoRA on W_Q and W_K", {**_E2E, "lora_r": 16}),
    "e2e_lora_all": Method(
        "E2E, LoRA on all linear layers", {**_E2E, "lora_r": 16, "lora_targets": "all-linear"}
    ),
    "metaicl": Method(
        "MetaICL, W_Q and W_K", {**_E2E, "train_on": "others", "queries": 1}
    ),  # Min et al. 2022
}


@dataclass(frozen=True)
class Named:
    """An entry of the grid file: its name in tables, and the `RunConfig` values it stands for."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
