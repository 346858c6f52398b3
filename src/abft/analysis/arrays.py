"""Plain arrays on disk: one .npz file per analysis in RUN_DIR/analysis.

numpy alone reads them (nothing is pickled).
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from abft.errors import AbftError
from abft.files import atomic_file, write_text
from abft.model.weight_files import ADAPTER_FILE, FULL_RANK_FILE
from abft.runs.run_folder import ANALYSIS, read_config

VERSION = 4  # of the files' contents; files of another version are computed again
_KEY = "made_from"
_LOGGER = logging.getLogger(__name__)


def fingerprint(run: Path) -> str:
    """Return a text that changes with a run's settings, its weights and its own data."""
    config = read_config(run)
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())

    # A run has weights of one kind; built-in tasks and data sets of the hub are no files.
    weight_files = (run / FULL_RANK_FILE, run / ADAPTER_FILE)
    data_files = [Path(name) for name in (config.data, config.test_data) if name]
    for path in (*weight_files, *data_files):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def key_of(**parts: object) -> str:
    """Return everything that arrays were computed from, as one string."""
    return json.dumps({"version": VERSION, **parts}, sort_keys=True)


def read_arrays(
    run: Path, name: str, expected: Mapping[str, str], key: str | None = None
) -> dict[str, np.ndarray] | None:
    """Return the arrays of an analysis, or None if they have to be computed again.

    That is, if they are missing, damaged (with a warning), or were made from another `key`.
    """
    path = run / ANALYSIS / f"{name}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {entry: file[entry] for entry in file.files}
        made_from = str(arrays.pop(_KEY))
        # Arrays of other weights, settings or versions are out of date, not damaged.
        if key is not None and made_from != key:
            return None
        if set(arrays) != set(expected):
            raise ValueError("other arrays than expected")
    except Exception as error:
        # numpy, zipfile and zlib raise many kinds of errors for damaged files.
        _LOGGER.warning("%s is damaged (%s); it is computed again", path, error)
        return None
    return arrays


def write_arrays(run: Path, name: str, arrays: Mapping[str, np.ndarray], key: str) -> Path:
    """Write the arrays of an analysis, whole or not at all, and return the file's path."""
    path = run / ANALYSIS / f"{name}.npz"
    stored: dict[str, Any] = {**arrays, _KEY: np.array(key)}
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **stored)
    return path


def make_folder(run: Path) -> None:
    """Make the folder of the arrays. Raises AbftError if it cannot be made."""
    try:
        (run / ANALYSIS).mkdir(exist_ok=True)
    except OSError as error:
        raise AbftError(f"{run / ANALYSIS} cannot be written: {error.strerror or error}") from None


def write_legend(run: Path, documented: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
    """Write a README.md next to the arrays that describes every one of them."""
    lines = [
        "# Analyses",
        "",
        "Read with `numpy.load(file)`. Axes: M models, L layers, H heads, N prompts, C classes.",
        "",
    ]
    for name, (title, arrays) in documented.items():
        lines += [
            f"## {name}.npz: {title}",
            "",
            *(f"- `{array}`: {meaning}" for array, meaning in arrays.items()),
            "",
        ]
    write_text(run / ANALYSIS / "README.md", "\n".join(lines))
