"""What every event store promises, on SQLite and on a real redis-server."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rayrec.store import EventStore, open_store
from rayrec.store.base import HISTORY


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def event(
    name: str, ts_us: int = 1, user: str | None = "ann", session: str | None = None, **more: Any
) -> dict[str, Any]:
    about = {"user_id": user, "session_id": session}
    return {"event_id": name, "type": "click", "ts_us": ts_us, "item_id": f"item of {name}", **about, **more}


def names(events: list[tuple[int, dict[str, Any]]]) -> list[str]:
    return [one["event_id"] for _, one in events]


def test_an_empty_store(store: EventStore) -> None:
    assert store.end() == 0
    assert store.read(0, 10) == []
    assert store.history("ann", "s1") == []
    assert store.history(None, None) == []
    assert store.append([]) == []


def test_events_are_numbered_as_they_come_and_read_as_they_were(store: EventStore) -> None:
    first = event("e1", 5, query="日本 'quoted' \x00 {}", shown=["a", "b"], price_cents=2**53 - 1)

    assert store.append([first, event("e2", 3)]) == [1, 2]
    assert store.append([event("e3", user=None)]) == [3]

    assert store.end() == 3
    assert store.read(0, 10)[0] == (1, first)
    assert [(offset, one["event_id"]) for offset, one in store.read(1, 10)] == [(2, "e2"), (3, "e3")]
    assert [offset for offset, _ in store.read(0, 2)] == [1, 2]


def test_a_new_store_counts_on_from_another(url: str, store: EventStore) -> None:
    store.start_after(500)
    assert (store.end(), store.read(0, 10)) == (500, [])
    assert store.append([event("e1"), event("e2")]) == [501, 502]
    store.start_after(7)
    other = open_store(url)
    assert other.append([event("e2"), event("e3")]) == [None, 503]
    other.close()


def test_an_event_is_taken_once(store: EventStore) -> None:
    assert store.append([event("e1"), event("e1", 9), event("e2")]) == [1, None, 2]
    assert store.append([event("e2"), event("e3")]) == [None, 3]

    assert names(store.history("ann", None)) == ["e1", "e2", "e3"]
    assert store.history("ann", None)[0][1]["ts_us"] == 1


def test_a_history_is_in_order_of_time_whatever_the_order_of_arrival(store: EventStore) -> None:
    store.append([event("late", 30), event("early", 10)])
    store.append([event("between", 20), event("other", 15, user="bob"), event("as early", 10)])

    assert names(store.history("ann", None)) == ["early", "as early", "between", "late"]
    assert names(store.history("ann", None, 2)) == ["between", "late"]
    assert [offset for offset, _ in store.history("ann", None)] == [2, 5, 3, 1]
    assert names(store.history("bob", None)) == ["other"]


def test_times_are_kept_to_the_microsecond(store: EventStore) -> None:
    now = 1_795_000_000_123_456
    store.append([event("b", now + 1), event("a", now)])

    assert [one["ts_us"] for _, one in store.history("ann", None)] == [now, now + 1]


def test_a_long_history_keeps_its_newest(store: EventStore) -> None:
    n = 2 * HISTORY + 20
    store.append([event(f"e{i:04d}", i) for i in range(n)])
    store.append([event("too old", 0)])

    found = names(store.history("ann", None))
    assert found == [f"e{i:04d}" for i in range(n - HISTORY, n)]


def test_a_long_session_is_told_with_the_newest_of_its_user(store: EventStore) -> None:
    n = HISTORY + 10
    store.append([event(f"own {i:04d}", 2 * i) for i in range(n)])
    store.append([event(f"of s {i:04d}", 2 * i + 1, user=None, session="s1") for i in range(n)])
    expected = [f"{whose} {i:04d}" for i in range(n - HISTORY // 2, n) for whose in ("own", "of s")]
    assert names(store.history("ann", "s1")) == expected

    store.identify("s1", "ann")

    assert names(store.history("ann", None)) == expected


def test_a_session_becomes_its_users_back_to_its_beginning(store: EventStore) -> None:
    store.append(
        [event("own", 1), event("before", 2, user=None, session="s1"), event("else", 2, user=None, session="s2")]
    )
    assert names(store.history("ann", "s1")) == ["own", "before"]
    assert names(store.history("ann", None)) == ["own"]

    assert store.identify("s1", "ann") == 1
    store.append([event("after", 3, user=None, session="s1")])

    assert names(store.history("ann", None)) == ["own", "before", "after"]
    assert names(store.history(None, "s1")) == ["own", "before", "after"]
    assert names(store.history("ann", "s1")) == ["own", "before", "after"]
    assert [one["user_id"] for _, one in store.read(0, 10)] == ["ann", "ann", None, "ann"]


def test_a_session_that_says_another_user_later_moves_on(store: EventStore) -> None:
    store.append([event("hers", 1, user=None, session="s1")])
    assert store.identify("s1", "ann") == 1
    assert store.identify("s1", "bob") == 0
    store.append([event("his", 2, user=None, session="s1")])

    assert names(store.history("ann", None)) == ["hers"]
    assert names(store.history("bob", None)) == ["his"]
    assert [one["user_id"] for _, one in store.read(0, 10)] == ["ann", "bob"]


def test_a_session_that_is_anothers_adds_nothing(store: EventStore) -> None:
    store.append([event("anns", 1), event("bobs", 2, user=None, session="s1")])
    store.identify("s1", "bob")
    assert names(store.history("ann", "s1")) == ["anns"]
    assert names(store.history(None, "s1")) == ["bobs"]


def test_a_user_and_a_session_of_one_name_are_two(store: EventStore) -> None:
    store.append([event("user", user="x"), event("session", user=None, session="x")])

    assert names(store.history("x", None)) == ["user"]
    assert names(store.history(None, "x")) == ["session"]


def test_what_is_written_is_seen_by_others_and_after_opening_again(url: str, store: EventStore) -> None:
    other = open_store(url)
    store.append([event("e1")])
    assert names(other.history("ann", None)) == ["e1"]
    assert other.append([event("e1"), event("e2")]) == [None, 2]
    other.close()
    again = open_store(url)
    assert [offset for offset, _ in again.read(0, 10)] == [1, 2]
    again.close()


def test_writers_at_once_lose_nothing_and_share_no_offset(url: str) -> None:
    """Four threads, each with a store of its own, of which two pairs write the same events."""
    begin = threading.Barrier(4)

    def write(writer: int) -> list[int]:
        store = open_store(url)
        begin.wait()
        taken = [
            offset
            for batch in range(20)
            for offset in store.append(
                [event(f"{writer // 2}-{batch}-{i}", batch, user=f"u{writer}") for i in range(5)]
            )
            if offset is not None
        ]
        store.close()
        return taken

    with ThreadPoolExecutor(4) as threads:
        offsets = sorted(offset for taken in threads.map(write, range(4)) for offset in taken)

    assert offsets == list(range(1, 201))
