"""Write files and folders whole or not at all. Everything this package writes goes through here."""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from abft.errors import AbftError


def cache_folder() -> Path:
    """Return where converted models and tables are kept: $ABFT_CACHE, else ~/.cache/abft."""
    named = os.environ.get("ABFT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "abft"


def _partial(path: Path) -> Path:
    """Return where `path` is written first: next to it, in a place of this process alone."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def remove_partials(folder: Path) -> None:
    """Delete what killed processes were writing; nothing else may be writing there."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path`, which is removed at the end.

    Raises:
        AbftError: another process, or thread, holds it (`refusal` is the message), or it cannot be
            created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise AbftError(refusal) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AbftError(f"{path} cannot be locked: {reason}") from None
    try:
        yield
    finally:
        # Removed before it is released: whoever waits for the removed file does not get the lock
        # (filelock checks). Windows cannot remove open files, so there an empty file stays.
        with suppress(OSError):
            path.unlink()
        lock.release()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; when the context ends without an error, it becomes `path`."""
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; when the context ends without an error, it becomes `path`.

    `path` may already be an empty folder. The files get the permissions of any new file.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _share(partial)
        if path.is_dir():
            path.rmdir()  # fails, as it should, if it holds anything
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_files(folder: Path, owned: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder; when the context ends without an error, its files move to `folder`.

    Several files cannot be replaced at the same moment. Of the files `owned`, old ones are removed
    first, in reverse order, and new ones arrive in order: a folder with the last one is complete.
    """
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _share(partial)
        for name in reversed(owned):
            (folder / name).unlink(missing_ok=True)
        others = [path.name for path in partial.iterdir() if path.name not in owned]
        for name in (*others, *owned):
            if (partial / name).exists():
                (partial / name).replace(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _share(folder: Path) -> None:
    """Give files the permissions of any new file; safetensors lets nobody else read its files."""
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def stamp_of_file(path: Path) -> dict[str, int]:
    """Return what changes when a file is written anew: its size, and when it was written."""
    status = path.stat()
    return {"bytes": status.st_size, "time": status.st_mtime_ns}
