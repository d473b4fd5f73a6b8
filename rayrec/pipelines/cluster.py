"""Connecting to Ray: a cluster that is there, or one of our own on this machine."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import ray
import ray.data  # sets up its loggers when imported, so before `_QUIET` below
from ray.exceptions import RayError

from rayrec.errors import RayrecError

# Read by Ray when it starts, here or in its workers.
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it every start warns of the change
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # a C++ note about restartable actors on every run; what fails for good still raises here
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_QUIET = ("ray.data", "ray._private")


@contextlib.contextmanager
def connected(
    address: str | None = None, *, num_cpus: int | None = None, num_gpus: int | None = None
) -> Iterator[None]:
    """Be connected to Ray inside the block.

    address: "auto", "ray://host:port" or "host:port"; None starts a cluster on this machine and ends it
    after the block. A connection that was there before stays.
    """
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        with _own_errors():
            yield
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    limits = {} if address != "local" else {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False}
    with _sigterm_kept():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **limits)
    try:
        with _own_errors():
            yield
    finally:
        with _sigterm_kept():
            ray.shutdown()


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Who listens to SIGTERM goes on listening: `ray.init` sets a handler that exits, `ray.shutdown` the default."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """An error of ours that Ray wrapped in a task's or a data set's, as itself."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and (isinstance(cause, RayError) or not isinstance(cause, RayrecError)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from error
