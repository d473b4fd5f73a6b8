"""One SQLite file as several processes of a machine share it.

Write-ahead log with synchronous=FULL: a commit returns after its pages were flushed to the disk.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rayrec.errors import SchemaError, Unavailable

_WAIT_S = 10.0  # for another process's commit
_CACHE_KIB = 64 << 10
_LOG_PAGES = 8_000  # of 4 KiB: a page that many events touch is moved into the file once, not for each


class _Connection(NamedTuple):
    connection: sqlite3.Connection
    in_use: threading.RLock


class SqliteFile:
    """A connection per thread; a commit at a time. tables: statements that make what is not there yet.

    cache_kib: of pages, for each connection.
    """

    def __init__(self, path: str | Path, tables: str, cache_kib: int = _CACHE_KIB):
        self._path = Path(path)
        self._cache_kib = cache_kib
        self._own = threading.local()
        self._open: list[_Connection] = []
        self._lock = threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self.writing() as db:
            for statement in tables.split(";"):
                db.execute(statement)

    def close(self) -> None:
        """Wait for what other threads do, then close their connections too."""
        with self._lock:
            for one in self._open:
                with one.in_use:
                    one.connection.close()
            self._open.clear()
            self._own = threading.local()

    def _connection(self) -> "_Connection":
        mine: _Connection | None = getattr(self._own, "connection", None)
        if mine is None:
            # only this thread uses it; close() may come from another
            connection = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                connection.close()
                raise SchemaError(f"store: {self._path} is on a filesystem without a write-ahead log; use a local disk")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA cache_size = -{self._cache_kib}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            mine = _Connection(connection, threading.RLock())
            with self._lock:
                self._open.append(mine)
                self._own.connection = mine
        return mine

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection. Raises Unavailable if the file cannot be had within some seconds."""
        try:
            mine = self._connection()
            with mine.in_use:
                yield mine.connection
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the store does not answer ({error}); try again") from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is durable when the block ends, or nothing of it is there."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
