"""A shopper is forgotten in a whole workspace and its store: no file has their id, its hashes, or a value of theirs."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.barring import Bars
from rayrec.config import SourceConfig
from rayrec.data.conform import Quarantine
from rayrec.data.held_out import FILE, HeldOut
from rayrec.errors import IncompatibleArtifact, Unavailable
from rayrec.forgetting import forget, retain
from rayrec.pipelines.event_log import export_events, newest_events, read_events
from rayrec.pipelines.index import load_events, publish_events
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.schema import EVENTS
from rayrec.store import EventStore, open_store
from rayrec.workspace import Workspace
from tests.contracts.test_forgetting import open_elsewhere
from tests.fakes import DAY_US, NOW_US, FakeEncoder, make_events
from tests.redis_server import redis_server
from tests.traces import found_in

ANN = "ann-7f3Q@example.org"
QUERY = "her very own query 日本"
SESSIONS = ["session-of-her-9Zk", "session-she-signed-in-with-later-2Wq", "session-in-the-store-4Rt"]
SECRETS = [ANN, QUERY, *SESSIONS, "item-she-alone-saw", "8317264951", "her-event-"]
PRICE = np.array([8317264951], np.int64).tobytes()
OWN = {"query": QUERY, "item_id": SECRETS[5], "price_cents": int(SECRETS[6])}
SOURCE = SourceConfig(path="events")
ITEMS = pa.array([*(f"i{i}" for i in range(50)), SECRETS[5]])


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ws/store/live.db"
        return
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def store(url: str, ws: Workspace) -> Iterator[EventStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def rows(prefix: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Events of twenty shoppers, every tenth hers: under her id, or under a session of hers alone."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        about: dict[str, Any] = {"ts_us": NOW_US + i, "item_id": f"i{rng.randrange(50)}"}
        if i % 10 == 3:
            who = [(ANN, SESSIONS[0]), (None, SESSIONS[0]), (None, SESSIONS[1])][i // 10 % 3]
            about |= {**OWN, "event_id": f"her-event-{prefix}{i}"}
        else:
            who = (f"user{rng.randrange(20):02d}", None)
            about |= {"event_id": f"{prefix}{i:05d}", "query": f"query {rng.randrange(30)}"}
        kind = rng.choice(["search", "click", "purchase"])
        found.append({**about, "user_id": who[0], "session_id": who[1], "type": kind})
    return found


def search(prefix: str) -> dict[str, Any]:
    """Without an item, so that histories have its text."""
    return {**rows(prefix, 4, 0)[3], "event_id": f"her-event-{prefix}s", "type": "search", "user_id": ANN}


def publish_behavior(ws: Workspace) -> str:
    """An index version, as far as what it knows of shoppers goes."""
    behavior = BehaviorIndex.build(read_events(ws, newest_events(ws)), ITEMS, 90.0)
    behavior = replace(behavior, asked=FakeEncoder().encode(behavior.histories.texts, "query"))
    with ws.stage("indexes") as staged:
        with tempfile.TemporaryDirectory() as local:
            behavior.save(Path(local))
            staged.upload(Path(local), "behavior")
        return staged.publish({"counts": {"events": behavior.events}})


def publish_model(ws: Workspace) -> str:
    """A model, as far as it names events: those that judge it."""
    ids = read_events(ws, newest_events(ws)).column("event_id").combine_chunks()
    half = np.arange(len(ids)) % 2 == 0
    none = np.full(len(ids), -1)
    with ws.stage("models") as staged:
        staged.write_parquet(FILE, HeldOut(half, none, np.where(half, np.arange(len(ids)), -1)).table(ids))
        return staged.publish({"encoder": {"space": "fake"}})


def fill(ws: Workspace, store: EventStore) -> pa.Table:
    """Every place that may hold a shopper, and the source that named her."""
    source = make_events([*rows("a", 300, 1), search("a")]).sort_by("ts_us")
    publish_events(source, SOURCE, ws)
    publish_behavior(ws)
    store.append(rows("b", 300, 2))
    export_events(ws, url_of[id(store)])
    publish_behavior(ws)
    publish_model(ws)
    store.identify(SESSIONS[1], ANN)  # when it was exported as nobody's already
    store.identify(SESSIONS[2], ANN)
    store.append([*rows("c", 300, 3), search("c"), {**search("d"), "user_id": None, "session_id": SESSIONS[2]}])
    export_events(ws, url_of[id(store)])
    publish_behavior(ws)
    quarantine = Quarantine()
    for user in (ANN, "user01"):
        quarantine.add("events.csv", 1, "type", user, "a type", json.dumps({"customer": user, "q": user}))
    quarantine.add("events.csv", 2, None, "a ragged row", "4 fields", f"click,17,{SESSIONS[0]},x,y")
    ws.write_parquet(quarantine.table(), "quarantine", f"{newest_events(ws)}.parquet")
    staged = ws.stage("events")  # of a job that was killed
    staged.write_parquet("events.parquet", source)
    half = Path(ws.path("events", staged.version, "more.parquet.ab12cd34.tmp"))
    half.write_bytes(ANN.encode())
    os.utime(half, (0, 0))
    return source


url_of: dict[int, str] = {}


def everything(ws: Workspace) -> dict[str, list[dict[str, Any]]]:
    return {version: read_events(ws, version).to_pylist() for version in ws.versions("events")}


def hers(row: dict[str, Any]) -> bool:
    return row["event_id"].startswith("her-event-")


def verified(ws: Workspace) -> None:
    for kind in ("events", "indexes"):
        for version in ws.versions(kind):
            ws.verify(kind, version)


def test_no_file_has_any_of_it_and_the_others_have_all(
    tmp_path: Path, ws: Workspace, store: EventStore, url: str
) -> None:
    url_of[id(store)] = url
    source = fill(ws, store)
    before = everything(ws)
    taken = [numbered for numbered in store.read(0, 10**6) if not hers(numbered[1])]
    vector = FakeEncoder().encode([QUERY], "query").tobytes()
    behaviors = {v: BehaviorIndex.load(Path(ws.path("indexes", v, "behavior"))) for v in ws.versions("indexes")}
    assert found_in(tmp_path, SECRETS)
    assert any(vector in file.read_bytes() for file in tmp_path.rglob("asked.npy"))

    with open_elsewhere(url):
        receipt = forget(ws, url, ANN)
        assert found_in(tmp_path, SECRETS) == set()

    for file in tmp_path.rglob("*"):
        assert not file.is_file() or vector not in file.read_bytes()
        assert not file.is_file() or PRICE not in file.read_bytes()
    verified(ws)
    assert everything(ws) == {v: [row for row in kept if not hers(row)] for v, kept in before.items()}
    assert store.read(0, 10**6) == taken
    for version, old in behaviors.items():
        new = BehaviorIndex.load(Path(ws.path("indexes", version, "behavior")))
        assert not len(new.history(ANN).rows)
        for user in range(20):
            was, now = old.history(f"user{user:02d}"), new.history(f"user{user:02d}")
            assert now.rows.tolist() == was.rows.tolist()
            assert [now.texts[q] for q in now.queries if q >= 0] == [was.texts[q] for q in was.queries if q >= 0]
            for q in now.queries[now.queries >= 0]:
                assert new.asked[q].tolist() == old.asked[q].tolist()
    for version in ws.versions("events"):
        assert ws.manifest("events", version)["counts"]["events"] == read_events(ws, version).num_rows
    places = {one["place"]: one["removed"] for one in receipt["places"]}
    kind = "sqlite" if url.startswith("sqlite") else "redis"
    assert (places[f"{kind}.events"], places[f"{kind}.sessions"], places["quarantine"]) == (62, 2, 2)
    gone = {version: sum(map(hers, kept)) for version, kept in before.items()}
    assert {version: places[f"events/{version}"] for version in gone} == gone
    assert all(places[f"indexes/{version}"] > 0 for version in behaviors)
    kept_receipt = json.loads(ws.read_bytes("receipts", f"{receipt['receipt_id']}.json"))
    assert kept_receipt == receipt

    again = forget(ws, url, ANN)
    assert {one["removed"] for one in again["places"]} == {0}
    # the next training: the source is loaded again, and the log exported
    latest = newest_events(ws)
    publish_events(source, SOURCE, ws)
    publish_events(source.slice(0, 200), SOURCE, ws)
    export_events(ws, url)
    assert newest_events(ws) != latest
    assert not any(map(hers, read_events(ws, newest_events(ws)).to_pylist()))
    assert found_in(tmp_path, SECRETS) == set()


def test_a_file_that_is_loaded_again_brings_nobody_back_and_quarantines_no_one(tmp_path: Path, ws: Workspace) -> None:
    lines = [f'{{"user_id": "{user}", "type": "click", "item_id": "i1", "ts_us": 1}}\n' for user in (ANN, "bob")]
    bad = [f'{{"user_id": "{user}", "type": "wish", "item_id": "i1", "ts_us": 1}}\n' for user in (ANN, "bob")]
    source = tmp_path / "events.jsonl"
    source.write_text("".join([*lines, *bad, f'{{"user_id": "{ANN}", "type"\n']))
    load_events(SourceConfig(path=str(source)), ws)
    assert found_in(tmp_path / "ws", [ANN])

    forget(ws, None, ANN)
    version, _, _ = load_events(SourceConfig(path=str(source)), ws)

    assert found_in(tmp_path / "ws", [ANN]) == set()
    assert read_events(ws, str(version)).column("user_id").to_pylist() == ["bob"]
    assert "bob" in ws.read_parquet("quarantine", f"{version}.parquet").column("record")[0].as_py()


_FORGETTER = """
import os, sys
from rayrec.forgetting import forget
from rayrec.workspace import Workspace
from rayrec.files import Files
left = int(sys.argv[4])
write = Files.write_bytes
def killed(self, data, *parts):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    write(self, data, *parts)
Files.write_bytes = killed
forget(Workspace.open(sys.argv[1], create=False), sys.argv[2], sys.argv[3])
"""


def test_killed_before_any_of_its_writes_it_leaves_all_whole_and_is_done_by_doing_it_again(
    tmp_path: Path, ws: Workspace
) -> None:
    url = f"sqlite:///{tmp_path}/ws/store/live.db"
    store = open_store(url)
    url_of[id(store)] = url
    source = fill(ws, store)
    store.close()
    expected = {v: [row for row in kept if not hers(row)] for v, kept in everything(ws).items()}
    writes = 0
    while True:
        code = [sys.executable, "-c", _FORGETTER, ws.uri, url, ANN, str(writes)]
        ended = subprocess.run(code, capture_output=True, timeout=60)
        verified(ws)
        for version in ws.versions("indexes"):
            now = BehaviorIndex.load(Path(ws.path("indexes", version, "behavior")))
            assert now.history("user07").texts is not None
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        writes += 1
    assert writes > 3
    assert found_in(tmp_path, SECRETS) == set()
    assert everything(ws) == expected
    assert publish_events(source, SOURCE, ws)
    assert found_in(tmp_path, SECRETS) == set()
    for version in ws.versions("events"):
        assert not any("was" in entry for entry in ws.manifest("events", version)["files"].values())


def test_what_a_job_made_meanwhile_is_cleaned_by_it(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forgetting ends between what was read and what is published."""
    table = make_events(rows("a", 60, 1))
    publish = type(ws.stage("events")).publish

    def late(staged: Any, manifest: dict[str, Any]) -> str:
        monkeypatch.undo()
        forget(ws, None, ANN)
        Bars(ws).add([f"u:{ANN}", *(f"s:{one}" for one in SESSIONS)], NOW_US * 2)
        return publish(staged, manifest)

    monkeypatch.setattr("rayrec.workspace.Staged.publish", late)
    publish_events(table, SOURCE, ws)
    assert found_in(Path(ws.root), SECRETS) == set()
    verified(ws)


