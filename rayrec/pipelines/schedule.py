"""A job that is submitted once and does something again and again, until it is asked to stop.

ray job submit --working-dir . -- python jobs/update_model.py --workspace s3://shop/ws --every 6h
"""

import json
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from rayrec.errors import RayrecError, SchemaError, described

log = logging.getLogger(__name__)

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds_of(text: str) -> float:
    """Of `90s`, `30m`, `6h` or `1d`. Raises SchemaError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or not float(found[1]):
        raise SchemaError(f"every: expected a time above 0 like 90s, 30m, 6h or 1d, got {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def repeat(
    once: Callable[[], dict[str, Any]], every_s: float, stop: threading.Event, tell: Callable[[str], None] = print
) -> int:
    """Do it now and every so many seconds from start to start, and tell each round's result in a line of JSON.

    A round that fails is told too, and the next one tries again: a store or a node that is away comes back. One that
    takes longer is followed by the next at once. Returns how many rounds there were when `stop` was set.
    """
    rounds = 0
    while not stop.is_set():
        started = time.monotonic()
        rounds += 1
        said: dict[str, Any] = {"round": rounds, "at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        try:
            said |= once()
        except Exception as error:  # the loop's edge
            log.warning("round %d failed: %s", rounds, described(error))
            said |= {"error": str(error) if isinstance(error, RayrecError) else type(error).__name__}
        tell(json.dumps(said))
        stop.wait(max(0.0, every_s - (time.monotonic() - started)))
    return rounds


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets: a wait ends at once, a round is finished first.

    Who cannot wait for that may kill it: nothing half done is ever published, and the next round resumes from the last
    epoch.
    """
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
