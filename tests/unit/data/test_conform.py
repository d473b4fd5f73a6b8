"""Every cast is lossless or the row is set aside; nothing in between."""

import json
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.config import SourceConfig
from rayrec.data import catalog
from rayrec.data.conform import Quarantine, Rules, conform
from rayrec.data.readers import RawTable
from rayrec.schema import ITEMS

NOON_US = 1_704_456_000_000_000  # 2024-01-05T12:00:00Z


def cast(column: str, values: Any, **rules: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """(kept values, quarantine records) of one column beside a good id and title."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    table = pa.table({"item_id": [f"i{i}" for i in range(len(array))], "title": ["t"] * len(array), column: array})
    quarantine = Quarantine()
    raw = RawTable("shop.csv", table, range(table.num_rows))
    kept, _ = conform(raw, ITEMS, {}, Rules(**rules), quarantine)
    return kept.column(column).to_pylist(), quarantine.records


@pytest.mark.parametrize(
    "values",
    [
        ["4995", "17"],
        ["4995.0", " 17 "],
        [b"4995", b"17"],
        [4995.0, 17.0],
        [Decimal("4995.00"), Decimal("17.00")],
        pa.array([4995, 17], pa.int32()),
        pa.array([4995, 17], pa.uint64()),
        pa.array(["4995", "17"], pa.large_string()),
        pa.array(["4995", "17"]).dictionary_encode(),
    ],
    ids=str,
)
def test_a_whole_number_becomes_int64_from_any_type(values: Any) -> None:
    assert cast("price_cents", values) == ([4995, 17], [])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["1", "49.95", "3"], "49.95"),
        (["1", "4995 EUR", "3"], "4995 EUR"),
        (["1", "nan", "3"], "nan"),
        (["1", "inf", "3"], "inf"),
        (["1", "99999999999999999999", "3"], "99999999999999999999"),
        (["1", "9007199254740993.0", "3"], "9007199254740993.0"),  # 2**53 + 1: as a float it would end in 2
        ([1.0, 49.95, 3.0], "49.95"),
        ([1.0, float("nan"), 3.0], "nan"),
        ([Decimal("1.00"), Decimal("49.95"), Decimal("3.00")], "49.95"),
        (pa.array([1, 2**63, 3], pa.uint64()), str(2**63)),
    ],
    ids=str,
)
def test_a_price_that_would_change_is_set_aside_and_its_neighbours_stay(values: Any, found: str) -> None:
    kept, (record,) = cast("price_cents", values)
    assert kept == [1, 3]
    assert record["source"] == "shop.csv"
    assert (record["row"], record["column"], record["found"]) == (1, "price_cents", found)
    assert record["expected"] == "int64 (a whole number)"
    assert json.loads(record["record"]).keys() == {"item_id", "title", "price_cents"}
    assert json.loads(record["record"])["item_id"] == "i1"


def test_digits_beyond_a_floats_survive_beside_a_float_text() -> None:
    assert cast("price_cents", ["9007199254740993", "1.0"]) == ([2**53 + 1, 1], [])


def test_a_negative_price_is_set_aside() -> None:
    kept, (record,) = cast("price_cents", [0, -1, 5])
    assert kept == [0, 5]
    assert (record["row"], record["found"], record["expected"]) == (1, "-1", "0 or more")


def test_a_blank_optional_value_is_null_and_a_blank_required_one_is_set_aside() -> None:
    assert cast("brand", ["HP", "  ", None]) == (["HP", None, None], [])
    table = pa.table({"item_id": ["a", "", None, "d"], "title": ["A", "B", "C", " \t"]})
    quarantine = Quarantine()
    kept, rows = conform(RawTable("s", table, range(4)), ITEMS, {}, Rules(), quarantine)
    assert (kept.column("item_id").to_pylist(), rows) == (["a"], [0])
    assert [(r["row"], r["column"], r["expected"]) for r in quarantine.records] == [
        (1, "item_id", "a value; it is required"),
        (2, "item_id", "a value; it is required"),
        (3, "title", "a value; it is required"),
    ]


def test_a_row_with_two_faults_is_set_aside_once() -> None:
    table = pa.table({"item_id": ["a", None], "title": ["A", None], "price_cents": ["1", "x"]})
    quarantine = Quarantine()
    conform(RawTable("s", table, range(2)), ITEMS, {}, Rules(), quarantine)
    assert [(r["row"], r["column"]) for r in quarantine.records] == [(1, "item_id")]


def strings(*values: bytes) -> pa.Array:
    """A string array over bytes that nobody checked, as a careless Parquet writer leaves them."""
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize("values", [[b"fine", b"\xff\xfe", b"too"], strings(b"fine", b"\xff\xfe", b"too")])
def test_bytes_that_are_not_utf8_cost_one_row(values: Any) -> None:
    kept, (record,) = cast("brand", values)
    assert kept == ["fine", "too"]
    assert (record["row"], record["found"], record["expected"]) == (1, r"\xff\xfe", "valid UTF-8")
    assert json.loads(record["record"])["brand"] == r"\xff\xfe"


def test_bytes_that_are_not_utf8_inside_a_list_or_map_cost_one_row() -> None:
    words = strings(b"food", b"\xff", b"drink")
    kept, (record,) = cast("category", pa.ListArray.from_arrays([0, 1, 2, 3], words))
    assert (kept, record["row"], record["column"]) == ([["food"], ["drink"]], 1, "category")
    kept, (record,) = cast("attributes", pa.MapArray.from_arrays([0, 1, 2, 3], ["k"] * 3, words))
    assert (kept, record["row"], record["column"]) == ([[("k", "food")], [("k", "drink")]], 1, "attributes")


def test_text_over_the_limit_is_set_aside_and_text_at_it_stays() -> None:
    kept, (record,) = cast("description", ["é" * 5, "é" * 6], max_text_chars=5)
    assert kept == ["ééééé"]
    assert (record["row"], record["expected"]) == (1, "at most 5 characters")


def test_nested_values_are_no_text() -> None:
    kept, (record,) = cast("brand", [None, {"name": "HP"}])
    assert kept == [None]
    assert (record["row"], record["found"], record["expected"]) == (1, "{'name': 'HP'}", "plain text")


@pytest.mark.parametrize("values", [[1, 0, 2], [1.0, 0.0, 2.0], ["true", "False", "maybe"], ["1", "0", "2"]], ids=str)
def test_a_boolean_is_0_or_1_or_a_word_for_it(values: list[Any]) -> None:
    kept, (record,) = cast("available", values)
    assert (kept, record["row"], record["found"]) == ([True, False], 2, str(values[2]))


def test_times_are_utc_microseconds_and_iso_text_without_a_zone_is_utc() -> None:
    texts = [
        "2024-01-05T12:00:00Z", "2024-01-05T12:00:00", "2024-01-05 14:00:00+02:00", "2024-01-05T12:00:00.000001Z",
        "2024-01-05", "1704456000000000",
    ]  # fmt: skip
    kept, (record,) = cast("updated_us", [*texts, "yesterday"])
    assert kept == [NOON_US, NOON_US, NOON_US, NOON_US + 1, NOON_US - 12 * 3_600_000_000, NOON_US]
    assert (record["row"], record["found"]) == (6, "yesterday")
    assert record["expected"] == "a time: ISO 8601, or whole microseconds since 1970"


def test_native_times_are_utc_microseconds() -> None:
    assert cast("updated_us", [datetime(2024, 1, 5, 12)]) == ([NOON_US], [])
    assert cast("updated_us", pa.array([datetime(2024, 1, 5, 12)], pa.timestamp("ns", tz="Asia/Tokyo")))[0] == [NOON_US]
    assert cast("updated_us", [date(2024, 1, 5)])[0] == [NOON_US - 12 * 3_600_000_000]


def test_a_category_is_a_list_or_text_with_separators_or_a_json_array() -> None:
    assert cast("category", [["Food", "Snacks"], [], None])[0] == [["Food", "Snacks"], [], None]
    assert cast("category", ["Food > Snacks >", "Food", ""])[0] == [["Food", "Snacks"], ["Food"], None]
    assert cast("category", ["a/b"], category_separator="/")[0] == [["a", "b"]]
    kept, (record,) = cast("category", ['["Food", "Snacks"]', "[New] Food", '{"a": 1}'])
    assert (kept, record["row"]) == ([["Food", "Snacks"], ["[New] Food"]], 2)


MAPS = [
    pa.array(['{"size": 8, "new": true, "tags": ["a", "b"], "gone": null}', None, '{"a": {"b": 1}}', "size 8", "[1]"]),
    pa.array([{"size": 8.0, "new": True, "tags": ["a", "b"]}, None, *[{"tags": ["x"], "deep": [{"b": 1}]}] * 3]),
]


@pytest.mark.parametrize("values", MAPS, ids=["json text", "struct"])
def test_attributes_come_from_json_text_and_structs_of_plain_values(values: pa.Array) -> None:
    kept, records = cast("attributes", values)
    assert sorted(kept[0]) == [("new", "true"), ("size", "8"), ("tags", "a, b")]
    assert kept[1:] == [None]
    assert [r["row"] for r in records] == [2, 3, 4]


def test_attributes_come_from_maps() -> None:
    values = pa.array([[("size", 8)], None], pa.map_(pa.string(), pa.int64()))
    assert cast("attributes", values) == ([[("size", "8")], None], [])


def test_a_column_of_the_wrong_type_sets_every_row_aside_and_an_empty_one_none() -> None:
    assert len(cast("price_cents", [{"eur": 1}, {"eur": 2}])[1]) == 2
    assert cast("price_cents", pa.array([], pa.struct([("eur", pa.int64())]))) == ([], [])


# -- any mixture of good and bad rows -------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c", "d", "e", "", " ", None])
TITLES = st.sampled_from(["ok", " a title ", "x" * 20, "x" * 21, "", "\t", None])
PRICES = st.one_of(
    st.none(),
    st.integers(-(2**64), 2**64).map(str),
    st.integers(0, 10_000).map(str),
    st.floats().map(str),
    st.integers(0, 10_000).map(lambda n: f"{n}.0"),
    st.sampled_from(["", " ", "4995 EUR", "49.95", "1,000", "free", " 7 ", "1e3", "true", "--1"]),
)


def is_price(text: str | None) -> bool:
    if text is None or not text.strip():
        return True
    try:
        value = Decimal(text.strip())
        whole = value == int(value)
    except (InvalidOperation, ValueError, OverflowError):
        return False
    return whole and 0 <= value < (2**63 if text.strip().isdigit() else 2**53)


@settings(max_examples=150)
@given(st.lists(st.tuples(IDS, TITLES, PRICES), max_size=40))
def test_a_row_is_kept_if_and_only_if_it_is_good(rows: list[tuple[str | None, ...]]) -> None:
    rows = [("sure", "one good row", "1"), *rows]
    kept: list[str] = []
    for item_id, title, price in rows:
        good = (item_id or "").strip() and 1 <= len((title or "").strip()) <= 20 and is_price(price)
        kept += [item_id] if good and item_id not in kept else []
    columns = [pa.array(values, pa.string()) for values in zip(*rows, strict=True)]
    raw = RawTable("s", pa.table(columns, names=["item_id", "title", "price_cents"]), range(len(rows)))
    items, quarantine = catalog.normalise([raw], SourceConfig(path="s", max_text_chars=20))
    assert items.column("item_id").to_pylist() == sorted(kept)
    assert len({r["row"] for r in quarantine.records}) == len(quarantine) == len(rows) - len(kept)


@pytest.mark.parametrize("value", [NOON_US * 1000, -1, 4_102_444_800_000_000])
def test_a_time_outside_1970_to_2100_is_set_aside(value: int) -> None:
    kept, aside = cast("updated_us", [NOON_US, value])
    assert kept == [NOON_US]
    assert [(r["row"], r["column"], r["found"]) for r in aside] == [(1, "updated_us", str(value))]
