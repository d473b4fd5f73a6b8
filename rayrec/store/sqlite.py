"""The store in one file, for one machine: several processes may have it open at a time.

Write-ahead log with synchronous=FULL: a commit returns after its pages were flushed to the disk.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson

from rayrec.errors import SchemaError, Unavailable
from rayrec.store.base import HISTORY, Event, Numbered, shopper, told

_WAIT_S = 10.0  # for another process's commit
_CACHE_KIB = 64 << 10
_LOG_PAGES = 8_000  # of 4 KiB: a page that many events touch is moved into the file once, not for each
_TABLES = """
CREATE TABLE IF NOT EXISTS events (
  offset INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, shopper TEXT, ts_us INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_shopper ON events (shopper, ts_us);
CREATE TABLE IF NOT EXISTS sessions (session_id TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
"""


class SqliteStore:
    """As EventStore says. A connection per thread; a commit at a time."""

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._own = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing() as db:
            for statement in _TABLES.split(";"):
                db.execute(statement)

    def append(self, events: Sequence[Event]) -> list[int | None]:
        with self._writing() as db:
            last = self._end(db)
            rows = [
                (
                    event["event_id"],
                    self._whose(db, event.get("user_id"), event.get("session_id")),
                    event["ts_us"],
                    orjson.dumps(event),
                )
                for event in events
            ]
            done = db.executemany(
                "INSERT OR IGNORE INTO events (event_id, shopper, ts_us, body) VALUES (?, ?, ?, ?)", rows
            )
            if done.rowcount == len(events):
                return list(range(last + 1, last + 1 + len(events)))
            new = dict(db.execute("SELECT event_id, offset FROM events WHERE offset > ?", (last,)))
        return [new.pop(event["event_id"], None) for event in events]

    def history(self, user_id: str | None, session_id: str | None, limit: int = HISTORY) -> list[Numbered]:
        with self._reading() as db:
            asked = (self._whose(db, user_id, None), self._whose(db, None, session_id))
            rows = [
                row
                for one in sorted({whose for whose in asked if whose is not None})
                for row in db.execute(
                    "SELECT ts_us, offset, body FROM events WHERE shopper = ? ORDER BY ts_us DESC, offset DESC LIMIT ?",
                    (one, limit),
                )
            ]
        return [(offset, orjson.loads(body)) for _, offset, body in sorted(rows)[-limit:]]

    def identify(self, session_id: str, user_id: str) -> int:
        with self._writing() as db:
            db.execute(
                "INSERT INTO sessions VALUES (?, ?) ON CONFLICT (session_id) DO UPDATE SET user_id = excluded.user_id",
                (session_id, user_id),
            )
            moved = db.execute(
                "UPDATE events SET shopper = ? WHERE shopper = ?",
                (shopper(user_id, None), shopper(None, session_id)),
            )
            return moved.rowcount

    def read(self, after: int, limit: int) -> list[Numbered]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT offset, shopper, body FROM events WHERE offset > ? ORDER BY offset LIMIT ?", (after, limit)
            ).fetchall()
        return [(offset, told(orjson.loads(body), whose)) for offset, whose, body in rows]

    def end(self) -> int:
        with self._reading() as db:
            return self._end(db)

    def close(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
        self._own = threading.local()

    @staticmethod
    def _end(db: sqlite3.Connection) -> int:
        return db.execute("SELECT COALESCE(MAX(offset), 0) FROM events").fetchone()[0]

    @staticmethod
    def _whose(db: sqlite3.Connection, user_id: str | None, session_id: str | None) -> str | None:
        if user_id is None and session_id is not None:
            found = db.execute("SELECT user_id FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
            user_id = None if found is None else found[0]
        return shopper(user_id, session_id)

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            # only this thread uses it; close() may come from another
            connection = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                connection.close()
                raise SchemaError(f"store: {self._path} is on a filesystem without a write-ahead log; use a local disk")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            with self._lock:
                self._open.append(connection)
            self._own.connection = connection
        return connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the store does not answer ({error}); try again") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
