"""The settings of `abft predict`, from which its options are derived."""

from dataclasses import dataclass
from typing import Literal

from abft.data.datasets import MOST_SHOWN
from abft.errors import AbftError
from abft.method.settings import DATA, Calibration, PromptSettings, Readout
from abft.runs.config import OUTPUT, DataSettings, Device, ModelSettings
from abft.settings import changed, check_settings, same_as, setting

_OF_DEMONSTRATIONS = ("label_column", "template", "label_words", "k")
# The settings that decide which labels are predicted.
ANSWERS = ("text_column", "demonstrations", *_OF_DEMONSTRATIONS, "readout", "calibrate")


@dataclass
class PredictSettings:
    """How texts are read and predicted, and which demonstrations precede them.

    Raises:
        AbftError: values out of bounds, or settings that contradict each other.
    """

    text_column: str | None = setting(
        None,
        "Column of the texts.",
        panel=DATA,
        follows="as in training; with --demonstrations: text",
    )
    demonstrations: str | None = setting(
        None,
        "File of labelled texts of any task to show before every text (same formats as --data).",
        panel=DATA,
        follows="those of the run's own task",
        path=True,
    )
    label_column: str = same_as(PromptSettings, "label_column")
    template: str = same_as(PromptSettings, "template")
    label_words: dict[str, str] = same_as(DataSettings, "label_words")
    k: int | None = setting(
        None,
        "How many texts of --demonstrations are shown, the classes in turn.",
        panel=DATA,
        follows=f"all, at most {MOST_SHOWN}",
        at_least=1,
    )
    readout: Readout = setting(
        "label_words",
        "What predictions are read from: label_words: the label words' probabilities; attention: "
        "attention on the demonstrations' labels, of the heads that training chose (or all heads).",
        panel=OUTPUT,
    )
    calibrate: Calibration = setting(
        "none",
        "Correct for labels that are favoured whatever the text: divide probabilities by those of "
        "texts without content (content_free: N/A, [MASK], empty), or by their mean over all texts "
        "(batch: better if the classes are about equally frequent).",
        panel=OUTPUT,
    )
    strict: bool = setting(
        False,
        "Refuse rows with an empty text; by default they are skipped (not labelled, or not shown).",
        panel=DATA,
    )
    device: Device = same_as(ModelSettings, "device")
    trust_remote_code: bool = same_as(ModelSettings, "trust_remote_code")
    batch_size: int = setting(16, "Texts in a forward pass.", panel=OUTPUT, at_least=1)
    engine: Literal["serial", "ray"] = setting(
        "serial",
        "serial: this process; ray: Ray Data, one worker per GPU, or per --cpus-per-worker cores.",
        panel=OUTPUT,
    )
    ray_address: str | None = setting(
        None,
        "A running Ray cluster, e.g. host:6379 or auto; its nodes share the folders of --output, "
        "of the run and of its base model.",
        panel=OUTPUT,
        follows="one on this machine",
    )
    cpus_per_worker: int = setting(1, "Cores of a Ray worker.", panel=OUTPUT, at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)
        without = changed(self, _OF_DEMONSTRATIONS)
        if without and self.demonstrations is None:
            raise AbftError(
                f"{', '.join(without)} given without demonstrations: this goes with your own "
                "(--demonstrations FILE); the run shows those that it was trained with"
            )
        if self.ray_address is not None and self.engine != "ray":
            raise AbftError("ray_address goes with engine = 'ray' (--engine ray)")
        if self.device == "balanced" and self.engine == "ray":
            raise AbftError("device = 'balanced': with engine = 'ray', every worker has one GPU")
        if changed(self, ["cpus_per_worker"]) and self.engine != "ray":
            raise AbftError("cpus_per_worker goes with engine = 'ray' (--engine ray)")
