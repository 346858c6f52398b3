"""Connect to Ray: on this machine, or to a running cluster."""

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from abft.errors import AbftError

ANSWER_SECONDS = 5


@contextmanager
def connected(
    address: str | None, cpus: float = 0, gpus: float = 0, what: str = "a worker"
) -> Iterator[dict[str, float]]:
    """Connect to Ray while the context is open, and yield the cluster's resources.

    Args:
        address: of a running cluster, or "auto"; None = start one on this machine.
        cpus, gpus: what the cluster must have at least, enough for one `what`.

    Raises:
        AbftError: Ray is not installed or does not answer, or the cluster has fewer CPUs or GPUs.
    """
    if importlib.util.find_spec("ray") is None:
        raise AbftError("--engine ray needs Ray: pip install 'abft[ray]'")
    if address is not None:
        _check_address(address)

    # Jobs that ask for no GPU should see none. Ray, an optional dependency, is imported only here.
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
        for name, amount in (("CPU", cpus), ("GPU", gpus)):
            if amount > totals.get(name, 0):
                raise AbftError(
                    f"resources ask for {amount:g} {name} {what}, the Ray cluster has "
                    f"{totals.get(name, 0):g}"
                )
        yield totals
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise AbftError if nothing answers.

    Ray 2.60 itself was still trying after 200 seconds (measured), printing warnings meanwhile.
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
