"""Keep the caller's random generators: the trainer seeds the global ones."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch.nn import Module


@contextmanager
def generators_kept(model: "Module") -> Iterator[None]:
    """Restore the global random generators afterwards, also those of the model's GPUs."""
    import torch

    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
