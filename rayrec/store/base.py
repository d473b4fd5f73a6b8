"""What a store promises, and which one a URL names.

>>> store = open_store("sqlite:///shop/store/live.db")                       # doctest: +SKIP
>>> store.append([{"event_id": "e1", "type": "click", "ts_us": 1, "user_id": "ann", "item_id": "a"}])  # doctest: +SKIP
[1]
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rayrec.errors import SchemaError
from rayrec.schema import Change
from rayrec.workspace import Workspace

Event = dict[str, Any]
"""The columns of EVENTS that are known; event_id, type and ts_us always are."""
Numbered = tuple[int, Event]
"""an event and its offset"""
_FILE = "sqlite:///"
HISTORY = 1_000
"""newest events of a shopper that are read; as many as an index keeps"""
REFUSED = 0
"""in place of an offset: the event is of before its shopper was forgotten"""
EVERYBODY = "everybody"
"""the mark of a bar against all that is older than it"""


class Traces(NamedTuple):
    """Sessions that are or were a user's, sorted, and when their newest event was; 0: none."""

    sessions: list[str]
    newest_us: int


class EventStore(Protocol):
    """A log of events, each in it once, numbered from 1 in the order in which they were taken.

    Safe to use from several threads, and from several processes at a time. What cannot be reached raises Unavailable.
    """

    def append(self, events: Sequence[Event], marks: Sequence[str | None] = ()) -> list[int | None]:
        """Offsets of the events, None of one whose event_id is known already.

        When it returns, all of them survive the loss of power, and every reader sees them, in `history` too.
        marks: whose each is, in the words of `bar`; REFUSED is the offset of one that is barred, and is not kept.
        """
        ...

    def history(self, user_id: str | None, session_id: str | None, limit: int = HISTORY) -> list[Numbered]:
        """The newest events of a shopper and of a session that is nobody's yet, by ts_us, oldest first.

        Of a session that was identified alone: its user's.
        """
        ...

    def identify(self, session_id: str, user_id: str) -> int:
        """From now on, and back to its beginning, the session is the user's; how many events moved. Durable."""
        ...

    def read(self, after: int, limit: int) -> list[Numbered]:
        """Events of offsets above `after`, in their order; a session's user is filled in where known by now."""
        ...

    def end(self) -> int:
        """The highest offset; 0 of an empty log."""
        ...

    def start_after(self, offset: int) -> None:
        """Give no offset up to this one: of a new log in the place of one that others have read so far. Durable."""
        ...

    # -- forgetting: in this order, and again from the beginning if anything ends it early ---------

    def traces(self, user_id: str) -> Traces:
        """What else than their id leads to a user."""
        ...

    def bar(self, until_us: Mapping[str, int]) -> None:
        """From now on nothing of these marks is taken that happened at or before their moment. Durable; never less."""
        ...

    def barred(self, marks: Sequence[str]) -> int:
        """The latest moment up to which one of the marks, or everybody, is barred; -1: none is."""
        ...

    def remove(self, shoppers: Sequence[str] | None, until_us: int) -> dict[str, int]:
        """Take away what these shoppers (None: all) did at or before a moment, and whose sessions were a user's.

        How many events and sessions it were. When it returns no file of the store has any of it, in no free page, log
        or older copy. Offsets of the others stay, and none is given twice. Raises Unavailable if that is not
        reached in time: then it must be called again, which is safe whatever ended the call before.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Wanted:
    """A change that is to be made. item, content, ts_us: as of `Change`.

    unless_after: an offset; the change is made only if the item has none after that. None: whatever came before.
    """

    item_id: str
    item: dict[str, Any] | None
    content: str | None
    ts_us: int
    unless_after: int | None = None


class CatalogLog(Protocol):
    """A log of changes of items, numbered from 1 in the order in which they were taken, and vectors of their contents.

    Safe to use from several threads, and from several processes at a time. What cannot be reached raises Unavailable.
    """

    def change(self, wanted: Sequence[Wanted], vectors: Mapping[str, bytes]) -> list[int | None]:
        """Offsets of the changes, None of one whose `unless_after` forbids it. vectors: to be kept beside them, by key.

        When it returns, all of it survives the loss of power, and every reader sees it.
        """
        ...

    def changes(self, after: int, limit: int) -> list[Change]:
        """Changes of offsets above `after`, in their order."""
        ...

    def vectors(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Those of the keys that are kept."""
        ...

    def newest(self) -> int:
        """The highest offset ever given; 0 before the first change."""
        ...

    def start_after(self, offset: int) -> None:
        """Give no offset up to this one: of a new log in the place of one that bases were made of. Durable."""
        ...

    def cut(self, until: int) -> int:
        """Drop the changes of offsets up to `until`, and the vectors that came with them; how many changes that was."""
        ...

    def close(self) -> None: ...


def open_store(url: str) -> EventStore:
    """sqlite:///path (absolute with four slashes), redis:// or rediss:// (TLS), with a password if it has one.

    Raises SchemaError for a URL that names no store, or a Redis that may lose what it acknowledged; Unavailable for one
    that does not answer.
    """
    if _is_file(url):
        from rayrec.store.sqlite import SqliteStore

        return SqliteStore(url[len(_FILE) :])
    from rayrec.store.redis import RedisStore

    return RedisStore(url)


def open_catalog_log(url: str) -> CatalogLog:
    """The log of a store. URLs and errors as of `open_store`."""
    if _is_file(url):
        from rayrec.store.sqlite_catalog import SqliteCatalogLog

        return SqliteCatalogLog(url[len(_FILE) :])
    from rayrec.store.redis_catalog import RedisCatalogLog

    return RedisCatalogLog(url)


def _is_file(url: str) -> bool:
    """Whether it names a file, else a Redis. Raises SchemaError."""
    if url.startswith(_FILE) and len(url) > len(_FILE):
        return True
    if not url.startswith(("redis://", "rediss://")):
        raise SchemaError("store: expected sqlite:///path, redis://host:port/number or rediss://..., got another URL")
    if importlib.util.find_spec("redis") is None:
        raise SchemaError('store: Redis needs its client; pip install "rayrec[redis]"')
    return False


def file_in(root: str) -> str:
    """URL of the file in which a workspace's own store is, on one machine."""
    return f"{_FILE}{root}/store/live.db"


def default_store(ws: Workspace) -> str | None:
    """URL of the store that a service on one machine keeps in its workspace; None where there is none."""
    return file_in(ws.root) if ws.is_local and ws.exists("store", "live.db") else None


def shopper(user_id: str | None, session_id: str | None) -> str | None:
    """Whose an event is: the user's, or a session's while nobody said whose that is."""
    if user_id is not None:
        return f"u:{user_id}"
    return None if session_id is None else f"s:{session_id}"


def told(event: Event, whose: str | None) -> Event:
    """An event with the user that its session turned out to be."""
    if event.get("user_id") is None and whose is not None and whose.startswith("u:"):
        return {**event, "user_id": whose[2:]}
    return event
