"""How `abft predict` reads texts and runs; its options are derived from these fields."""

from dataclasses import dataclass
from typing import Literal

from abft.errors import AbftError
from abft.method.settings import DATA
from abft.runs.config import OUTPUT, Device, ModelSettings
from abft.settings import check_settings, setting, with_default


@dataclass
class PredictSettings:
    """What decides neither labels nor texts, but how they are read and computed.

    Raises:
        AbftError: values out of bounds, or settings that contradict each other.
    """

    text_column: str | None = setting(
        None, "Column of the texts.", panel=DATA, follows="as in training"
    )
    strict: bool = setting(
        False,
        "Refuse rows with an empty text instead of leaving them without a label.",
        panel=DATA,
    )
    device: Device = with_default(ModelSettings, "device", "auto")
    trust_remote_code: bool = with_default(ModelSettings, "trust_remote_code", False)
    batch_size: int = setting(16, "Texts in a forward pass.", panel=OUTPUT, at_least=1)
    engine: Literal["serial", "ray"] = setting(
        "serial",
        "serial: this process; ray: Ray Data, a worker for each GPU or for so many cores.",
        panel=OUTPUT,
    )
    ray_address: str | None = setting(
        None,
        "A running Ray cluster, e.g. host:6379 or auto; its nodes share the folder of --output.",
        panel=OUTPUT,
        follows="one on this machine",
    )
    cpus_per_worker: int = setting(1, "Cores of a Ray worker.", panel=OUTPUT, at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.ray_address is not None and self.engine != "ray":
            raise AbftError("ray_address goes with engine = 'ray' (--engine ray)")
