"""Files written at once or not at all."""

import json
import shutil
from pathlib import Path

from abft.errors import AbftError

MIB = 2**20


def write_text(path: Path, text: str) -> None:
    """Write a file at once or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON at once or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def share(folder: Path) -> None:
    """Give the files of `folder` the permissions of any new file; safetensors writes files that
    nobody else may read.
    """
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def refuse_full_disk(output: Path, expected: int) -> None:
    """Raise AbftError unless there is room for `expected` bytes and a margin where `output` is to
    be.
    """
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    needed, free = expected + 64 * MIB, shutil.disk_usage(existing).free
    if free < needed:
        raise AbftError(
            f"{output}: {free // MIB} MiB free, about {needed // MIB} MiB needed. Free some space."
        )
