"""Save classifiers so that a killed process leaves either the old or the new one, complete."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abft import __version__
from abft.errors import AbftError
from abft.files import atomic_folder, remove_partials, write_json
from abft.model.weight_files import FULL_RANK_FILE

FILE, FORMAT = "classifier.json", 3
# The weights are in one of these folders, which the file names. A save fills the other one first.
_WEIGHTS = ("weights-1", "weights-2")


@contextmanager
def saved(folder: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a folder for the weights; write `record` when they are complete.

    Raises:
        AbftError: `folder` holds other files than a classifier's.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    is_classifier = (folder / FILE).is_file()
    leftovers = {name for name in names if name.endswith(".partial")}
    if folder.is_file() or (names - {*_WEIGHTS, *leftovers} and not is_classifier):
        raise AbftError(
            f"{folder} holds files that are no saved classifier; give a new or empty folder"
        )

    folder.mkdir(parents=True, exist_ok=True)
    old = read_record(folder).get("weights") if is_classifier else None
    new, other = reversed(_WEIGHTS) if old == _WEIGHTS[0] else _WEIGHTS
    shutil.rmtree(folder / new, ignore_errors=True)
    with atomic_folder(folder / new) as partial:
        yield partial
    versions = {"format": FORMAT, "abft_version": __version__}
    write_json(folder / FILE, {**versions, **record, "weights": new})

    # Delete the old classifier's weights; format 1 had them in the folder itself.
    shutil.rmtree(folder / other, ignore_errors=True)
    (folder / FULL_RANK_FILE).unlink(missing_ok=True)
    remove_partials(folder)


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return what `saved` wrote. Raises AbftError for a folder without it, or a damaged one."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise AbftError(f"{folder} is no saved classifier: it has no {FILE}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise AbftError(f"{path} is damaged ({type(error).__name__}: {error})") from None


def check_format(folder: str | Path, record: Mapping[str, Any]) -> int:
    """Return the format of a record. Raises AbftError for one of a newer version."""
    if record["format"] > FORMAT:
        raise AbftError(
            f"{folder} was saved by abft {record['abft_version']}, which is newer; update abft to "
            "load it"
        )
    return int(record["format"])


def weights_of(folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Return the folder of the weights that a record names."""
    # Format 1 had them in the folder itself.
    if record["format"] == 1:
        return Path(folder)
    return Path(folder) / {name: name for name in _WEIGHTS}[record["weights"]]
