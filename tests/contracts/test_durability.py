"""What is acknowledged is on the disk first: told by the system calls, and by a redis-server that may lose nothing."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rayrec.errors import SchemaError, Unavailable
from rayrec.store import Wanted, open_catalog_log, open_store
from tests.redis_server import redis_server

_WRITER = """
import os, sys
from rayrec.store import Wanted, open_catalog_log, open_store
store = open_store(sys.argv[1])
for i in range(5):
    os.write(2, b"BEGIN\\n")
    store.append([{"event_id": f"e{i}", "type": "click", "ts_us": i, "user_id": "ann"}])
    os.write(2, b"ACKNOWLEDGED\\n")
"""
_CHANGER = _WRITER.replace("= open_store", "= open_catalog_log").replace(
    'store.append([{"event_id": f"e{i}", "type": "click", "ts_us": i, "user_id": "ann"}])',
    'store.change([Wanted("a", None, None, i)], {f"v{i}": b"1"})',
)


def flushes(trace: str) -> list[list[str]]:
    """Between each BEGIN and its ACKNOWLEDGED: writes and flushes, in order."""
    found: list[list[str]] = []
    inside = False
    for line in trace.splitlines():
        if "BEGIN" in line:
            found.append([])
            inside = True
        elif "ACKNOWLEDGED" in line:
            inside = False
        elif inside and (call := re.search(r"\b(fdatasync|fsync|pwrite64|write)\(", line)):
            found[-1].append(call[1])
    return found


@pytest.mark.parametrize("writer", [_WRITER, _CHANGER])
def test_sqlite_flushes_its_log_before_it_acknowledges(tmp_path: Path, writer: str) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: apt-get install strace")
    out = tmp_path / "trace"
    calls = "trace=fdatasync,fsync,pwrite64,write"
    command = [strace, "-f", "-o", str(out), "-e", calls, sys.executable, "-c", writer]
    subprocess.run([*command, f"sqlite:///{tmp_path}/live.db"], check=True, capture_output=True, timeout=120)

    found = flushes(out.read_text())

    assert len(found) == 5
    for calls_of_append in found:
        assert "pwrite64" in calls_of_append
        assert calls_of_append[-1] in ("fdatasync", "fsync"), calls_of_append


@pytest.mark.parametrize("changes", [False, True])
def test_redis_flushes_its_file_before_it_acknowledges(tmp_path: Path, changes: bool) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: apt-get install strace")
    out = tmp_path / "trace"
    with redis_server(tmp_path) as server:
        store, log = open_store(server.url), open_catalog_log(server.url)

        def write(name: str) -> None:
            if changes:
                log.change([Wanted(name, None, None, 1)], {})
            else:
                store.append([{"event_id": name, "type": "click", "ts_us": 1, "user_id": "ann"}])

        write("before")
        assert server.pid
        command = [
            strace,
            "-s",
            "600",
            "-f",
            "-p",
            str(server.pid),
            "-o",
            str(out),
            "-e",
            "trace=write,writev,fdatasync,fsync",
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            assert b"attached" in tracer.stderr.readline()
            write("traced")
            time.sleep(0.2)
            tracer.send_signal(signal.SIGINT)
        store.close()
        log.close()
    order = [
        "file" if "XADD" in line or "EVALSHA" in line or "HSET" in line else call[1]
        for line in out.read_text().splitlines()
        if (call := re.search(r"\b(writev?|fdatasync|fsync)\(", line))
    ]
    # the append-only file is written, flushed, and only then the client's socket
    assert order[:2] in (["file", "fdatasync"], ["file", "fsync"]), order
    assert {"write", "writev"} & set(order[2:]), order


def test_a_writer_that_is_killed_loses_nothing_it_was_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/live.db"
    forever = _WRITER.replace("range(5)", "range(10**9)")
    told = 0
    with subprocess.Popen([sys.executable, "-c", forever, url], stderr=subprocess.PIPE) as writer:
        assert writer.stderr is not None
        while told < 50:
            told += writer.stderr.readline() == b"ACKNOWLEDGED\n"
        writer.kill()
        told += writer.stderr.read().count(b"ACKNOWLEDGED")

    store = open_store(url)
    assert store.end() >= told
    assert [offset for offset, _ in store.read(0, 10**6)] == list(range(1, store.end() + 1))
    store.close()


def test_redis_killed_and_back_has_all_it_acknowledged(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        store = open_store(server.url)
        for i in range(200):
            store.append([{"event_id": f"e{i}", "type": "click", "ts_us": i, "user_id": "ann"}])
        server.kill()
        with pytest.raises(Unavailable, match="the store does not answer"):
            store.append([{"event_id": "lost", "type": "click", "ts_us": 0}])
        server.start()

        assert store.append(
            [{"event_id": "e7", "type": "click", "ts_us": 7}, {"event_id": "n", "type": "click", "ts_us": 8}]
        ) == [None, 201]
        assert len(store.history("ann", None)) == 200
        store.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
    ],
)
def test_a_redis_that_may_lose_writes_is_refused(tmp_path: Path, option: str, value: str) -> None:
    with redis_server(tmp_path, **{option: value}) as server, pytest.raises(SchemaError) as caught:
        open_store(server.url)
    wanted = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}.get(option, "noeviction")
    assert f"this Redis has {option} {value}" in str(caught.value)
    assert f"set '{option} {wanted}'" in str(caught.value)


def test_a_redis_that_is_full_is_told_as_unavailable(tmp_path: Path) -> None:
    import redis

    with redis_server(tmp_path) as server:
        store = open_store(server.url)
        store.append([{"event_id": "e1", "type": "click", "ts_us": 1}])
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(Unavailable, match="takes nothing now"):
                store.append([{"event_id": "e2", "type": "click", "ts_us": 1}])
            client.config_set("maxmemory", 0)
        assert store.append([{"event_id": "e2", "type": "click", "ts_us": 1}]) == [2]
        store.close()


def test_a_password_is_used_and_never_told(tmp_path: Path) -> None:
    with redis_server(tmp_path, requirepass="hunter2") as server:
        store = open_store(server.url.replace("redis://", "redis://:hunter2@"))
        assert store.end() == 0
        store.close()
        with pytest.raises(SchemaError, match="password") as caught:
            open_store(server.url.replace("redis://", "redis://:wrong@"))
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "live.db", "sqlite://", "sqlite:///", "mysql://u:secret@host/db", "http://secret@x"]
)
def test_what_is_no_store_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(SchemaError, match="store: expected") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_path_may_have_any_character(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a#b?c d%41/live.db"
    open_store(url).close()
    assert (tmp_path / "a#b?c d%41" / "live.db").exists()


def test_a_redis_that_does_not_tell_how_it_writes_is_refused(tmp_path: Path) -> None:
    import redis

    with redis_server(tmp_path) as server:
        client = redis.Redis.from_url(server.url)
        client.acl_setuser("shop", enabled=True, passwords=["+p"], keys="*", commands=["+@all", "-config"])
        client.close()
        with pytest.raises(SchemaError, match="does not tell its maxmemory-policy, on which durability depends"):
            open_store(server.url.replace("redis://", "redis://shop:p@"))


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the store does not answer"):
        open_store("redis://127.0.0.1:1/0")


def test_a_locked_file_is_told_as_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr("rayrec.store.sqlite_file._WAIT_S", 0.1)
    store = open_store(f"sqlite:///{tmp_path}/live.db")
    other = sqlite3.connect(tmp_path / "live.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="database is locked"):
        store.append([{"event_id": "e", "type": "click", "ts_us": 1}])
    assert store.history("ann", None) == []  # who reads does not wait for who writes
    other.execute("ROLLBACK")
    assert store.append([{"event_id": "e", "type": "click", "ts_us": 1}]) == [1]
    store.close()
