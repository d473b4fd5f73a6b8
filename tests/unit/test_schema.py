"""`validate` lets through what fits, in our order, and names what does not."""

import pyarrow as pa
import pytest

from rayrec.errors import SchemaError
from rayrec.schema import EVENTS, ITEMS, embeddings_schema, validate


def test_columns_come_out_in_our_order_with_the_missing_ones_null() -> None:
    table = validate(pa.table({"extra": [1], "title": ["T"], "item_id": ["a"]}), ITEMS, "items")
    assert table.schema == ITEMS
    assert {k: v for k, v in table.to_pylist()[0].items() if v is not None} == {"item_id": "a", "title": "T"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"item_id": ["a"]}, "items.title: missing; it is required"),
        ({"item_id": ["a", "b"], "title": ["T", None]}, "items.title: 1 nulls; it is required"),
        ({"item_id": [1], "title": ["T"]}, "items.item_id: expected string, got int64; cast first"),
        ({"item_id": ["a"], "title": ["T"], "price_cents": [1.0]}, "items.price_cents: expected int64, got double"),
    ],
)
def test_what_does_not_fit_is_named(columns: dict[str, list[object]], said: str) -> None:
    with pytest.raises(SchemaError, match=said.replace(".", r"\.")):
        validate(pa.table(columns), ITEMS, "items")


def test_only_item_id_and_title_and_of_events_id_type_and_time_are_required() -> None:
    assert [f.name for f in ITEMS if not f.nullable] == ["item_id", "title"]
    assert [f.name for f in EVENTS if not f.nullable] == ["event_id", "type", "ts_us"]


def test_a_vector_of_another_dimension_does_not_fit() -> None:
    row = pa.Table.from_pylist(
        [{"content_hash": b"h" * 16, "encoder_id": "e", "vector": [0.0, 1.0]}], schema=embeddings_schema(2)
    )
    assert validate(row, embeddings_schema(2), "embeddings").equals(row)
    with pytest.raises(SchemaError, match=r"embeddings\.vector: expected .*\[3\], got .*\[2\]"):
        validate(row, embeddings_schema(3), "embeddings")
