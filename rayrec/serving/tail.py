"""What replicas do to stay up to date: read the numbered log of catalog changes, and take up what is new in it.

Changes are worked out in a thread of their own and taken up between two answers, first by a version that is about to
answer, then by the one that does, then by the one before: a swap never goes back in the log.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rayrec.errors import InvalidRequest, RayrecError, Unavailable, VersionNotLoaded
from rayrec.item_vectors import ItemVectors
from rayrec.retrieval.base import Update
from rayrec.retrieval.live import LiveCatalog
from rayrec.store import CatalogLog

log = logging.getLogger(__name__)

AT_ONCE = 100  # changes, whose taking up holds answers up for 3 (prices) to 17 ms (new items), of 15,000 items
_WAIT_S = 3.0
_RETRY_S = 1.0


@dataclass(frozen=True)
class Following:
    """A part of an index version that takes up changes.

    part: what is loaded; update: takes them up; taken_back: what would take them back.
    """

    part: Any
    live: LiveCatalog
    update: Callable[[Sequence[Update], int], None]
    taken_back: Callable[[Sequence[Update]], list[Update]]
    vectors: ItemVectors

    @contextlib.contextmanager
    def as_of(self, offset: int) -> Iterator[None]:
        """While the block runs, the part knows the changes up to `offset` alone. Only in the thread that answers.

        It stays as it is if it is not that far yet, or that was more than some hundred changes ago.
        """
        steps = self.live.since(offset) or []
        try:
            if steps:
                self.update([back for _, back in reversed(steps)], offset)
            yield
        finally:
            if steps:
                self.update([update for update, _ in steps], self.live.offset)


Between = Callable[[Callable[[], None]], None]
"""runs what is handed to it while nothing is answered, and waits for it"""


def alone(work: Callable[[], None]) -> None:
    """Of a part that nobody else uses."""
    work()


def no_such_change(offset: int) -> InvalidRequest:
    return InvalidRequest(
        "unknown_offset",
        f"min_offset: no change has the offset {offset}",
        field="min_offset",
        hint="send an offset that a change was answered with",
    )


class Tail:
    """One replica's reading of the log. Thread-safe."""

    def __init__(
        self,
        changes: CatalogLog,
        poll_s: float,
        between: Between,
        on_failure: Callable[[], None] = lambda: None,
        on_change: Callable[[int], None] = lambda offset: None,
    ):
        """on_failure: called when changes could not be taken up; on_change: told the offset up to which they were."""
        self._log, self._poll_s, self._between = changes, poll_s, between
        self._on_failure, self._on_change = on_failure, on_change
        self._following: list[Following] = []
        self._not_before: dict[int, float] = {}  # of a following that failed, by its id: when it is tried again
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rayrec-tail", daemon=True)
        self._thread.start()

    def follow(self, following: Following) -> None:
        """Catch up with the log, for a part that does not answer yet, and go on. Raises Unavailable, NotFound."""
        behind, before = self._log.newest() - following.live.offset, 0
        while behind > 0 and (not before or behind < before):  # else writes are as fast, and it comes no nearer
            end = following.live.offset + behind
            while following.live.offset < end and self._take_some(following, alone):
                pass
            behind, before = self._log.newest() - following.live.offset, behind
        with self._lock:
            self._following.insert(0, following)

    def drop(self, part: Any) -> None:
        with self._lock:
            self._following = [each for each in self._following if each.part is not part]
            self._not_before = {}

    def of(self, part: Any) -> Following:
        """Raises VersionNotLoaded of a part that is not followed any more."""
        for each in self._following:
            if each.part is part:
                return each
        raise VersionNotLoaded("this version is gone")

    def offset(self, part: Any) -> int:
        """Up to which a part knows all changes."""
        return self.of(part).live.offset

    async def reach(self, part: Any, offset: int) -> None:
        """Wait until a part knows the change of an offset.

        Raises InvalidRequest of an offset that was never given, Unavailable if the part does not come to it in time.
        """
        if self.offset(part) < offset and offset > await asyncio.to_thread(self._log.newest):
            raise no_such_change(offset)
        deadline = time.monotonic() + _WAIT_S
        while self.offset(part) < offset:
            self._wake.set()
            if time.monotonic() > deadline:
                raise Unavailable(f"change {offset} is not here yet; this replica is at {self.offset(part)}")
            await asyncio.sleep(0.005)

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        """Some changes for each in turn: who is behind, or fails, keeps no other waiting."""
        more = False
        while not self._closed:
            if not more:
                self._wake.wait(self._poll_s)
            self._wake.clear()
            with self._lock:
                following = list(self._following)
            took = [self._tried(each) for each in following]
            more = any(took)

    def _tried(self, following: Following) -> bool:
        if time.monotonic() < self._not_before.get(id(following), 0.0):
            return False
        try:
            return self._take_some(following, self._between)
        except Exception as error:  # the loop outlives whatever a store or an encoder throws
            if not self._closed:
                # never the message of an error that is not ours: it may hold what an item says
                said = str(error) if isinstance(error, RayrecError) else type(error).__name__
                log.warning("changes of the catalog cannot be taken up (%s); trying again", said)
                self._on_failure()
                self._not_before[id(following)] = time.monotonic() + _RETRY_S
            return False

    def _take_some(self, following: Following, between: Between) -> bool:
        """Whether there were any; perhaps there are more."""
        live = following.live
        if self._log.newest() <= live.offset or not (changes := self._log.changes(live.offset, AT_ONCE)):
            return False
        updates, offset = live.plan(changes, following.vectors), changes[-1].offset

        def take_up() -> None:
            back = following.taken_back(updates)
            following.update(updates, offset)
            live.took(offset, zip(updates, back, strict=True))

        between(take_up)
        self._on_change(live.offset)
        return True
