"""Load a base model once per process: clones, folds and grids of classifiers share it."""

import copy
import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def base_model(
    name: str, device: str, *, own: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return a base model and its tokenizer; the last one that was loaded is kept.

    Args:
        own: return a copy, whose weights may be changed; otherwise the model that others share.
    """
    from abft.model.attention import lock_of

    model, tokenizer = _loaded(name, device, _stamp(name))
    if not own:
        return model, tokenizer
    with lock_of(model):  # another thread may be reading it
        return copy.deepcopy(model), tokenizer


def forget_base_model() -> None:
    """Drop the model that is kept; classifiers that use it keep their own reference."""
    _loaded.cache_clear()


@functools.lru_cache(maxsize=1)
def _loaded(
    name: str, device: str, stamp: tuple[int, ...]
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from abft.model.loading import load_model

    return load_model(name, device=device)


def _stamp(name: str) -> tuple[int, ...]:
    """Return the file times of a local model, which change when it is written anew."""
    path = Path(name)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return tuple(file.stat().st_mtime_ns for file in files)
