"""Run jobs as Ray tasks, on this machine or a cluster whose nodes share the benchmark's folder."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from abft.bench.cell import Cell
from abft.bench.grid import Resources
from abft.bench.jobs import Event, run_job
from abft.bench.store import Store
from abft.runs.ray_cluster import connected

POLL_SECONDS = 1.0
RETRIES = 3  # of a job whose worker died


@contextmanager
def cluster(address: str | None, resources: Resources) -> Iterator[Callable[..., None]]:
    """Connect to Ray while the context is open, and yield a function that runs jobs on it.

    Raises:
        AbftError: Ray is missing or does not answer, or a job needs more than the cluster has.
    """
    with connected(address, resources.cpus, resources.gpus, "a job"):
        yield _runner(resources)


def _remote_job(cells: Sequence[Cell], folder: str, events: Any) -> None:
    """Run a job in a worker, and send its events to the queue `events`."""

    def send(cell: Cell, state: str) -> None:
        # Progress is no reason to lose a result.
        with contextlib.suppress(Exception):
            events.put((cell.name, state))

    run_job(cells, Store(folder), send)


def _runner(resources: Resources) -> Callable[..., None]:
    """Return a function that runs jobs on the connected cluster, with progress."""
    import ray
    from ray.util.queue import Queue

    task = ray.remote(_remote_job).options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=RETRIES
    )
    events = Queue(actor_options={"num_cpus": 0})

    def run(todo: Sequence[Sequence[Cell]], store: Store, event: Event) -> None:
        cells = {cell.name: cell for job in todo for cell in job}
        folder = str(store.folder.resolve())
        by_reference = {task.remote(list(job), folder, events): list(job) for job in todo}
        while by_reference:
            ready, _ = ray.wait(list(by_reference), timeout=POLL_SECONDS)

            # The queue's process may have died; results are on disk.
            with contextlib.suppress(Exception):
                for name, state in events.get_nowait_batch(events.size()):
                    event(cells[name], state)

            for reference in ready:
                _close(by_reference.pop(reference), reference, store, event)

    return run


def _close(job: Sequence[Cell], reference: Any, store: Store, event: Event) -> None:
    """Record what a finished or lost job left undone."""
    import ray

    problem = "the worker left no result; the cluster's nodes have to share the output folder"
    try:
        ray.get(reference)
    except Exception as error:
        problem = f"the worker died or could not start: {' '.join(str(error).split())[:300]}"

    # A worker that died may have finished some of its cells.
    for cell in job:
        finished = store.read(cell) is not None
        if not finished and store.failure(cell) is None:
            store.write_failure(cell, problem, "")
        event(cell, "done" if finished else "failed")
