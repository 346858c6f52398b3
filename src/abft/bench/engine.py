"""Run the jobs of a grid, one after another in this process or as Ray tasks, with progress."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from abft.bench.cell import Cell
from abft.bench.grid import Grid
from abft.bench.jobs import Event, jobs, run_job
from abft.bench.store import LOCK, Store
from abft.errors import RunInterrupted
from abft.files import locked


class Progress:
    """Shows a bar on stderr: cells done, running, left and failed."""

    def __init__(self, cells: Sequence[Cell], left: set[str]) -> None:
        self.left = set(left)
        self.running: set[str] = set()
        self.failed = 0

        done = len(cells) - len(left)
        self.bar = tqdm(total=len(cells), initial=done, desc="cells", unit="cell", file=sys.stderr)
        self._show()

    def __call__(self, cell: Cell, event: str) -> None:
        if event == "running":
            self.running.add(cell.name)
        else:
            self.running.discard(cell.name)
            # A job that Ray starts again reports a cell twice.
            if cell.name in self.left:
                self.left.remove(cell.name)
                self.bar.update(1)
                if event == "failed":
                    self.failed += 1
                    tqdm.write(f"failed: {cell.name}", file=sys.stderr)
        self._show()

    def _show(self) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        name = f", {min(self.running)}" if self.running else ""
        self.bar.set_postfix_str(f"{len(self.running)} running{failed}{name}")

    def close(self) -> None:
        self.bar.close()


def run_grid(
    grid: Grid, store: Store, engine: str = "serial", ray_address: str | None = None
) -> int:
    """Run what is left of a grid, and return the number of failed cells.

    Raises:
        AbftError: Ray is missing or does not answer, or another benchmark is running in the folder.
        RunInterrupted: Ctrl-C; finished cells are kept.
    """
    cells = grid.cells()
    refusal = (
        f"another `abft bench` is running in {store.folder}; wait for it or give another --output"
    )
    with locked(store.folder / LOCK, refusal):
        store.sweep()

        if engine == "ray":
            # Ray is an optional dependency.
            from abft.bench.ray_engine import cluster

            runner: Any = cluster(ray_address, grid.resources)
        else:
            runner = _Here()

        left = {cell.name for cell in cells if store.read(cell) is None}
        jobs_left = [job for job in jobs(cells) if any(cell.name in left for cell in job)]
        with runner as run_jobs:
            # The failures that `failures` lists afterwards are this run's.
            for cell in cells:
                store.forget_failure(cell)

            progress = Progress(cells, left)

            def event(cell: Cell, state: str) -> None:
                progress(cell, state)
                if state == "done" and not grid.keep_weights:
                    _remove_weights(cells, store, cell.weights)

            try:
                run_jobs(jobs_left, store, event)
            except KeyboardInterrupt:
                raise RunInterrupted(
                    "stopped; finished cells are kept. Go on with the same command (--output "
                    f"{store.folder})"
                ) from None
            finally:
                progress.close()

        # Cells that an earlier run finished may still have weights, and events may have been lost.
        if not grid.keep_weights:
            for weights in {cell.weights for cell in cells}:
                _remove_weights(cells, store, weights)

    return sum(store.read(cell) is None for cell in cells)


def _remove_weights(cells: Sequence[Cell], store: Store, weights: str | None) -> None:
    """Remove weights once all cells that use them are finished: a failed one is tried again."""
    users = [cell for cell in cells if cell.weights == weights]
    if weights is not None and all(store.read(cell) is not None for cell in users):
        store.remove_weights(users[0])


class _Here:
    """The serial engine: runs one job after another in this process."""

    def __enter__(self) -> Callable[..., None]:
        return self.run

    def __exit__(self, *exception: object) -> None:
        pass

    @staticmethod
    def run(todo: Sequence[Sequence[Cell]], store: Store, event: Event) -> None:
        for job in todo:
            run_job(job, store, event)


def failures(grid: Grid, store: Store) -> list[tuple[str, str]]:
    """Return the name and the error of every cell that failed."""
    errors = [(cell.name, store.failure(cell)) for cell in grid.cells()]
    return [(name, error) for name, error in errors if error is not None]