def test_a_job_that_is_writing_what_cannot_be_read_yet_is_waited_for(ws: Workspace) -> None:
    staged = ws.stage("events")
    staged.write_bytes("events.parquet", b"PAR1 half of " + ANN.encode())
    with pytest.raises(Unavailable, match=r"a job is writing events/.*do it again"):
        forget(ws, None, ANN)
    os.utime(ws.path("events", staged.version, "events.parquet"), (0, 0))
    forget(ws, None, ANN)
    assert found_in(Path(ws.root), [ANN]) == set()


def test_half_an_index_is_waited_for_and_goes_once_it_is_left_behind(ws: Workspace) -> None:
    """Of an index job that was killed while it wrote, whichever files it had written."""
    publish_events(make_events(rows("a", 60, 1)), SOURCE, ws)
    whole = Path(ws.path("indexes", publish_behavior(ws), "behavior"))
    for name in ("users.parquet", "histories.npz"):
        half = Path(ws.path("indexes", f"half-{name}", "behavior"))
        half.mkdir(parents=True)
        (half / name).write_bytes((whole / name).read_bytes())
    (half.parent.parent / "half-users.parquet" / "behavior" / "more").write_bytes(ANN.encode())
    with pytest.raises(Unavailable, match="a job is writing indexes/half"):
        forget(ws, None, ANN)
    for path in Path(ws.path("indexes")).glob("half-*/**/*"):
        os.utime(path, (0, 0))
    forget(ws, None, ANN)
    assert found_in(Path(ws.root), [ANN]) == set()
    assert len(ws.names("indexes")) == 3


