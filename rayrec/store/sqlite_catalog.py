"""Changes of the catalog in one SQLite file, beside the events."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection

import orjson

from rayrec.schema import Change
from rayrec.store.base import Wanted
from rayrec.store.sqlite_file import SqliteFile

_CACHE_KIB = 4 << 10  # it is read once, in its order
# AUTOINCREMENT: an offset that was cut is not given again
_TABLES = """
CREATE TABLE IF NOT EXISTS changes (
  offset INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL, content TEXT, ts_us INTEGER NOT NULL, item BLOB
);
CREATE INDEX IF NOT EXISTS changes_of_item ON changes (item_id, offset);
CREATE TABLE IF NOT EXISTS vectors (
  key TEXT PRIMARY KEY, offset INTEGER NOT NULL, vector BLOB NOT NULL
) WITHOUT ROWID;
"""


class SqliteCatalogLog:
    """As CatalogLog says."""

    def __init__(self, path: str | Path):
        self._file = SqliteFile(path, _TABLES, _CACHE_KIB)

    def change(self, wanted: Sequence[Wanted], vectors: Mapping[str, bytes]) -> list[int | None]:
        with self._file.writing() as db:
            offsets = [self._one(db, each) for each in wanted]
            last = self._newest(db)
            db.executemany(
                "INSERT INTO vectors VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET offset = excluded.offset",
                [(key, last, vector) for key, vector in vectors.items()],
            )
        return offsets

    @staticmethod
    def _one(db: Connection, wanted: Wanted) -> int | None:
        if wanted.unless_after is not None:
            newer = "SELECT 1 FROM changes WHERE item_id = ? AND offset > ? LIMIT 1"
            if db.execute(newer, (wanted.item_id, wanted.unless_after)).fetchone():
                return None
        item = None if wanted.item is None else orjson.dumps(wanted.item)
        row = (wanted.item_id, wanted.content, wanted.ts_us, item)
        return db.execute("INSERT INTO changes (item_id, content, ts_us, item) VALUES (?, ?, ?, ?)", row).lastrowid

    def changes(self, after: int, limit: int) -> list[Change]:
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT offset, item_id, item, content, ts_us FROM changes WHERE offset > ? ORDER BY offset LIMIT ?",
                (after, limit),
            ).fetchall()
        return [
            Change(offset, item_id, None if item is None else orjson.loads(item), content, ts_us)
            for offset, item_id, item, content, ts_us in rows
        ]

    def vectors(self, keys: Iterable[str]) -> dict[str, bytes]:
        find = "SELECT key, vector FROM vectors WHERE key IN (SELECT value FROM json_each(?))"
        with self._file.reading() as db:
            return dict(db.execute(find, (orjson.dumps(list(keys)).decode(),)))

    def newest(self) -> int:
        with self._file.reading() as db:
            return self._newest(db)

    def start_after(self, offset: int) -> None:
        with self._file.writing() as db:
            if self._newest(db) < offset:
                db.execute("DELETE FROM sqlite_sequence WHERE name = 'changes'")
                db.execute("INSERT INTO sqlite_sequence VALUES ('changes', ?)", (offset,))

    def cut(self, until: int) -> int:
        with self._file.writing() as db:
            db.execute("DELETE FROM vectors WHERE offset <= ?", (until,))
            return db.execute("DELETE FROM changes WHERE offset <= ?", (until,)).rowcount

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _newest(db: Connection) -> int:
        found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
        return 0 if found is None else found[0]
