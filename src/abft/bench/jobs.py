"""Run jobs: the cells that share a model with one set of weights.

Every finished cell is kept at once, so that a killed grid can continue; a failed cell is recorded
and does not stop the others.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from abft.bench.cell import Cell
from abft.bench.labelled_texts import FittedSubject
from abft.bench.methods import METHODS
from abft.bench.store import Store
from abft.bench.subject import Subject
from abft.errors import AbftError, RunInterrupted

Event = Callable[[Cell, str], None]  # "running", "done", "failed"


def run_job(cells: Sequence[Cell], store: Store, event: Event) -> None:
    """Measure the unfinished cells of one job."""
    subject: Subject | FittedSubject | None = None
    for cell in cells:
        if store.read(cell) is not None:
            continue

        event(cell, "running")
        store.forget_failure(cell)
        started = time.perf_counter()
        try:
            # Made for the first cell that is left: a finished job loads nothing.
            is_classifier = METHODS[cell.kind].classifier is not None
            subject = subject or (FittedSubject(cell) if is_classifier else Subject(store, cell))
            record = subject.measure(cell)
            store.write(cell, {**record, "seconds": round(time.perf_counter() - started, 2)})
        except RunInterrupted:
            # The training has saved a checkpoint, so the cell has not failed.
            raise KeyboardInterrupt from None
        except Exception as error:
            store.write_failure(cell, _line(error), traceback.format_exc())
            event(cell, "failed")
        else:
            event(cell, "done")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AbftError) else f"{type(error).__name__}: {text}"[:500]


def jobs(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return the cells grouped by the model and weights that they share."""
    # `Grid.cells` puts the cells of a job next to each other.
    return [list(group) for _, group in groupby(cells, key=lambda cell: cell.job)]