def test_events_that_cannot_be_read_yet_are_not_held_against_a_model(ws: Workspace) -> None:
    version = publish_events(make_events(rows("a", 60, 1)), SOURCE, ws)
    with ws.stage("models") as staged:
        staged.write_parquet("held_out.parquet", pa.table({"event_id": read_events(ws, version)["event_id"]}))
        model = staged.publish({})
    half = ws.stage("events")
    half.write_bytes("events.parquet", b"PAR1 half")
    with pytest.raises(Unavailable, match="a job is writing events/"):
        forget(ws, None, ANN)
    os.utime(ws.path("events", half.version, "events.parquet"), (0, 0))
    forget(ws, None, ANN)
    assert 0 < ws.read_parquet("models", model, "held_out.parquet").num_rows < 60


@pytest.mark.parametrize(
    "record",
    [
        '{"user_id": "smith, \\u65e5 ann", "type": "cli',
        'e1,click,"smith, 日 ann",5',
        '{"smith, 日 ann": {"clicks": 5}}',
        "[" * 100_000 + "smith, 日 ann",
    ],
)
def test_broken_records_are_known_by_ids_in_any_spelling(ws: Workspace, record: str) -> None:
    bars = Bars(ws)
    bars.create_secret()
    bars.add(["u:smith, 日 ann"], NOW_US)
    expected = not record.startswith("[[")  # in a tower of brackets nothing is told apart
    assert bars.mentions(record) is expected
    assert not bars.mentions(record.replace("smith", "jones"))


