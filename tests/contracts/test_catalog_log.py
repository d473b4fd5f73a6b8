"""What every log of catalog changes promises, on SQLite and on a real redis-server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayrec.schema import Change
from rayrec.store import CatalogLog, Wanted, open_catalog_log, open_store


@pytest.fixture
def log(url: str) -> Iterator[CatalogLog]:
    opened = open_catalog_log(url)
    yield opened
    opened.close()


def put(item_id: str, title: str = "a mug", *, unless_after: int | None = None, ts_us: int = 5) -> Wanted:
    return Wanted(item_id, {"item_id": item_id, "title": title}, "c0ffee", ts_us, unless_after)


def gone(item_id: str, ts_us: int = 9) -> Wanted:
    return Wanted(item_id, None, None, ts_us)


def test_an_empty_log(log: CatalogLog) -> None:
    assert log.newest() == 0
    assert log.changes(0, 10) == []
    assert log.vectors(["x"]) == {}
    assert log.vectors([]) == {}
    assert log.change([], {}) == []


def test_changes_are_numbered_as_they_come_and_read_as_they_were(log: CatalogLog) -> None:
    item = {"item_id": "日本 'a' {}", "title": "x\x00y", "attributes": {"a": "b"}, "price_cents": 2**53 - 1}

    assert log.change([Wanted(item["item_id"], item, "ab", 7), gone("b")], {}) == [1, 2]
    assert log.change([put("c")], {}) == [3]

    assert log.newest() == 3
    assert log.changes(0, 2) == [Change(1, item["item_id"], item, "ab", 7), Change(2, "b", None, None, 9)]
    assert [each.offset for each in log.changes(2, 10)] == [3]


def test_a_new_log_counts_on_from_another(url: str, log: CatalogLog) -> None:
    log.start_after(500)
    assert (log.newest(), log.changes(0, 10)) == (500, [])
    assert log.change([put("a")], {}) == [501]
    log.start_after(7)
    other = open_catalog_log(url)
    assert other.change([put("b", unless_after=500)], {}) == [502]
    other.close()


def test_vectors_are_kept_beside_the_changes(log: CatalogLog) -> None:
    raw = bytes(range(256))
    log.change([put("a")], {"space:c0ffee": raw, "other": b"\x00"})

    assert log.vectors(["space:c0ffee", "unknown"]) == {"space:c0ffee": raw}


def test_a_change_is_refused_if_another_came_between(log: CatalogLog) -> None:
    log.change([put("a"), put("b")], {})

    assert log.change([put("a", unless_after=0), put("a", unless_after=1), put("b", unless_after=1)], {}) == [
        None,
        3,
        None,
    ]
    assert log.change([put("a", unless_after=2), put("new", unless_after=0)], {}) == [None, 4]
    assert log.newest() == 4


def test_of_writers_at_once_one_is_first(log: CatalogLog) -> None:
    """Each adds one to what it read, and tries again where another was faster: no addition is lost."""
    log.change([put("a", "0")], {})

    def add(_: int) -> None:
        while True:
            seen = log.newest()
            title = [c.item["title"] for c in log.changes(0, 1_000) if c.item and c.offset <= seen][-1]
            if log.change([put("a", str(int(title) + 1), unless_after=seen)], {})[0] is not None:
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))

    assert log.changes(0, 1_000)[-1].item == {"item_id": "a", "title": "20"}
    assert [each.offset for each in log.changes(0, 1_000)] == list(range(1, 22))


def test_what_is_cut_is_gone_and_its_offsets_are_not_given_again(log: CatalogLog) -> None:
    log.change([put("a"), put("b")], {"first": b"1"})
    log.change([put("c")], {"second": b"2", "first": b"1"})
    log.change([put("d")], {"third": b"3"})

    assert log.cut(3) == 3
    assert [each.item_id for each in log.changes(0, 10)] == ["d"]
    assert log.vectors(["first", "second", "third"]) == {"third": b"3"}
    assert log.cut(4) == 1
    assert log.newest() == 4
    assert log.change([put("e", unless_after=3)], {}) == [5]


def test_another_process_sees_it_at_once_beside_the_events(log: CatalogLog, url: str) -> None:
    log.change([put("a")], {"v": b"1"})
    other, events = open_catalog_log(url), open_store(url)
    events.append([{"event_id": "e", "type": "view", "ts_us": 1, "item_id": "a"}])
    try:
        assert other.newest() == 1
        assert other.change([gone("a")], {}) == [2]
        assert [each.item for each in log.changes(1, 10)] == [None]
        assert events.end() == 1
    finally:
        other.close()
        events.close()
