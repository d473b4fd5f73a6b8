"""What is removed from a store is in none of its files, and of the others nothing is lost; on SQLite and Redis."""

import multiprocessing
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rayrec.errors import Unavailable
from rayrec.store import EventStore, open_store
from rayrec.store.base import EVERYBODY, REFUSED
from tests.redis_server import redis_server
from tests.traces import found_in

ANN = "ann-7f3Q@example.org"
SESSION, ANONYMOUS = "session-of-her-9Zk", "session-nobody-said-5Yx"
SECRETS = [ANN, SESSION, ANONYMOUS, "her very own query 日本", "item-she-alone-saw", "8317264951", "her-event-"]
HERS = [f"u:{ANN}", f"s:{SESSION}", f"s:{ANONYMOUS}"]


class Place(NamedTuple):
    """A store and the folder that all of its files are in."""

    url: str
    folder: Path
    dumps: bool = False


@pytest.fixture(params=["sqlite", "redis", "redis with dumps"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "files"
    folder.mkdir()
    if request.param == "sqlite":
        yield Place(f"sqlite:///{folder}/live.db", folder)
        return
    dumps = request.param.endswith("dumps")
    with redis_server(folder, save="3600 1" if dumps else "") as server:
        yield Place(server.url, folder, dumps)


@pytest.fixture
def store(place: Place) -> Iterator[EventStore]:
    opened = open_store(place.url)
    yield opened
    opened.close()


def event(name: str, ts_us: int, user: str | None, session: str | None = None, **more: Any) -> dict[str, Any]:
    about = {"user_id": user, "session_id": session}
    return {"event_id": name, "type": "click", "ts_us": ts_us, "item_id": f"i{ts_us % 50}", **about, **more}


def fill(store: EventStore, n: int = 3_000) -> list[str]:
    """A shopper's events among those of forty others, who say who they are sooner or later; the others' event ids."""
    rng = random.Random(0)
    others = []
    for start in range(0, n, 50):
        batch = []
        for i in range(start, start + 50):
            if rng.random() < 0.1:
                user, session = [(ANN, SESSION), (ANN, None), (None, SESSION), (None, ANONYMOUS)][i % 4]
                own = {"query": SECRETS[3], "item_id": SECRETS[4], "price_cents": int(SECRETS[5])}
                batch.append(event(f"{rng.getrandbits(32):x}-her-event-{i}", i, user, session, **own))
            else:
                k = rng.randrange(40)
                user, session = rng.choice([(f"user{k:02d}!", f"s{k:02d}!"), (None, f"s{k:02d}!")])
                batch.append(event(f"{rng.getrandbits(32):x}-{i}", i, user, session, query="x" * rng.randrange(400)))
                others.append(batch[-1]["event_id"])
        store.append(batch)
        if start == n // 100 * 50:
            for k in range(40):
                store.identify(f"s{k:02d}!", f"user{k:02d}!")
            store.identify(SESSION, ANN)
    return others


def removed(store: EventStore, until_us: int = 10**9) -> dict[str, int]:
    """As the service does it."""
    traces = store.traces(ANN)
    store.bar({"mark of ann": until_us})
    return store.remove([f"u:{ANN}", *(f"s:{s}" for s in {*traces.sessions, ANONYMOUS})], until_us)


def ids(store: EventStore) -> list[str]:
    return [one["event_id"] for _, one in store.read(0, 10**6)]


def test_no_file_has_any_of_it_and_the_others_have_all(place: Place, store: EventStore) -> None:
    others = fill(store)
    if place.dumps:
        import redis

        with redis.Redis.from_url(place.url) as client:
            client.save()
    before = {offset: one for offset, one in store.read(0, 10**6) if one["event_id"] in set(others)}
    histories = {k: store.history(f"user{k:02d}!", None) for k in range(40)}
    assert found_in(place.folder, SECRETS)
    with open_elsewhere(place.url):
        counts = removed(store)
        left = found_in(place.folder, SECRETS)

    assert left == set()
    assert counts["events"] == 3_000 - len(others)
    assert counts["sessions"] == 1
    assert dict(store.read(0, 10**6)) == before
    assert ids(store) == others
    assert {k: store.history(f"user{k:02d}!", None) for k in range(40)} == histories
    assert store.history(ANN, SESSION) == []
    assert store.history(None, ANONYMOUS) == []
    assert removed(store) == {"events": 0, "sessions": 0}


@contextmanager
def open_elsewhere(url: str) -> Iterator[None]:
    """Another process has the store open, and reads it over and over."""
    code = (
        "import sys\nfrom rayrec.store import open_store\n"
        "store = open_store(sys.argv[1])\nprint(store.end(), flush=True)\n"
        "while True:\n store.read(0, 100)\n store.history('user01!', None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        assert process.poll() is None
        process.kill()


def test_one_after_another_leaves_nothing_either(place: Place, store: EventStore) -> None:
    """Rows that were moved about in the file by earlier removals are the hard ones."""
    fill(store, 2_000)
    for k in range(0, 40, 4):
        assert store.remove([f"u:user{k:02d}!", f"s:s{k:02d}!"], 10**9)["events"]
        assert found_in(place.folder, [f"user{k:02d}!"]) == set()
    assert [len(store.history(f"user{k:02d}!", None)) > 0 for k in range(8)] == [False, True, True, True] * 2


def test_what_a_session_did_while_it_was_anothers_stays(store: EventStore) -> None:
    """A device that two share: each said who they are in turn."""
    store.append([event("anns", 1, None, "shared")])
    store.identify("shared", "first")
    store.append([event("anns too", 2, None, "shared")])
    store.identify("shared", ANN)
    store.append([event("hers", 3, None, "shared")])

    traces = store.traces(ANN)
    assert traces.sessions == ["shared"]
    store.remove([f"u:{ANN}", "s:shared"], 10**9)

    assert ids(store) == ["anns", "anns too"]
    assert [one["event_id"] for _, one in store.history("first", None)] == ["anns", "anns too"]
    assert store.history(ANN, None) == []


def test_traces_are_as_new_as_what_became_theirs(store: EventStore) -> None:
    store.append([event("own", 5, ANN), event("anonymous", 900, None, "s1")])
    store.identify("s1", ANN)
    assert store.traces(ANN).newest_us == 900


def test_offsets_go_on_and_none_is_given_twice(place: Place, store: EventStore) -> None:
    assert store.append([event("a", 1, "bob"), event("b", 2, ANN), event("c", 3, ANN)]) == [1, 2, 3]

    removed(store, 5)

    assert store.end() == 3
    again = open_store(place.url)
    assert again.append([event("d", 6, "bob"), event("a", 6, "bob"), event("e", 7, None)]) == [4, None, 5]
    assert [(offset, one["event_id"]) for offset, one in again.read(0, 10)] == [(1, "a"), (4, "d"), (5, "e")]
    again.remove(["u:bob"], 6)
    assert again.append([event("b", 8, "bob"), event("b", 8, "bob")]) == [6, None]
    assert again.end() == 6
    again.close()


def test_what_happened_later_stays(store: EventStore) -> None:
    store.append([event("old", 10, ANN, SESSION), event("new", 11, ANN, SESSION)])
    assert store.remove(HERS, 10) == {"events": 1, "sessions": 0}
    assert ids(store) == ["new"]
    assert [one["event_id"] for _, one in store.history(ANN, None)] == ["new"]


def test_a_barred_mark_refuses_what_is_late_and_takes_what_is_new(place: Place, store: EventStore) -> None:
    assert store.barred(["m"]) == -1
    store.bar({"m": 10, "n": 5})
    store.bar({"m": 7})

    other = open_store(place.url)
    assert (other.barred(["m"]), other.barred(["n", "m"]), other.barred([]), other.barred(["o"])) == (10, 10, -1, -1)
    events = [event(name, ts, ANN) for name, ts in (("late", 10), ("new", 11), ("new", 11), ("whose", 3))]
    assert other.append(events, ["m", "m", "m", None]) == [REFUSED, 1, None, 2]
    assert ids(other) == ["new", "whose"]
    other.bar({EVERYBODY: 20})
    assert other.append([event("x", 20, "bob"), event("y", 21, "bob")], ["o", None]) == [REFUSED, 3]
    assert other.append([event("z", 20, None)], [None]) == [REFUSED]
    assert other.barred(["o"]) == 20
    other.close()


def test_everybodys_old_events_go(place: Place, store: EventStore) -> None:
    others = fill(store, 1_000)
    store.identify("s-of-new", "newcomer")
    store.append([event("late one", 2_000, "newcomer"), event("and hers", 2_001, ANN, SESSION)])

    counts = store.remove(None, 999)

    assert counts == {"events": 1_000, "sessions": 40}
    assert ids(store) == ["late one", "and hers"]
    assert store.history("user01!", None) == []
    assert [offset for offset, _ in store.history(None, SESSION)] == [1_002]
    assert store.append([event(others[0], 3_000, "user01!")]) == [1_003]
    assert found_in(place.folder, [SECRETS[3], SECRETS[6], ANONYMOUS]) == set()


def _appends(url: str, began: Any, ended: Any) -> None:
    store = open_store(url)
    i = 0
    while not ended.is_set():
        try:
            store.append([event(f"live-{i}", 5_000 + i, f"user{i % 40:02d}!")])
            i += 1
        except Unavailable:
            continue
        if i == 5:
            began.set()
    store.close()


def test_who_appends_meanwhile_loses_nothing(place: Place, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayrec.store.redis_removal._AT_ONCE", 20)
    others = fill(store)
    spawn = multiprocessing.get_context("spawn")
    began, ended = spawn.Event(), spawn.Event()
    writers = [spawn.Process(target=_appends, args=(place.url, began, ended), daemon=True) for _ in range(1)]
    for writer in writers:
        writer.start()
    began.wait(60)
    deadline = time.monotonic() + 120
    while True:
        try:
            removed(store)
            break
        except Unavailable:  # a file of one writer at a time: others may keep it out for long
            assert time.monotonic() < deadline
    ended.set()
    for writer in writers:
        writer.join(60)

    found = store.read(0, 10**6)
    offsets = [offset for offset, _ in found]
    assert offsets == sorted(set(offsets))
    live = [one["event_id"] for _, one in found if one["event_id"].startswith("live")]
    assert live == [f"live-{i}" for i in range(len(live))]
    assert len(live) > 5
    assert [name for name in ids(store) if not name.startswith("live")] == others
    assert store.end() == 3_000 + len(live)


_REMOVER = """
import sys
import rayrec.store.redis_removal as removal
from rayrec.store import open_store
removal._AT_ONCE = 20
store = open_store(sys.argv[1])
print("BEGIN", flush=True)
store.remove(sys.argv[2:], 10**9)
print("DONE", flush=True)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.1])
def test_killed_on_the_way_it_is_done_by_doing_it_again(
    place: Place, store: EventStore, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayrec.store.redis_removal._LOCK_MS", 200)
    others = fill(store)
    code = _REMOVER.replace("removal._AT_ONCE = 20", "removal._AT_ONCE = 20; removal._LOCK_MS = 200")
    with subprocess.Popen([sys.executable, "-c", code, place.url, *HERS], stdout=subprocess.PIPE) as remover:
        assert remover.stdout is not None
        remover.stdout.readline()
        time.sleep(after_s)
        remover.send_signal(signal.SIGKILL)
        told = remover.stdout.read()
    assert after_s or not told, "the first is killed before it ends"
    deadline = time.monotonic() + 10
    while True:
        try:
            store.remove(HERS, 10**9)
            break
        except Unavailable:  # the killed one still counts as under way
            assert time.monotonic() < deadline
            time.sleep(0.05)

    assert ids(store) == others
    assert found_in(place.folder, SECRETS) == set()


def test_a_reader_that_holds_on_is_told_and_what_is_left_is_cleaned_by_repeating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayrec.store.sqlite_file._WAIT_S", 0.1)
    monkeypatch.setattr("rayrec.store.sqlite._CLEAN_S", 0.2)
    store = open_store(f"sqlite:///{tmp_path}/live.db")
    fill(store, 500)
    reader = sqlite3.connect(tmp_path / "live.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT COUNT(*) FROM events").fetchone()

    with pytest.raises(Unavailable, match="holds on to what was removed; do it again"):
        store.remove(HERS, 10**9)
    assert found_in(tmp_path, SECRETS)
    reader.execute("COMMIT")

    assert store.remove(HERS, 10**9) == {"events": 0, "sessions": 0}
    assert found_in(tmp_path, SECRETS) == set()
    reader.close()
    store.close()
