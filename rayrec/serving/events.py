"""Events on their way in: checked one by one, made durable together, and read back by the next answer."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import ValidationError

from rayrec.barring import Bars
from rayrec.config import ServeConfig
from rayrec.errors import NotFound, Overloaded, SchemaError, TooLarge
from rayrec.forgetting import mark_of
from rayrec.request import Recent
from rayrec.serving.batching import Batcher
from rayrec.serving.models import EventBody, first_fault
from rayrec.serving.telemetry import Telemetry
from rayrec.store import CatalogLog, Event, EventStore, file_in
from rayrec.store.base import REFUSED, Numbered
from rayrec.workspace import Workspace

K = TypeVar("K")
R = TypeVar("R")
_TOGETHER = 64  # requests whose events are flushed to the disk at a time
_FORGOTTEN = ("forgotten", "ts_us: at or before what was forgotten of this shopper; only what is newer is taken")
_RECENT = 200  # newest events of a shopper that an answer minds beside those of the index


class Events:
    """One replica's way to the store. Lives in one event loop."""

    def __init__(
        self,
        config: ServeConfig,
        store: EventStore,
        telemetry: Telemetry,
        bars: Bars,
        clock: Callable[[], float] = time.time,
    ):
        """bars: of the workspace; a store that is new, or was restored, is told of them."""
        self._config, self._store, self._telemetry, self._clock = config, store, telemetry, clock
        self._bars = bars
        store.bar(bars.known())
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rayrec-events")
        self._reader = ThreadPoolExecutor(2, thread_name_prefix="rayrec-history")
        self._commit = Batcher[list[Event], list[int | None]](self._append, self._writer, max_size=_TOGETHER)
        self._waiting = 0

    def _append(self, calls: list[list[Event]]) -> list[list[int | None] | Exception]:
        self._telemetry.batch.labels("events").observe(len(calls))
        together = [event for events in calls for event in events]
        marks = [mark_of(self._bars, event.get("user_id"), event.get("session_id")) for event in together]
        offsets = self._store.append(together, marks)
        cut = iter(offsets)
        return [[next(cut) for _ in events] for events in calls]

    async def take(self, bodies: Sequence[Any]) -> dict[str, Any]:
        """Keep the good ones, say what is wrong with each other. Raises TooLarge, Overloaded, Unavailable."""
        now_us = int(self._clock() * 1e6)
        good: list[Event] = []
        places: list[int] = []
        rejected: list[dict[str, Any]] = []
        for index, body in enumerate(bodies):
            try:
                good.append(self._checked(body, now_us))
                places.append(index)
            except ValidationError as error:
                rejected.append(_rejected(index, "invalid_event", first_fault(error)))
            except _Refused as error:
                rejected.append(_rejected(index, *error.args))
        if len(good) > self._config.max_pending_events:
            raise TooLarge(f"events: {len(good)}, at most {self._config.max_pending_events} are taken at a time")
        if self._waiting + len(good) > self._config.max_pending_events:
            self._telemetry.degraded.labels("events", "refused").inc()
            raise Overloaded("more events than can be made durable in time; send them again")
        self._waiting += len(good)
        try:
            offsets = await self._commit(good) if good else []
        finally:
            self._waiting -= len(good)
        taken = [offset for offset in offsets if offset]
        late = [index for index, offset in zip(places, offsets, strict=True) if offset == REFUSED]
        rejected = sorted([*rejected, *(_rejected(index, *_FORGOTTEN) for index in late)], key=lambda one: one["index"])
        duplicates = len(offsets) - len(taken) - len(late)
        for state, count in (("accepted", len(taken)), ("duplicate", duplicates)):
            self._telemetry.events.labels(state).inc(count)
        self._telemetry.events.labels("rejected").inc(len(rejected))
        return {
            "accepted": len(taken),
            "duplicates": duplicates,
            "rejected": rejected,
            "offset": max(taken, default=None),
        }

    def _checked(self, body: Any, now_us: int) -> Event:
        """Raises ValidationError, _Refused."""
        event = EventBody.model_validate(body).model_dump(exclude_none=True)
        event.setdefault("event_id", secrets.token_hex(16))
        ts_us = event.setdefault("ts_us", now_us)
        if ts_us > now_us + self._config.max_clock_skew_s * 1e6:
            ahead = (ts_us - now_us) / 1e6
            raise _Refused("in_the_future", f"ts_us: {ahead:.0f} s ahead of this service's clock; microseconds, UTC")
        event["ts_us"] = min(ts_us, now_us)
        return event

    async def identify(self, session_id: str, user_id: str) -> dict[str, Any]:
        """Raises Unavailable."""
        loop = asyncio.get_running_loop()
        return {"moved": await loop.run_in_executor(self._writer, self._store.identify, session_id, user_id)}

    async def recent(self, user_id: str | None, session_id: str | None) -> tuple[tuple[Recent, ...], int]:
        """(what a shopper did, oldest first; until when nothing of theirs may count). Raises Unavailable."""
        loop = asyncio.get_running_loop()
        found, forgotten_us = await loop.run_in_executor(self._reader, self._known, user_id, session_id)
        recent = tuple(
            Recent(event.get("item_id"), event["type"], event["ts_us"], offset, event.get("query"))
            for offset, event in found
            if event["ts_us"] > forgotten_us
        )
        return recent, forgotten_us

    def _known(self, user_id: str | None, session_id: str | None) -> tuple[list[Numbered], int]:
        mark = mark_of(self._bars, user_id, session_id)
        found = self._store.history(user_id, session_id, _RECENT)
        return found, self._store.barred([] if mark is None else [mark])


def store_url(config: ServeConfig, ws: Workspace, nodes: int) -> str | None:
    """Where a service on so many nodes keeps its events; None: nowhere.

    Raises SchemaError for a file of one machine where several nodes would each write their own.
    """
    if config.store is None:
        return file_in(ws.root) if ws.is_local and nodes == 1 else None
    if config.store.startswith("sqlite:") and nodes > 1:
        raise SchemaError(f"store: SQLite is for one machine, this cluster has {nodes} nodes; use redis://")
    return config.store


def count_on(ws: Workspace, store: EventStore | None, changes: CatalogLog | None) -> None:
    """Let a store that took another's place give no number that what was made of the other knows already."""
    for log, kind in ((store, "events"), (changes, "catalog")):
        version = ws.latest(kind)
        if log is not None and version is not None:
            log.start_after(ws.manifest(kind, version).get("log_offset", 0))
    index = ws.current().index
    if store is not None and index is not None:
        store.start_after(ws.manifest("indexes", index).get("events_offset", 0))


class _Refused(Exception):
    """code, message."""


def _rejected(index: int, code: str, message: str) -> dict[str, Any]:
    return {"index": index, "code": code, "message": message}


async def of_store(kept: K | None, ask: Callable[[K], Awaitable[R]]) -> R:
    """What events or a catalog answer. Raises NotFound where the service has no store."""
    if kept is None:
        raise NotFound(
            "this service keeps nothing; name a store in its config: sqlite:///path on one machine, redis:// on many"
        )
    return await ask(kept)
