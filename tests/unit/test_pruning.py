"""Old versions go, what answers stays, and the log keeps every change that a kept base lacks."""

from pathlib import Path

import pytest

from rayrec.errors import NotFound, SchemaError
from rayrec.pruning import Pruned, prune
from rayrec.store import Wanted, open_catalog_log
from rayrec.workspace import Workspace


def publish(ws: Workspace, kind: str, **said: object) -> str:
    with ws.stage(kind) as staged:
        staged.write_bytes("x", b"x")
        return staged.publish({"encoder": {"space": "s"}, **said})


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


def filled(ws: Workspace) -> list[str]:
    """Five indexes at offsets 0, 2, 4, 6 and 8, each of its own catalog and events."""
    indexes = []
    for n in range(5):
        catalog, events = publish(ws, "catalog", log_offset=2 * n), publish(ws, "events")
        indexes.append(publish(ws, "indexes", catalog=catalog, events=events, log_offset=2 * n))
        ws.promote(index=indexes[-1])
    return indexes


def test_the_newest_and_what_answers_stay(ws: Workspace) -> None:
    indexes = filled(ws)
    ws.promote(index=indexes[1])

    assert prune(ws, 2) == Pruned(indexes=2, catalog=2, events=2, changes=0)

    assert ws.versions("indexes") == [indexes[1], *indexes[3:]]
    assert [ws.manifest("indexes", v)["catalog"] for v in ws.versions("indexes")] == ws.versions("catalog")
    assert len(ws.versions("events")) == 3
    assert not set(ws.names("indexes")) - set(ws.versions("indexes"))
    assert ws.current().index == indexes[1]
    assert {pair["index"] for pair in ws.current().history} == {indexes[1], *indexes[3:]}
    assert prune(ws, 2) == Pruned(0, 0, 0, 0)


def test_who_rolls_back_finds_only_what_is_there(ws: Workspace) -> None:
    indexes = filled(ws)
    prune(ws, 2)
    assert ws.rollback().index == indexes[3]
    with pytest.raises(NotFound, match="nothing to roll back to"):
        ws.rollback()


def test_the_log_is_cut_below_the_oldest_base_that_is_kept(ws: Workspace) -> None:
    filled(ws)
    url = f"sqlite:///{ws.root}/store/live.db"
    log = open_catalog_log(url)
    log.change([Wanted(f"i{n}", None, None, n) for n in range(10)], {})

    assert prune(ws, 3, url).changes == 4
    assert [change.offset for change in log.changes(0, 100)] == [5, 6, 7, 8, 9, 10]
    assert prune(ws, 1, url).changes == 4
    assert log.newest() == 10
    log.close()


def test_what_a_model_was_trained_on_stays(ws: Workspace) -> None:
    filled(ws)
    events = ws.versions("events")
    publish(ws, "models", events=events[0])
    prune(ws, 1)
    assert ws.versions("events") == [events[0], events[4]]


def test_at_least_one_is_kept(ws: Workspace) -> None:
    with pytest.raises(SchemaError, match="keep: expected 1 or more"):
        prune(ws, 0)
