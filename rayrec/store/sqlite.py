"""Events in one SQLite file, for one machine: several processes may have it open at a time."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import orjson

from rayrec.store.base import HISTORY, Event, Numbered, shopper, told
from rayrec.store.sqlite_file import SqliteFile

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
  offset INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, shopper TEXT, ts_us INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_shopper ON events (shopper, ts_us);
CREATE TABLE IF NOT EXISTS sessions (session_id TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
"""


class SqliteStore:
    """As EventStore says."""

    def __init__(self, path: str | Path):
        self._file = SqliteFile(path, _TABLES)

    def append(self, events: Sequence[Event]) -> list[int | None]:
        with self._file.writing() as db:
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
        with self._file.reading() as db:
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
        with self._file.writing() as db:
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
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT offset, shopper, body FROM events WHERE offset > ? ORDER BY offset LIMIT ?", (after, limit)
            ).fetchall()
        return [(offset, told(orjson.loads(body), whose)) for offset, whose, body in rows]

    def end(self) -> int:
        with self._file.reading() as db:
            return self._end(db)

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _end(db: sqlite3.Connection) -> int:
        return db.execute("SELECT COALESCE(MAX(offset), 0) FROM events").fetchone()[0]

    @staticmethod
    def _whose(db: sqlite3.Connection, user_id: str | None, session_id: str | None) -> str | None:
        if user_id is None and session_id is not None:
            found = db.execute("SELECT user_id FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
            user_id = None if found is None else found[0]
        return shopper(user_id, session_id)
