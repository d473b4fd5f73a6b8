"""Events in one SQLite file, for one machine: several processes may have it open at a time."""

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson

from rayrec.errors import Unavailable
from rayrec.store.base import EVERYBODY, HISTORY, REFUSED, Event, Numbered, Traces, shopper, told
from rayrec.store.sqlite_file import SqliteFile

_TABLES = """
CREATE TABLE IF NOT EXISTS events (
  offset INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, shopper TEXT, ts_us INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_shopper ON events (shopper, ts_us);
CREATE TABLE IF NOT EXISTS sessions (session_id TEXT PRIMARY KEY, user_id TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS barred (mark TEXT PRIMARY KEY, until_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS removals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_LAST, _REMOVED, _CLEANED = "last", "removed", "cleaned"
"""of removals: the offset up to which all are given; how many there were, and how many of them left no free space"""
_CLEAN_S = 30.0  # for readers of other threads and processes to let go of what they see


class SqliteStore:
    """As EventStore says."""

    def __init__(self, path: str | Path):
        self._file = SqliteFile(path, _TABLES)

    def append(self, events: Sequence[Event], marks: Sequence[str | None] = ()) -> list[int | None]:
        with self._file.writing() as db:
            until = {mark: self._barred(db, [mark] if mark else []) for mark in set(marks)}
            whose = marks or [None] * len(events)
            refused = [e["ts_us"] <= until.get(mark, -1) for e, mark in zip(events, whose, strict=True)]
            taken = iter(self._insert(db, [event for event, no in zip(events, refused, strict=True) if not no]))
        return [REFUSED if no else next(taken) for no in refused]

    def _insert(self, db: sqlite3.Connection, events: Sequence[Event]) -> list[int | None]:
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
        with self._counting_on(db, last):
            done = db.executemany(
                "INSERT OR IGNORE INTO events (event_id, shopper, ts_us, body) VALUES (?, ?, ?, ?)", rows
            )
        if done.rowcount == len(events):
            return list(range(last + 1, last + 1 + len(events)))
        new = dict(db.execute("SELECT event_id, offset FROM events WHERE offset > ?", (last,)))
        return [new.pop(event["event_id"], None) for event in events]

    def history(self, user_id: str | None, session_id: str | None, limit: int = HISTORY) -> list[Numbered]:
        with self._file.reading() as db:
            mine, theirs = shopper(user_id, None), self._whose(db, None, session_id)
            if mine is not None and theirs != shopper(None, session_id):  # the session is somebody's by now
                theirs = None
            rows = [
                row
                for one in (mine, theirs)
                if one is not None
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

    def start_after(self, offset: int) -> None:
        with self._file.writing() as db:
            if self._end(db) < offset:
                _note(db, _LAST, offset)

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _end(db: sqlite3.Connection) -> int:
        given = "SELECT MAX(offset) FROM events UNION ALL SELECT value FROM removals WHERE name = ?"
        return max((row[0] for row in db.execute(given, (_LAST,)) if row[0] is not None), default=0)

    @staticmethod
    def _whose(db: sqlite3.Connection, user_id: str | None, session_id: str | None) -> str | None:
        if user_id is None and session_id is not None:
            found = db.execute("SELECT user_id FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
            user_id = None if found is None else found[0]
        return shopper(user_id, session_id)

    # -- forgetting -------------------------------------------------------------------------------

    @staticmethod
    @contextmanager
    def _counting_on(db: sqlite3.Connection, last: int) -> Iterator[None]:
        """SQLite numbers from the highest row there is: of a log whose newest rows were removed, one stands in."""
        there = db.execute("SELECT COALESCE(MAX(offset), 0) FROM events").fetchone()[0]
        if there == last:
            yield
            return
        db.execute("INSERT INTO events (offset, event_id, ts_us, body) VALUES (?, '', 0, '')", (last,))
        yield
        db.execute("DELETE FROM events WHERE offset = ? AND event_id = ''", (last,))

    def traces(self, user_id: str) -> Traces:
        whose = (shopper(user_id, None),)
        with self._file.reading() as db:
            known = {row[0] for row in db.execute("SELECT session_id FROM sessions WHERE user_id = ?", (user_id,))}
            newest_us = 0
            for ts_us, body in db.execute("SELECT ts_us, body FROM events WHERE shopper = ?", whose).fetchall():
                known.add(orjson.loads(body).get("session_id"))
                newest_us = max(newest_us, ts_us)
        return Traces(sorted(known - {None}), newest_us)

    def bar(self, until_us: Mapping[str, int]) -> None:
        if not until_us:
            return
        with self._file.writing() as db:
            db.executemany(
                "INSERT INTO barred VALUES (?, ?) "
                "ON CONFLICT (mark) DO UPDATE SET until_us = MAX(until_us, excluded.until_us)",
                until_us.items(),
            )

    def barred(self, marks: Sequence[str]) -> int:
        with self._file.reading() as db:
            return self._barred(db, marks)

    @staticmethod
    def _barred(db: sqlite3.Connection, marks: Sequence[str]) -> int:
        return max(
            row[0]
            for mark in [EVERYBODY, *marks]
            for row in db.execute("SELECT COALESCE(MAX(until_us), -1) FROM barred WHERE mark = ?", (mark,))
        )

    def remove(self, shoppers: Sequence[str] | None, until_us: int) -> dict[str, int]:
        with self._file.writing() as db:
            last = self._end(db)
            removed = {"events": 0, "sessions": 0}
            for condition, values in _whose_events(shoppers):
                done = db.execute(f"DELETE FROM events WHERE {condition} ts_us <= ?", (*values, until_us))
                removed["events"] += done.rowcount
            for condition, values in _whose_sessions(shoppers):
                removed["sessions"] += db.execute(f"DELETE FROM sessions WHERE {condition}", values).rowcount
            if any(removed.values()):
                _note(db, _LAST, last)
                _note(db, _REMOVED, _noted(db, _REMOVED) + 1)
        self._clean()
        return removed

    def _clean(self) -> None:
        """Write the whole file anew, and empty the log.

        Not `secure_delete`: it overwrites what is deleted where it is, and not the copies that b-trees leave in the
        gaps of their pages when they move rows between them; of 40 shoppers deleted one by one, 11 to 17 were still
        found in the file (SQLite 3.40). Raises Unavailable.
        """
        with self._file.reading() as db:
            removals = _noted(db, _REMOVED)  # one that others make meanwhile is theirs to clean
            if removals == _noted(db, _CLEANED):
                return
            db.execute("VACUUM")
            deadline = time.monotonic() + _CLEAN_S
            while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise Unavailable("a reader holds on to what was removed; do it again")
                time.sleep(0.05)
        with self._file.writing() as db:
            _note(db, _CLEANED, max(removals, _noted(db, _CLEANED)))


def _whose_events(shoppers: Sequence[str] | None) -> list[tuple[str, tuple[str, ...]]]:
    return [("", ())] if shoppers is None else [("shopper = ? AND", (one,)) for one in shoppers]


def _whose_sessions(shoppers: Sequence[str] | None) -> list[tuple[str, tuple[str, ...]]]:
    if shoppers is None:  # of users of whom nothing is left
        return [("NOT EXISTS (SELECT 1 FROM events WHERE shopper = 'u:' || sessions.user_id)", ())]
    return [("user_id = ?", (one[2:],)) for one in shoppers if one.startswith("u:")]


def _noted(db: sqlite3.Connection, name: str) -> int:
    found = db.execute("SELECT value FROM removals WHERE name = ?", (name,)).fetchone()
    return 0 if found is None else found[0]


def _note(db: sqlite3.Connection, name: str, value: int) -> None:
    db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (name, value))
