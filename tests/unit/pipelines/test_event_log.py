"""What the service took becomes a part of the events versions: each event exactly once, whatever happens between."""

from pathlib import Path
from typing import Any

import pytest

from rayrec.config import SourceConfig
from rayrec.errors import NotFound
from rayrec.pipelines import event_log
from rayrec.pipelines.event_log import export_events, newest_events, read_events
from rayrec.pipelines.index import publish_events
from rayrec.store import EventStore, default_store, open_store
from rayrec.workspace import Staged, Workspace
from tests.fakes import NOW_US, make_events

SOURCE = SourceConfig(path="events")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def store(ws: Workspace):
    opened = open_store(f"sqlite:///{ws.path('store', 'live.db')}")
    yield opened
    opened.close()


def take(store: EventStore, *names: str, **more: Any) -> None:
    about = {"type": "click", "user_id": "ann", "item_id": "a"}
    store.append([{"event_id": n, "ts_us": NOW_US + i, **about, **more} for i, n in enumerate(names)])


def names(ws: Workspace) -> list[str]:
    return read_events(ws, newest_events(ws)).column("event_id").to_pylist()


def imported(ws: Workspace) -> str:
    return publish_events(make_events([{"item_id": "a"}, {"item_id": "b"}]), SOURCE, ws)


def test_new_events_join_the_newest_version_once(ws: Workspace, store: EventStore) -> None:
    first = imported(ws)
    take(store, "x1", "x2")

    told = export_events(ws)

    assert (told.events, told.offset) == (2, 2)
    assert told.version == newest_events(ws) != first
    assert names(ws) == ["e000000", "e000001", "x1", "x2"]
    assert export_events(ws) == event_log.Exported(told.version, 0, 2)
    take(store, "x3")
    assert export_events(ws).events == 1
    assert sorted(names(ws)) == ["e000000", "e000001", "x1", "x2", "x3"]
    assert read_events(ws, first).num_rows == 2
    assert ws.manifest("events", newest_events(ws))["counts"] == {"events": 5}
    ws.verify("events", newest_events(ws))


def test_values_come_through(ws: Workspace, store: EventStore) -> None:
    search = {"type": "search", "item_id": None, "query": "日本", "request_id": "r", "shown": ["a", "b"]}
    take(store, "s", user_id=None, session_id="s1", **search)
    store.identify("s1", "ann")

    export_events(ws)

    row = read_events(ws, newest_events(ws)).to_pylist()[0]
    assert row == {**row, **search, "event_id": "s", "user_id": "ann", "session_id": "s1", "ts_us": NOW_US}


def test_many_events_come_in_parts(ws: Workspace, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_AT_ONCE", 7)
    take(store, *(f"x{i:02d}" for i in range(50)))

    assert export_events(ws).events == 50
    assert names(ws) == [f"x{i:02d}" for i in range(50)]


def test_an_export_that_is_killed_leaves_nothing_and_the_next_one_has_all(
    ws: Workspace, store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(ws)
    take(store, "x1")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Staged, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            export_events(ws)
    assert names(ws) == ["e000000", "e000001"]
    take(store, "x2")

    assert export_events(ws).events == 2
    assert names(ws) == ["e000000", "e000001", "x1", "x2"]


def test_loading_the_source_again_loses_and_doubles_nothing(ws: Workspace, store: EventStore) -> None:
    imported(ws)
    take(store, "x1")
    exported = export_events(ws).version

    assert imported(ws) == exported  # the same source: that version has it
    publish_events(make_events([{"item_id": "a"}, {"item_id": "b"}, {"item_id": "c"}]), SOURCE, ws)
    assert export_events(ws).events == 1
    assert names(ws) == ["e000000", "e000001", "e000002", "x1"]


def test_an_event_that_a_file_has_too_is_there_once(ws: Workspace, store: EventStore) -> None:
    imported(ws)
    take(store, "e000001", "x1")
    export_events(ws)
    assert sorted(names(ws)) == ["e000000", "e000001", "x1"]


def test_without_a_store_or_events_nothing_happens(ws: Workspace) -> None:
    assert default_store(ws) is None
    assert export_events(ws) == event_log.Exported(None, 0, 0)
    with pytest.raises(NotFound, match="no events in"):
        newest_events(ws)
    version = imported(ws)
    assert export_events(ws) == event_log.Exported(version, 0, 0)
    open_store(f"sqlite:///{ws.path('store', 'live.db')}").close()
    assert default_store(ws) == f"sqlite:///{ws.path('store', 'live.db')}"
    assert export_events(ws) == event_log.Exported(version, 0, 0)
