"""Run jobs as Ray tasks, on this machine or a cluster whose nodes share the benchmark's folder."""

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from abft.bench.grid import Cell, Resources
from abft.bench.jobs import Event, run_job
from abft.bench.store import Store
from abft.errors import AbftError

POLL_SECONDS = 1.0
RETRIES = 3  # of a job whose worker died
ANSWER_SECONDS = 5


@contextmanager
def cluster(address: str | None, resources: Resources) -> Iterator[Callable[..., None]]:
    """Connect to Ray while open, and yield what runs jobs on it.

    Raises:
        AbftError: no Ray, no answer at its address, a job needs more than the cluster has.
    """
    if importlib.util.find_spec("ray") is None:
        raise AbftError("--engine ray needs Ray: pip install 'abft[ray]'")
    if address is not None:
        _check_address(address)

    # A job without a GPU sees none. Ray is an optional dependency.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    local: dict[str, Any] = {} if address is not None else {"include_dashboard": False}
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local
        )
    except Exception as error:
        raise AbftError(
            f"Ray could not be reached at {address or 'this machine'}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from None

    try:
        # Ray itself would wait for a node that can run such a job.
        totals = ray.cluster_resources()
        for name, amount in (("CPU", resources.cpus), ("GPU", resources.gpus)):
            if amount > totals.get(name, 0):
                raise AbftError(
                    f"resources ask for {amount:g} {name} a job, the Ray cluster has "
                    f"{totals.get(name, 0):g}"
                )
        yield _runner(resources)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise AbftError where nothing answers.

    Ray 2.60 was still trying after 200 seconds (measured), and prints warnings meanwhile.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit():
        raise AbftError(f"Ray address {address!r}: expected host:port, ray://host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise AbftError(f"no Ray cluster answers at {address}: {error}") from None


def _remote_job(cells: Sequence[Cell], folder: str, keep_weights: bool, events: Any) -> None:
    """Run a job in a worker, and send its events to the queue `events`."""

    def send(cell: Cell, state: str) -> None:
        # Progress is no reason to lose a result.
        with contextlib.suppress(Exception):
            events.put((cell.name, state))

    run_job(cells, Store(folder), send, keep_weights)


def _runner(resources: Resources) -> Callable[..., None]:
    """Return what runs jobs on the connected cluster, with progress."""
    import ray
    from ray.util.queue import Queue

    task = ray.remote(_remote_job).options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=RETRIES
    )
    events = Queue(actor_options={"num_cpus": 0})

    def run(todo: Sequence[Sequence[Cell]], store: Store, event: Event, keep_weights: bool) -> None:
        cells = {cell.name: cell for job in todo for cell in job}
        folder = str(store.folder.resolve())
        by_reference = {
            task.remote(list(job), folder, keep_weights, events): list(job) for job in todo
        }
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
