"""Calls that come while others are worked on are worked on together, and each gets its own answer."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayrec.serving.batching import Batcher, by_key


class Gate:
    """Work that doubles numbers, once it is let go; negative ones fail alone, 13 fails its whole batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()

    def __call__(self, calls: list[int]) -> list[int | Exception]:
        self.batches.append(calls)
        assert self.open.wait(10)
        if 13 in calls:
            raise OSError("13")
        return [ValueError(call) if call < 0 else 2 * call for call in calls]


def test_a_lone_call_does_not_wait_and_the_next_ones_gather():
    gate = Gate()

    async def scenario() -> list[int]:
        with ThreadPoolExecutor(1) as threads:
            batcher = Batcher(gate, threads, max_size=3)
            first = asyncio.create_task(batcher(1))
            await asyncio.sleep(0.05)
            others = [asyncio.create_task(batcher(n)) for n in (2, 3, 4, 5)]
            await asyncio.sleep(0.05)
            gate.open.set()
            return await asyncio.gather(first, *others)

    assert asyncio.run(scenario()) == [2, 4, 6, 8, 10]
    assert gate.batches == [[1], [2, 3, 4], [5]]


def test_an_error_is_its_own_calls_alone_and_work_goes_on():
    gate = Gate()
    gate.open.set()

    async def scenario() -> list[object]:
        with ThreadPoolExecutor(1) as threads:
            batcher = Batcher(gate, threads, max_size=2)
            return await asyncio.gather(*(batcher(n) for n in (1, -1, 13, 4, 5)), return_exceptions=True)

    answers = asyncio.run(scenario())
    assert [type(a) for a in answers] == [int, ValueError, OSError, OSError, int]


def test_a_caller_that_gave_up_is_not_worked_for():
    gate = Gate()

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as threads:
            batcher = Batcher(gate, threads, max_size=8)
            first = asyncio.create_task(batcher(1))
            await asyncio.sleep(0.05)
            with pytest.raises((TimeoutError, asyncio.TimeoutError)):
                await asyncio.wait_for(batcher(2), 0.01)
            third = asyncio.create_task(batcher(3))
            gate.open.set()
            await asyncio.gather(first, third)

    asyncio.run(scenario())
    assert gate.batches == [[1], [3]]


def test_calls_of_one_key_are_worked_on_together_and_answers_keep_their_places():
    seen = []

    def work(key: str, values: list[int]) -> list[str]:
        seen.append((key, values))
        if key == "bad":
            raise KeyError(key)
        return [f"{key}{value}" for value in values]

    answers = by_key([("a", 1), ("b", 2), ("bad", 9), ("a", 3)], work)
    assert seen == [("a", [1, 3]), ("b", [2]), ("bad", [9])]
    assert answers[:2] == ["a1", "b2"]
    assert isinstance(answers[2], KeyError)
    assert answers[3] == "a3"
