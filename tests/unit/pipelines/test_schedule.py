"""A round after another until it is asked to stop, whatever a single one does."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rayrec.errors import SchemaError, Unavailable
from rayrec.pipelines.schedule import repeat, seconds_of, until_stopped


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1_800), ("6h", 21_600), ("1.5d", 129_600)])
def test_times_are_read(text: str, expected: float) -> None:
    assert seconds_of(text) == expected


@pytest.mark.parametrize("text", ["6", "h", "0s", "-1h", "6 hours", ""])
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(SchemaError, match="like 90s, 30m, 6h or 1d"):
        seconds_of(text)


def test_a_round_that_fails_is_told_and_the_next_one_tries_again() -> None:
    stop = threading.Event()
    told: list[dict[str, object]] = []

    def once() -> dict[str, object]:
        if len(told) == 1:
            raise Unavailable("the store is away")
        if len(told) == 2:
            stop.set()
        return {"promoted": len(told) == 2}

    assert repeat(once, 0.001, stop, lambda line: told.append(json.loads(line))) == 3
    assert [said["round"] for said in told] == [1, 2, 3]
    assert [said.get("promoted") for said in told] == [False, None, True]
    assert told[1]["error"] == "the store is away"


def test_rounds_start_so_many_seconds_apart() -> None:
    stop = threading.Event()
    starts: list[float] = []

    def once() -> dict[str, object]:
        starts.append(time.monotonic())
        time.sleep(0.05)
        if len(starts) == 3:
            stop.set()
        return {}

    repeat(once, 0.2, stop, lambda line: None)
    assert all(0.19 <= after - before < 0.24 + 0.2 for before, after in itertools.pairwise(starts))


def test_a_signal_sets_the_event_and_what_was_there_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with until_stopped() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_waits_for_its_next_round_ends_cleanly_at_once() -> None:
    code = (
        "from rayrec.pipelines.schedule import repeat, until_stopped\n"
        "with until_stopped() as stop:\n"
        "    repeat(lambda: {'promoted': False}, 3600, stop, lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["round"] == 1
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=10)
    assert (process.returncode, rest) == (0, "")
