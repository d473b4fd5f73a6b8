"""Live versions: what `current.json` names is loaded beside what answers, and takes its place when it is whole.

A version that cannot be loaded never goes live: what answers goes on answering, and the failure is counted.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rayrec.errors import NotFound, VersionNotLoaded
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

T = TypeVar("T")
_RETRY_FAILED_S = 15.0
_LEAST_KEEP_S = 10.0  # for peers that have not swapped yet, and requests under way


@dataclass(frozen=True)
class Pair:
    """An index version and the model that answers with it."""

    index: str
    model: str | None = None


@dataclass(frozen=True)
class Loaded(Generic[T]):
    pair: Pair
    value: T


class Live(Generic[T]):
    """A part of the service that follows the workspace's pointer.

    load: (pair, what was loaded before or None) -> the part; it may take its time, requests go on meanwhile.
    on_change: told the pair that answers from now on; on_failure: told the pair that could not be loaded; on_drop: told
    what will not answer any more.
    """

    def __init__(
        self,
        ws: Workspace,
        load: Callable[[Pair, T | None], T],
        *,
        poll_s: float = 1.0,
        keep_previous_s: float = 60.0,
        on_change: Callable[[Pair], None] = lambda pair: None,
        on_failure: Callable[[Pair], None] = lambda pair: None,
        on_drop: Callable[[T], None] = lambda part: None,
    ):
        """Load what answers now. Raises NotFound if nothing does, and whatever `load` raises."""
        self._ws = ws
        self._load = load
        self._poll_s = poll_s
        self._keep_previous_s = max(keep_previous_s, _LEAST_KEEP_S)
        self._on_change = on_change
        self._on_failure = on_failure
        self._on_drop = on_drop
        self._wake = threading.Event()
        self._closed = False
        self._failed: tuple[Pair, float] | None = None
        self._previous: tuple[Loaded[T], float] | None = None
        pair = self._pointed()
        if pair is None:
            raise NotFound(f"no index answers in {ws.uri} yet; run 'rayrec index' (and 'rayrec embed' before it)")
        self.current: Loaded[T] = Loaded(pair, load(pair, None))
        on_change(pair)
        self._thread = threading.Thread(target=self._follow, name="rayrec-versions", daemon=True)
        self._thread.start()

    @property
    def previous(self) -> "Loaded[T] | None":
        kept = self._previous
        return None if kept is None else kept[0]

    def get(self, pair: Pair) -> Loaded[T]:
        """The loaded pair. Raises VersionNotLoaded, and looks for it at once."""
        for loaded in (self.current, self.previous):
            if loaded is not None and loaded.pair == pair:
                return loaded
        self._wake.set()
        raise VersionNotLoaded(f"{pair.index} with model {pair.model} is not loaded here; {self.current.pair} answers")

    def of_index(self, index: str) -> "Loaded[T] | None":
        """What is loaded of an index version, whichever its model; None if nothing is."""
        for loaded in (self.current, self.previous):
            if loaded is not None and loaded.pair.index == index:
                return loaded
        self._wake.set()
        return None

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _pointed(self) -> Pair | None:
        pointer = self._ws.current()
        return None if pointer.index is None else Pair(pointer.index, pointer.model)

    def _follow(self) -> None:
        while not self._closed:
            self._wake.wait(self._poll_s)
            self._wake.clear()
            if self._previous is not None and time.monotonic() - self._previous[1] > self._keep_previous_s:
                dropped, self._previous = self._previous[0].value, None
                self._on_drop(dropped)
            try:
                pair = self._pointed()
            except Exception as error:  # the loop outlives whatever a filesystem or a damaged pointer throws
                log.warning("current.json cannot be read (%s); %s goes on answering", error, self.current.pair.index)
                continue
            if pair is not None and pair != self.current.pair and not self._failed_lately(pair):
                self._swap(pair)

    def _failed_lately(self, pair: Pair) -> bool:
        return (
            self._failed is not None
            and self._failed[0] == pair
            and time.monotonic() - self._failed[1] < _RETRY_FAILED_S
        )

    def _swap(self, pair: Pair) -> None:
        kept = self.previous
        if kept is not None and kept.pair == pair:  # a rollback finds its version still loaded
            loaded = kept
        else:
            try:
                loaded = Loaded(pair, self._load(pair, self.current.value))
            except Exception as error:  # anything a damaged version makes a library raise
                self._failed = (pair, time.monotonic())
                log.error("index %s cannot go live (%s); %s goes on answering", pair.index, error, self.current.pair)
                self._on_failure(pair)
                return
        self._previous = (self.current, time.monotonic())
        self.current = loaded
        if kept is not None and kept.pair != pair:
            self._on_drop(kept.value)
        self._on_change(pair)
        log.info("index %s answers now, with model %s", pair.index, pair.model)