def test_a_published_file_that_cannot_be_read_is_told_and_not_passed_over(ws: Workspace) -> None:
    version = publish_events(make_events(rows("a", 60, 1)), SOURCE, ws)
    Path(ws.path("events", version, "events.parquet")).write_bytes(b"altered")
    with pytest.raises(IncompatibleArtifact, match=r"not readable .*nothing can be taken out of it"):
        forget(ws, None, ANN)


def test_an_altered_file_is_not_given_a_new_checksum(ws: Workspace) -> None:
    version = publish_events(make_events(rows("a", 60, 1)), SOURCE, ws)
    ws.write_parquet(make_events(rows("x", 60, 1)), "events", version, "events.parquet")
    with pytest.raises(IncompatibleArtifact, match=r"truncated or replaced|was altered"):
        forget(ws, None, ANN)


def test_what_is_older_than_some_days_goes_everywhere_and_stays_away(
    tmp_path: Path, ws: Workspace, store: EventStore, url: str
) -> None:
    old = [{**row, "ts_us": row["ts_us"] - 100 * DAY_US} for row in rows("a", 100, 1)]
    source = make_events([*old, *({**row, "event_id": f"new {i}", "user_id": "bob"} for i, row in enumerate(old[:5]))])
    table = source.set_column(
        6, EVENTS.field("ts_us"), pa.array([*source.column("ts_us").to_pylist()[:100], *[NOW_US] * 5])
    )
    names = [f"new {i}" for i in range(5)]
    store.append(table.to_pylist())
    publish_events(table.sort_by("ts_us"), SOURCE, ws)
    publish_behavior(ws)

    receipt = retain(ws, url, 30, now_us=NOW_US + DAY_US)

    assert [one["event_id"] for _, one in store.read(0, 1_000)] == names
    publish_events(table.sort_by("ts_us"), SOURCE, ws)
    export_events(ws, url)
    assert sorted(read_events(ws, newest_events(ws)).column("event_id").to_pylist()) == names
    assert found_in(tmp_path, ["her-event-", "user07"]) == set()
    assert {one["removed"] for one in receipt["places"] if one["place"].endswith("events")} == {100}
    assert store.append([{**old[0], "event_id": "late"}], [None]) == [0]
    assert {one["removed"] for one in retain(ws, url, 30, now_us=NOW_US + DAY_US)["places"]} == {0}


