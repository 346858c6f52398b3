"""Keep results on disk: a file for each cell, and what cells share.

Files are written whole or not at all.

cells/NAME.json          metrics and predictions of a finished cell
cells/NAME.failed.json   the error of a failed one; a restart tries it again
scores/HASH.npz          label probabilities of one prompt set under one set of weights
weights/NAME/            a run folder: trained weights, their configuration and cost
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abft.bench.cell import VERSION, Cell
from abft.data.encoding import LabelTokens
from abft.data.prompts import Prompt
from abft.errors import AbftError
from abft.files import atomic_file, remove_partials, write_json, write_text

LOCK = ".lock"
_LOGGER = logging.getLogger(__name__)
# Errors from reading a file that is missing, damaged or has unexpected contents.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Scores:
    """A model's measurements on one set of prompts.

    Attributes:
        probabilities: of the labels, (N, C).
        heads: over the threshold, mean over prompts; None without demonstrations.
        correct_mass: a head's mean attention on correct labels.
        incorrect_mass: the same on incorrect labels.
    """

    probabilities: np.ndarray
    heads: float | None = None
    correct_mass: float | None = None
    incorrect_mass: float | None = None


class Store:
    """The folder of a benchmark."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._warned: set[str] = set()

    def _warn(self, message: str) -> None:
        """Log a warning once, on stderr unless logging is set up otherwise."""
        if message not in self._warned:
            self._warned.add(message)
            _LOGGER.warning(message)

    def prepare(self, grid_file: str | Path) -> None:
        """Make the folder, with a copy of the grid file.

        Raises:
            AbftError: the folder holds something else, or cannot be written.
        """
        if self.folder.is_file():
            raise AbftError(f"output {self.folder} is a file; give a folder")
        filled = self.folder.is_dir() and any(self.folder.iterdir())
        if filled and not (self.folder / "cells").is_dir():
            raise AbftError(
                f"output folder {self.folder} holds files that are no benchmark; give a new or "
                f"empty folder"
            )

        grid_file = Path(grid_file)
        try:
            for part in ("cells", "scores", "weights"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            write_text(self.folder / grid_file.name, grid_file.read_text(encoding="utf-8"))
        except OSError as error:
            raise AbftError(
                f"output folder {self.folder} cannot be written: {error.strerror or error}"
            ) from None

    def tables(self, grid_file: str | Path) -> Path:
        """Return the folder of a grid file's tables.

        Several grids can share the benchmark's folder, and with it cells and weights.
        """
        return self.folder / "tables" / Path(grid_file).stem

    def weights(self, cell: Cell) -> Path:
        """Return the run folder of a cell's training."""
        assert cell.weights is not None
        return self.folder / "weights" / cell.weights

    def _path(self, cell: Cell, ending: str = ".json") -> Path:
        return self.folder / "cells" / f"{cell.name}{ending}"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Return a finished cell's result.

        None if there is none or, with a logged warning, if the file is damaged or was made with
        other settings.
        """
        path = self._path(cell)
        if not path.is_file():
            return None

        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version, digest = record["version"], record["digest"]
            parts = (record["metrics"], record["predictions"])
            complete = all(isinstance(part, dict) for part in parts)
        except _UNREADABLE:
            complete, version, digest = False, None, None

        if not complete:
            self._warn(f"{path} is damaged; the cell is computed again")
        elif version != VERSION:
            self._warn(
                f"{path} is of version {version}, expected {VERSION}; the cell is computed again"
            )
        elif digest != cell.digest:
            self._warn(f"{path} was made with other settings; the cell is computed again")
        else:
            return record
        return None

    def write(self, cell: Cell, record: dict[str, Any]) -> None:
        """Keep a finished cell."""
        identity = {
            name: getattr(cell, name)
            for name in ("model", "task", "method", "kind", "scenario", "seed")
        }
        document = {
            "version": VERSION,
            "digest": cell.digest,
            **identity,
            "variant": dict(cell.variant),
            **record,
        }
        write_json(self._path(cell), _finite(document))
        self._path(cell, ".failed.json").unlink(missing_ok=True)

    def write_failure(self, cell: Cell, error: str, trace: str) -> None:
        """Keep the error of a failed cell."""
        write_json(self._path(cell, ".failed.json"), {"error": error, "trace": trace})

    def failure(self, cell: Cell) -> str | None:
        """Return the error of a cell that failed when it was last tried, or None."""
        path = self._path(cell, ".failed.json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))["error"]
        except _UNREADABLE:
            return None

    def forget_failure(self, cell: Cell) -> None:
        """Delete the error of a cell, which is about to be tried again."""
        self._path(cell, ".failed.json").unlink(missing_ok=True)

    def scores(self, key: str) -> Scores | None:
        """Return stored scores; None where there are none, or damaged ones."""
        try:
            with np.load(self.folder / "scores" / f"{key}.npz") as file:
                heads = [None if np.isnan(value) else float(value) for value in file["heads"]]
                return Scores(file["probabilities"], *heads)
        except (*_UNREADABLE, EOFError):
            return None
        except Exception as error:
            # zipfile raises types of its own.
            self._warn(f"stored scores {key} are damaged ({error}); computed again")
            return None

    def write_scores(self, key: str, scores: Scores) -> None:
        """Keep scores, whole or not at all; other processes may write the same."""
        # An array of numbers has no None: nan takes its place.
        values = (scores.heads, scores.correct_mass, scores.incorrect_mass)
        heads = [np.nan if value is None else value for value in values]
        path = self.folder / "scores" / f"{key}.npz"
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, probabilities=scores.probabilities, heads=np.array(heads, dtype=float))

    def remove_weights(self, cell: Cell) -> None:
        """Delete the weights of a finished job; `sweep` deletes what a kill leaves of them."""
        if cell.weights is not None and self.weights(cell).is_dir():
            # Renamed first: half-deleted weights must not look like a run folder.
            trash = self.folder / "weights" / f".removing-{cell.weights}"
            shutil.rmtree(trash, ignore_errors=True)
            self.weights(cell).replace(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes left half-written; nothing else may be running here."""
        for path in self.folder.glob("weights/.removing-*"):
            shutil.rmtree(path, ignore_errors=True)
        parts = (self.folder / part for part in ("cells", "scores"))
        for folder in (self.folder, *parts, *self.folder.glob("tables/*")):
            remove_partials(folder)


def scores_key(cell: Cell, words: LabelTokens, prompts: Sequence[Prompt]) -> str:
    """Return a name for the scores of prompts and label tokens under the model of a cell."""
    config = cell.config
    contents = [
        (prompt.text, prompt.label_spans, prompt.label_classes, prompt.target) for prompt in prompts
    ]
    return _key([cell.subject, config.prompt_style, config.threshold, list(words), contents])


def texts_key(cell: Cell, texts: Sequence[str]) -> str:
    """Return a name for the perplexity of texts under the model of a cell."""
    return _key([cell.subject, "perplexity", list(texts)])


def _key(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _finite(value: Any) -> Any:
    """Return a value with null for numbers that JSON does not have: infinity and nan."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
