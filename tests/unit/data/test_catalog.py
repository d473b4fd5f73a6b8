"""One row an item, hashed by what the text encoder reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayrec.config import SourceConfig
from rayrec.data import catalog, readers
from rayrec.errors import SchemaError
from rayrec.files import open_filesystem
from rayrec.schema import CONTENT_HASH, ITEMS
from tests.unit.data.conftest import write

Load = Callable[..., tuple[pa.Table, list[dict[str, Any]]]]
CABLE = {
    "item_id": "a", "title": "Cable", "brand": "Anker", "category": ["Tech"], "description": "Two metres",
    "price_cents": 999, "available": True, "currency": "EUR",
}  # fmt: skip


def sealed(*items: dict[str, Any]) -> pa.Table:
    return catalog.seal(pa.Table.from_pylist(list(items), schema=ITEMS))


def test_the_catalog_is_sorted_by_item_id() -> None:
    table = sealed({"item_id": "b", "title": "B"}, {"item_id": "a10", "title": "A"}, {"item_id": "a", "title": "A"})
    assert table.column("item_id").to_pylist() == ["a", "a10", "b"]
    assert table.schema == catalog.CATALOG


@pytest.mark.parametrize(
    "change", [{"title": "Cord"}, {"brand": "HP"}, {"category": ["Tech", "Cables"]}, {"description": "Three metres"}]
)
def test_the_content_hash_changes_with_what_the_encoder_reads(change: dict[str, Any]) -> None:
    before, after = sealed(CABLE), sealed({**CABLE, **change})
    assert before.column(CONTENT_HASH) != after.column(CONTENT_HASH)


@pytest.mark.parametrize("change", [{"price_cents": 1}, {"available": False}, {"currency": "USD"}, {"item_id": "z"}])
def test_the_content_hash_stays_when_the_encoder_reads_the_same(change: dict[str, Any]) -> None:
    before, after = sealed(CABLE), sealed({**CABLE, **change})
    assert before.column(CONTENT_HASH) == after.column(CONTENT_HASH)


def test_the_encoder_reads_title_brand_category_and_description_without_repeating_the_title() -> None:
    table = sealed(
        CABLE,
        {"item_id": "b", "title": "HP tech bag", "brand": "HP", "category": ["Tech", "Bags"]},
        {"item_id": "c", "title": "Bare"},
    )
    assert catalog.item_texts(table) == ["Cable. Anker. Tech. Two metres", "HP tech bag. Bags", "Bare"]


def test_diff_counts_what_came_went_and_changed() -> None:
    old = sealed(CABLE, {"item_id": "b", "title": "B"}, {"item_id": "c", "title": "C"}, {"item_id": "d", "title": "D"})
    new = sealed(
        {**CABLE, "price_cents": 1},
        {"item_id": "b", "title": "better"},
        {"item_id": "c", "title": "C"},
        {"item_id": "e", "title": "E"},
        {"item_id": "f", "title": "F"},
    )
    assert catalog.diff(old, new) == catalog.CatalogDiff(added=2, removed=1, changed=2, content_changed=1)
    assert catalog.diff(new, new) == catalog.CatalogDiff(0, 0, 0, 0)


def test_of_one_id_the_first_row_stays_over_all_files_and_the_others_are_set_aside_whole(tmp_path: Path) -> None:
    write(tmp_path / "1.csv", "sku,title,shelf\na,first,1\nragged\na,second,2\n")
    write(tmp_path / "2.csv", "sku,title,shelf\nb,B,3\na,third,4\n")
    source = SourceConfig(path=str(tmp_path), columns={"item_id": "sku"})
    items, quarantine = catalog.normalise(readers.read(*open_filesystem(source.path)), source)
    assert items.column("title").to_pylist() == ["first", "B"]
    repeats = [r for r in quarantine.records if r["column"] == "item_id"]
    assert [(r["source"][-5:], r["row"], r["found"]) for r in repeats] == [("1.csv", 2, "a"), ("2.csv", 1, "a")]
    assert repeats[1]["record"] == '{"sku": "a", "title": "third", "shelf": "4"}'
    assert quarantine.table().column("expected").to_pylist()[-1] == "a unique id (an earlier row has it)"


def test_an_id_whose_first_row_is_bad_is_taken_from_the_next_good_one(load: Load) -> None:
    items, records = load("items.csv", "item_id,title,price_cents\na,A,x\na,again,1\n")
    assert items.column("title").to_pylist() == ["again"]
    assert [r["row"] for r in records] == [0]


def test_columns_of_the_source_are_mapped_to_ours(load: Load) -> None:
    columns = {"item_id": "sku", "title": "name", "description": "text"}
    items, _ = load("items.csv", "sku,name,text,title\n1,Cable,long,not this\n", columns=columns)
    row = items.to_pylist()[0]
    assert (row["item_id"], row["title"], row["description"], row["brand"]) == ("1", "Cable", "long", None)


def test_a_mapping_to_no_column_of_ours_is_refused(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"columns: \['name'\] are not item columns; known: \['item_id', 'title'"):
        load("items.csv", "item_id,title\na,A\n", columns={"name": "title"})


@pytest.mark.parametrize("columns", [{"brand": "maker"}, {"item_id": "maker"}])
def test_a_mapped_column_that_the_file_lacks_is_an_error_that_says_what_is_there(
    columns: dict[str, str], load: Load
) -> None:
    with pytest.raises(SchemaError, match=r"no column 'maker' for \w+; it has \['item_id', 'title'\]"):
        load("items.csv", "item_id,title\na,A\n", columns=columns)


def test_a_source_without_a_usable_row_is_an_error_that_tells_the_first_fault(load: Load) -> None:
    with pytest.raises(SchemaError, match=r"no usable item; of 2 rows set aside the first is row 0 .* found 'x'"):
        load("items.csv", "item_id,title,price_cents\na,A,x\nb,B,y\n")
