"""Give a model a cache of keys and values, whatever its version calls the argument."""

import inspect
from typing import Any

from torch import nn
from transformers import Cache


def cache_arguments(module: nn.Module, cache: Cache) -> dict[str, Any]:
    """Return the arguments of `module.forward` with which it reads `cache` and appends to it.

    The argument is `past_key_values` up to transformers 5.23; from 5.24 on, more and more models
    call it `cache`.
    """
    names = inspect.signature(module.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache, "use_cache": True}
