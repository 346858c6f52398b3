"""Runs the jobs of a grid, one after another here or as Ray tasks, with progress."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from abft.bench.grid import Cell, Grid
from abft.bench.jobs import Event, jobs, run_job
from abft.bench.plan import Plan, plan
from abft.bench.store import LOCK, Store
from abft.errors import AbftError, RunInterrupted


class Progress:
    """A bar on stderr: cells done, running and left, with an estimate of the time left."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.expected = {p.cell.name: p.seconds for p in plans if not p.done}
        self.left = dict(self.expected)
        self.running: set[str] = set()
        self.failed = 0
        self.started = time.perf_counter()
        done = len(plans) - len(self.expected)
        self.bar = tqdm(
            total=len(plans),
            initial=done,
            desc="cells",
            unit="cell",
            file=sys.stderr,
            bar_format="{desc} {n}/{total} |{bar:20}| {postfix}",
        )
        self._show()

    def __call__(self, cell: Cell, what: str) -> None:
        if what == "running":
            self.running.add(cell.name)
        else:
            self.running.discard(cell.name)
            if (
                self.left.pop(cell.name, None) is not None
            ):  # a job that Ray starts again tells twice
                self.bar.update(1)
                if what == "failed":
                    self.failed += 1
                    tqdm.write(f"failed: {cell.name}", file=sys.stderr)
        self._show()

    def _show(self) -> None:
        elapsed = time.perf_counter() - self.started
        paid = sum(self.expected.values()) - sum(self.left.values())
        pace = (
            elapsed / paid if paid > 0 and elapsed > 30 else 1.0
        )  # measured against estimated, once it means something
        minutes = pace * sum(self.left.values()) / 60
        failed = f", {self.failed} failed" if self.failed else ""
        name = f", {min(self.running)}" if self.running else ""
        self.bar.set_postfix_str(
            f"{len(self.running)} running, {len(self.left) - len(self.running)} left, about "
            f"{minutes:.0f} min{failed}{name}"
        )

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
        with runner as run_jobs:
            plans = plan(cells, store)
            todo = {p.cell.name for p in plans if not p.done}
            for cell in cells:
                store.forget_failure(cell)
            progress = Progress(plans)
            try:
                run_jobs(
                    [job for job in jobs(cells) if any(c.name in todo for c in job)],
                    store,
                    progress,
                    grid.keep_weights,
                )
            except KeyboardInterrupt:
                raise RunInterrupted(
                    f"stopped; finished cells are kept. Go on with the same command (--output "
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
