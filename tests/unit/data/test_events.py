"""Events are checked, each is there once, and they stand in time order."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from rayrec.data import events
from rayrec.errors import SchemaError
from rayrec.schema import EVENTS

LoadEvents = Callable[..., tuple[pa.Table, list[dict[str, Any]], int]]


def log(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"type": "view", "item_id": "a", **row} for row in rows], schema=EVENTS)


def test_events_stand_in_time_order_and_at_one_time_by_id() -> None:
    table = log({"event_id": "c", "ts_us": 2}, {"event_id": "b", "ts_us": 2}, {"event_id": "d", "ts_us": 1})
    assert events.dedupe(table).column("event_id").to_pylist() == ["d", "b", "c"]


def test_of_one_event_id_the_earliest_is_kept() -> None:
    table = log(
        {"event_id": "x", "ts_us": 3, "item_id": "late"},
        {"event_id": "y", "ts_us": 2},
        {"event_id": "x", "ts_us": 1, "item_id": "early"},
    )
    kept = events.dedupe(table)
    assert kept.column("event_id").to_pylist() == ["x", "y"]
    assert kept.column("item_id").to_pylist() == ["early", "a"]


def test_no_events_are_no_events() -> None:
    assert events.dedupe(EVENTS.empty_table()).num_rows == 0


CSV = "type,ts_us,item_id,user_id\nview,2,a,u\npurchase,1,b,u\nview,2,a,u\n"


def test_ids_made_of_the_content_are_the_same_in_every_run(load_events: LoadEvents) -> None:
    first, _, repeats = load_events("first.csv", CSV)
    second, _, _ = load_events("second.csv", CSV)
    assert first.equals(second)
    assert repeats == 1  # two rows alike in every column are one event
    assert first.select(["type", "ts_us"]).to_pylist() == [
        {"type": "purchase", "ts_us": 1},
        {"type": "view", "ts_us": 2},
    ]
    # BLAKE2b of repr(sorted(row.items())), pinned: a stored log must not repeat after an upgrade
    assert first.column("event_id").to_pylist() == ["616d3c456d2ff819dfaf2ec5", "f14f971c5ffaf73e407008cf"]


def test_given_ids_stay_and_only_missing_ones_are_made(load_events: LoadEvents) -> None:
    table, _, _ = load_events("e.csv", "event_id,type,ts_us,item_id\nmine,view,1,a\n,view,2,a\n")
    first, second = table.column("event_id").to_pylist()
    assert first == "mine"
    assert len(second) == 24


def test_a_bad_event_is_set_aside_and_the_others_stay(load_events: LoadEvents) -> None:
    rows = [
        {"type": "view", "ts_us": 5, "item_id": "a"},
        {"type": "glance", "ts_us": 1, "item_id": "a"},
        {"type": "view", "ts_us": "then", "item_id": "a"},
        {"type": None, "ts_us": 1, "item_id": "a"},
        {"type": "view", "ts_us": 1, "item_id": "a", "quantity": -1},
        {"type": "view", "ts_us": 1, "page": "home"},
        {"type": "search", "ts_us": 4, "query": "cable"},
    ]
    table, records, repeats = load_events("e.jsonl", "\n".join(map(json.dumps, rows)))
    assert (table.column("type").to_pylist(), repeats) == (["search", "view"], 0)
    assert [(r["row"], r["column"], r["found"]) for r in records] == [
        (1, "type", "glance"), (2, "ts_us", "then"), (3, "type", "None"), (4, "quantity", "-1"), (5, "item_id", "None"),
    ]  # fmt: skip
    assert records[0]["expected"] == "one of view, click, add_to_cart, purchase, search"
    assert json.loads(records[-1]["record"])["page"] == "home"


def test_rows_are_numbered_right_when_an_earlier_one_was_set_aside(load_events: LoadEvents) -> None:
    _, records, _ = load_events("e.csv", "type,ts_us,item_id\nragged\nbad,1,a\nview,1,\n")
    assert [(r["row"], r["column"]) for r in records] == [(0, None), (1, "type"), (2, "item_id")]


def test_columns_of_the_source_are_mapped_and_unknown_ones_refused(load_events: LoadEvents) -> None:
    text = "kind,at,sku\nview,2024-01-05T12:00:00Z,a\n"
    table, _, _ = load_events("e.csv", text, columns={"type": "kind", "ts_us": "at", "item_id": "sku"})
    assert table.column("ts_us").to_pylist() == [1_704_456_000_000_000]
    with pytest.raises(SchemaError, match=r"\['title'\] are not event columns"):
        load_events("e.csv", text, columns={"title": "kind"})
    with pytest.raises(SchemaError, match=r"no column 'type' for type; it has \['kind', 'at', 'sku'\]"):
        load_events("e.csv", text)
