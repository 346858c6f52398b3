"""Read the settings of a mixture of tasks, which are texts: its tasks, label words and shots.

Imports neither torch nor data: the command line checks with it before anything is loaded.
"""

from collections.abc import Sequence
from pathlib import Path

from abft.data.builtin import task_named
from abft.data.label_words import Words
from abft.data.tables import is_table
from abft.errors import AbftError

# Kinds of label words in training. Codes are several tokens, and often begin with the same one.
MIXED_WORDS: tuple[Words, ...] = ("own", "arbitrary", "permuted")


def mixed_words(words: str) -> tuple[Words, ...]:
    """Read kinds of label words: "own,arbitrary" -> ("own", "arbitrary")."""
    kinds = [kind.strip() for kind in words.split(",")]
    chosen = tuple(kind for kind in MIXED_WORDS if kind in kinds)
    if len(chosen) < len(kinds):
        raise AbftError(f"words = {words!r}: expected some of {', '.join(MIXED_WORDS)}, once each")
    return chosen


def shot_range(shots: str) -> tuple[int, int]:
    """Read fewest and most demonstrations: "2-32" -> (2, 32), "4" -> (4, 4)."""
    first, dash, last = (part.strip() for part in shots.partition("-"))
    numbers = (first, last) if dash else (first, first)
    if not all(number.isdecimal() for number in numbers):
        raise AbftError(f'shots = {shots!r}: expected two numbers such as "2-32"')
    low, high = map(int, numbers)
    if not 2 <= low <= high:
        raise AbftError(f"shots = {shots!r}: expected at least 2, and no range that falls")
    return low, high


def task_list(tasks: str | None) -> list[str] | None:
    """Read the tasks of a mixture: "SST2,reviews.csv" -> ["SST2", "reviews.csv"]; None -> None."""
    return None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]


def is_file(name: str) -> bool:
    """Return whether a task of a mixture is a data file rather than a built-in task."""
    return is_table(Path(name))


def absolute_tasks(tasks: str) -> str:
    """Return tasks of a mixture with the paths of files that exist resolved."""
    names = task_list(tasks) or []
    resolved = [
        str(Path(name).resolve()) if is_file(name) and Path(name).is_file() else name
        for name in names
    ]
    # Without files, the text stays as it was written, as in older runs.
    return tasks if resolved == names else ",".join(resolved)


def check_tasks(tasks: Sequence[str] | None) -> None:
    """Raise AbftError for no task, or for one that is neither built in nor named like a file."""
    if tasks is None:
        return
    if not tasks:
        raise AbftError("tasks names no task")
    for name in tasks:
        if not is_file(name):
            task_named(name)


def check_files(tasks: Sequence[str] | None) -> None:
    """Raise AbftError for a file that does not exist. A finished run does not need its files."""
    for name in tasks or ():
        if is_file(name) and not Path(name).is_file():
            raise AbftError(f"tasks: no such file: {name}")