def test_the_copy_of_another_machine_is_cleaned_too(
    tmp_path: Path, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import fs as pafs

    from rayrec.rewriting import clean_copies

    publish_events(make_events(rows("a", 60, 1)), SOURCE, ws)
    version = publish_behavior(ws)
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    elsewhere = Workspace("far://away", pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), ws.root.lstrip("/"))
    assert not elsewhere.is_local
    elsewhere.local_copy("indexes", version)
    assert found_in(tmp_path / "cache", [ANN])

    forget(elsewhere, None, ANN)
    clean_copies(elsewhere, Bars(elsewhere))

    assert found_in(tmp_path, [ANN, SESSIONS[0]]) == set()
    elsewhere.local_copy("indexes", version)

    left = tmp_path / "cache" / "download-killed"
    left.mkdir()
    (left / "part").write_bytes(ANN.encode())
    elsewhere.remove("indexes", version)
    clean_copies(elsewhere, Bars(elsewhere))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["download-killed"]  # it may be under way
    for path in (left / "part", left):
        os.utime(path, (0, 0))
    clean_copies(elsewhere, Bars(elsewhere))
    assert list((tmp_path / "cache").iterdir()) == []


def test_bars_need_the_secret_and_say_nothing_without_it(ws: Workspace) -> None:
    bars = Bars(ws)
    bars.add(["u:ann", "s:one"], 10)
    bars.add(["u:ann", "s:two"], 7)

    assert [bars.until(one) for one in ("u:ann", "s:one", "s:two", "s:ann", None)] == [10, 10, 7, -1, -1]
    assert len(ws.names("barred")) == 1
    assert Bars(ws).known() == bars.known()
    assert oct(Path(ws.path("keys", "forget.secret")).stat().st_mode & 0o777) == "0o600"
    assert found_in(Path(ws.root), ["ann-"]) == set()
    other = Bars(ws)
    bars.add((), 3)
    assert other.refresh()
    assert not other.refresh()
    assert (other.until(None), other.until("u:bob"), other.until("u:ann")) == (3, 3, 10)
    events = make_events([{"user_id": "ann", "ts_us": 10}, {"user_id": "ann", "ts_us": 11}, {"ts_us": 3}, {"ts_us": 4}])
    assert other.forgotten(events).tolist() == [True, False, True, False]


def test_a_bar_that_is_replaced_while_it_is_read_is_not_missed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    Bars(ws).add(["u:ann"], 5)
    stale = ws.names("barred")
    Bars(ws).add(["u:ann", "s:one"], 10)
    listed = iter([stale])
    names = Workspace.names
    monkeypatch.setattr(Workspace, "names", lambda self, *of: next(listed, None) or names(self, *of))
    assert sorted(Bars(ws).known().values()) == [10, 10]


def test_what_a_session_did_before_it_was_said_to_be_theirs_is_not_learned_from(ws: Workspace) -> None:
    url = f"sqlite:///{ws.root}/store/live.db"
    store = open_store(url)
    events = [{"event_id": name, "type": "view", "item_id": "i1", "session_id": "s"} for name in ("old", "new")]
    store.append([{**events[0], "ts_us": NOW_US}])
    until_us = forget(ws, url, ANN)["until_us"]
    store.identify("s", ANN)
    store.append([{**events[1], "ts_us": until_us + 1}])

    export_events(ws, url)

    assert read_events(ws, newest_events(ws)).column("event_id").to_pylist() == ["new"]
    forget(ws, url, ANN)
    assert found_in(Path(ws.root), [ANN]) == set() == {one["event_id"] for _, one in store.read(0, 10)}
    store.close()
