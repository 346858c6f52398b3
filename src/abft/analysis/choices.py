"""What a user can choose about analyses: the options of `abft analyze` and `abft report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from abft.settings import check_settings, setting

ANALYSES = "Analyses"


@dataclass(frozen=True)
class Choices:
    """Which runs, prompts and points the analyses use."""

    e2e: Path | None = setting(
        None,
        "Folder of an end-to-end run of the same base model, to compare with.",
        panel=ANALYSES,
    )
    test_prompts: int | None = setting(
        None,
        "Test prompts for predictions and head maps.",
        panel=ANALYSES,
        follows="as in the run",
        at_least=1,
    )
    points: int = setting(
        64,
        "Test prompts for every point of the basin, with heads off, and without demonstrations.",
        panel=ANALYSES,
        at_least=1,
    )
    resolution: int = setting(
        5,
        "Points on each side of the basin's plane; 5 and 9 contain the models themselves.",
        panel=ANALYSES,
        at_least=2,
    )
    model: str | None = setting(
        None, "Where the base model is now.", panel=ANALYSES, follows="where the run says"
    )
    device: Literal["auto", "cpu", "cuda", "balanced"] | None = setting(
        None, "Where to compute.", panel=ANALYSES, follows="as in the run"
    )
    trust_remote_code: bool = setting(
        False, "Run Python code of the model's repository.", panel=ANALYSES
    )

    def __post_init__(self) -> None:
        check_settings(self)
