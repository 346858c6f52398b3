"""Runs the jobs of a grid, one after another here or as Ray tasks, with progress."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from abft.bench.grid import Cell, Grid
from abft.bench.jobs import Event, jobs, run_job
from abft.bench.store import LOCK, Store
from abft.errors import AbftError, RunInterrupted


class Progress:
    """A bar on stderr: cells done, running, left and failed."""

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
            if cell.name in self.left:  # a job that Ray starts again reports twice
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


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """One benchmark at a time in a folder."""
    lock = FileLock(store.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AbftError(
            f"another `abft bench` is running in {store.folder}; wait for it or give another "
            f"--output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def run_grid(
    grid: Grid, store: Store, engine: str = "serial", ray_address: str | None = None
) -> int:
    """Run what is left of a grid; returns the number of failed cells.

    Raises:
        AbftError: no Ray, no answer at its address, another benchmark in the folder.
        RunInterrupted: Ctrl-C; finished cells are kept.
    """
    cells = grid.cells()
    with locked(store):
        store.sweep()
        if engine == "ray":
            from abft.bench.ray_engine import cluster

            runner: Any = cluster(ray_address, grid.resources)
        else:
            runner = _Here()
        left = {cell.name for cell in cells if store.read(cell) is None}
        todo = [job for job in jobs(cells) if any(cell.name in left for cell in job)]
        with runner as run_jobs:
            for cell in cells:
                store.forget_failure(cell)
            progress = Progress(cells, left)
            try:
                run_jobs(todo, store, progress, grid.keep_weights)
            except KeyboardInterrupt:
                raise RunInterrupted(
                    "stopped; finished cells are kept. Go on with the same command (--output "
                    f"{store.folder})"
                ) from None
            finally:
                progress.close()

        if not grid.keep_weights:
            for job in jobs(cells):
                if all(store.read(cell) is not None for cell in job):
                    store.remove_weights(job[0])
    return sum(store.read(cell) is None for cell in cells)


class _Here:
    """The serial engine: this process, one job after another."""

    def __enter__(self) -> Callable[..., None]:
        return self.run

    def __exit__(self, *exception: object) -> None:
        pass

    @staticmethod
    def run(todo: Sequence[Sequence[Cell]], store: Store, event: Event, keep_weights: bool) -> None:
        for job in todo:
            run_job(job, store, event, keep_weights)


def failures(grid: Grid, store: Store) -> list[tuple[str, str]]:
    """Name and error of every cell that failed."""
    return [
        (cell.name, error) for cell in grid.cells() if (error := store.failure(cell)) is not None
    ]
