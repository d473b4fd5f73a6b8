"""Files as shops write them: every row is told apart, and only what is no table at all is an error."""

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from rayrec.config import SourceConfig
from rayrec.data import catalog, readers
from rayrec.errors import NotFound, SchemaError
from rayrec.files import open_filesystem
from tests.unit.data.conftest import write

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00"
Load = Callable[..., tuple[pa.Table, list[dict[str, object]]]]

CSV = """item_id,title,brand,category,price_cents,available,attributes,updated_us
a,"Cable, 2 m",Anker,Tech > Cables,999,true,"{""color"": ""red""}",2024-01-05T12:00:00Z
b,"Two
lines",,Tech,,false,,
"""
JSONL = r"""
{"item_id": "a", "title": "Cable, 2 m", "brand": "Anker", "category": ["Tech", "Cables"], "price_cents": 999,
 "available": true, "attributes": {"color": "red"}, "updated_us": "2024-01-05T12:00:00Z"}
{"item_id": "b", "title": "Two\nlines", "category": ["Tech"], "available": 0}
""".replace(",\n", ",")
PARQUET = pa.table(
    {
        "item_id": ["a", "b"],
        "title": ["Cable, 2 m", "Two\nlines"],
        "brand": ["Anker", None],
        "category": [["Tech", "Cables"], ["Tech"]],
        "price_cents": pa.array([999, None], pa.float64()),
        "available": [True, False],
        "attributes": pa.array([[("color", "red")], None], pa.map_(pa.string(), pa.string())),
        "updated_us": [1_704_456_000_000_000, None],
    }
)
SAME = {
    "items.parquet": PARQUET,
    "items.csv": CSV,
    "windows.csv": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").replace("Two\r\n", "Two\n").encode(),
    "semicolons.csv": CSV.replace(",", ";").replace("Cable;", "Cable,"),
    "tabs.tsv": CSV.replace(",", "\t").replace("Cable\t", "Cable,"),
    "items.jsonl": JSONL,
    "bom.ndjson": b"\xef\xbb\xbf" + JSONL.strip().encode(),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_rows_give_the_same_catalog_from_any_format(name: str, load: Load) -> None:
    items, records = load(name, SAME[name])
    expected, _ = load("reference.parquet", PARQUET)
    assert expected.num_rows == 2
    assert items.equals(expected)
    assert records == []


def test_a_source_on_another_filesystem_gives_the_same_catalog(load: Load, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe(f"{tmp_path}/items.csv", CSV.encode())
    source = SourceConfig(path=f"memory:/{tmp_path}/items.csv")
    items, _ = catalog.normalise(readers.read(*open_filesystem(source.path)), source)
    assert items.equals(load("reference.parquet", PARQUET)[0])


def test_a_directory_is_read_in_name_order_without_what_is_no_data(load: Load, tmp_path: Path) -> None:
    for name, title in {"b.csv": "second", "deep/c.csv": "third"}.items():
        write(tmp_path / "shop" / name, f"item_id,title\n{title},t\nshared,{title}\n")
    for name in ("_SUCCESS", ".b.csv", "README.md"):
        write(tmp_path / "shop" / name, PNG)
    source = SourceConfig(path=str(tmp_path / "shop"))
    items, quarantine = catalog.normalise(readers.read(*open_filesystem(source.path)), source)
    assert items.column("title").to_pylist() == ["t", "second", "t"]  # of second, shared, third
    assert [(r["source"].rpartition("/")[2], r["row"]) for r in quarantine.records] == [("c.csv", 1)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("content", [PNG, b""], ids=["png", "empty"])
def test_a_file_that_is_no_table_is_one_error_that_names_it(name: str, content: bytes, load: Load) -> None:
    with pytest.raises(SchemaError, match=f"{name}: not a .*(CSV|JSONL|Parquet) file") as caught:
        load(name, content)
    assert "\n" not in str(caught.value)


def test_a_file_of_unknown_kind_is_named(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"items\.xlsx: unknown kind of file; set format"):
        load("items.xlsx", PNG)


def test_the_format_can_be_said_when_the_name_does_not_tell(load: Load) -> None:
    assert load("dump.txt", CSV, format="csv")[0].num_rows == 2


def test_a_path_without_tables_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(NotFound, match=str(path)):
            list(readers.read(*open_filesystem(str(path))))


def test_a_file_with_a_header_alone_says_that_it_has_no_rows(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"items\.csv: no usable item; it has no rows"):
        load("items.csv", "item_id,title\n")


def test_a_column_that_is_there_twice_is_named(load: Load) -> None:
    with pytest.raises(SchemaError, match="more than one column 'title'"):
        load("items.csv", "item_id,title,title\na,b,c\n")


def places(records: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return sorted((r["row"], r["column"], r["found"]) for r in records)


def test_csv_rows_count_from_0_past_ragged_rows_quoted_newlines_and_blank_lines(load: Load) -> None:
    text = 'item_id,title,price_cents\na,A\n\n"b","two\nlines",x\nc,C,1,2\nd,D,1\ne,E,free\n'
    items, records = load("items.csv", text)
    assert items.column("item_id").to_pylist() == ["d"]
    assert places(records) == [
        (0, None, "2 fields"),
        (1, "price_cents", "x"),
        (2, None, "4 fields"),
        (4, "price_cents", "free"),
    ]
    assert [r["record"] for r in records if r["column"] is None] == ["a,A", "c,C,1,2"]


def test_csv_rows_are_numbered_right_past_the_readers_first_block(load: Load) -> None:
    many = "".join(f'{i},"x\ny"\n' for i in range(100_000))  # 1.3 MB; pyarrow reads blocks of 1 MiB
    items, records = load("items.csv", f"item_id,title\n{many}ragged\nlast,\n")
    assert items.num_rows == 100_000
    assert places(records) == [(100_000, None, "1 fields"), (100_001, "title", "None")]


def test_a_ragged_csv_row_with_bytes_that_are_not_utf8_costs_that_row_alone(load: Load) -> None:
    items, records = load("items.csv", b"item_id,title,brand\na,\xc3\xa9,\nb,\xff\nc,\xff,\nd,D,\n")
    assert items.column("title").to_pylist() == ["é", "D"]
    assert places(records) == [(1, None, "2 fields"), (2, "title", r"\xff")]
    assert records[0]["record"] == r"b,\xff"


def test_a_broken_json_line_is_set_aside_whole(load: Load) -> None:
    long = '{"item_id": "b", "title": "' + "x" * 500
    items, records = load("items.jsonl", f'\n{{"item_id": "a", "title": "A"}}\n\n{long}\n[1]\n"text"\n')
    assert items.column("item_id").to_pylist() == ["a"]
    assert [(r["row"], r["expected"]) for r in records] == [(n, "one JSON object per line") for n in (1, 2, 3)]
    assert [r["record"] for r in records] == [long, "[1]", '"text"']


def test_json_text_that_is_no_unicode_costs_one_row(load: Load) -> None:
    lines = [
        rb'{"item_id": "a", "title": "\ud83d\ude00"}',
        rb'{"item_id": "b", "title": "\ud800"}',
        b'{"title": "\xff"}',
    ]
    items, records = load("items.jsonl", b"\n".join(lines))
    assert items.column("title").to_pylist() == ["😀"]
    assert [r["row"] for r in records] == [1, 2]


def test_json_columns_of_many_types_are_judged_row_by_row(load: Load) -> None:
    rows = [
        {"item_id": 1, "title": "plain", "price_cents": 5, "category": "Food > Snacks", "attributes": '{"a": 1}'},
        {"item_id": "x", "title": "list", "price_cents": "5.0", "category": ["Food", "Snacks"], "attributes": {"a": 1}},
        {"item_id": "y", "title": {"en": "nested"}},
        {"item_id": "z", "title": "price", "price_cents": [5]},
        {"item_id": "w", "title": "price", "price_cents": True},
        {"item_id": "v", "title": "path", "category": {"a": 1}},
    ]
    items, records = load("items.jsonl", "\n".join(json.dumps(row) for row in rows))
    values = items.select(["item_id", "price_cents", "category", "attributes"]).to_pylist()
    same = {"price_cents": 5, "category": ["Food", "Snacks"], "attributes": [("a", "1")]}
    assert values == [{"item_id": "1", **same}, {"item_id": "x", **same}]
    assert [(r["row"], r["column"]) for r in records] == [
        (2, "title"), (3, "price_cents"), (4, "price_cents"), (5, "category"),
    ]  # fmt: skip
    assert json.loads(records[0]["record"])["title"] == {"en": "nested"}


def test_a_csv_field_longer_than_a_read_block_costs_its_row_alone(load: Load) -> None:
    long = "x" * 3_000_000
    items, aside = load("items.csv", f"item_id,title,description\na,Lamp,{long}\nb,Chair,fine\n")
    assert items.column("item_id").to_pylist() == ["b"]
    assert [(r["row"], r["column"]) for r in aside] == [(0, "description")]
