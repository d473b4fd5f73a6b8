"""The tables everything else speaks: items, events, embeddings, quarantine.

Only `item_id` and `title` of an item, and `type` and `ts_us` of an event, are required; every other
column may be null. Times are UTC microseconds since 1970, money is whole cents.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayrec.errors import SchemaError

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("category", pa.list_(pa.string())),
        pa.field("price_cents", pa.int64()),
        pa.field("currency", pa.string()),
        pa.field("image_uri", pa.string()),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
        pa.field("available", pa.bool_()),
        pa.field("updated_us", pa.int64()),
    ]
)

EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("type", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("query", pa.string()),
        pa.field("ts_us", pa.int64(), nullable=False),
        pa.field("price_cents", pa.int64()),
        pa.field("quantity", pa.int64()),
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int64()),
        pa.field("shown", pa.list_(pa.string())),
    ]
)
"""request_id: of the answer that an event reacts to, or of a search's own; shown: its items, in their order."""

EVENT_TYPES = ("view", "click", "add_to_cart", "purchase", "search")

QUARANTINE = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("found", pa.string()),
        pa.field("expected", pa.string()),
        pa.field("record", pa.string()),
    ]
)

CONTENT_HASH = "content_hash"
HASH_BYTES = 16


@dataclass(frozen=True)
class Change:
    """What became of one item of a running shop: all of it as it is from now on, or that it is deleted.

    offset: in the log of changes, which orders them. item: the columns of ITEMS that are known, None of a deleted one.
    content: hash of what the text encoder reads of it, in hex. ts_us: when it was taken.
    """

    offset: int
    item_id: str
    item: dict[str, Any] | None
    content: str | None
    ts_us: int


def embeddings_schema(dim: int) -> pa.Schema:
    """EMBEDDINGS for vectors of `dim` float32 values."""
    return pa.schema(
        [
            pa.field(CONTENT_HASH, pa.binary(HASH_BYTES), nullable=False),
            pa.field("encoder_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )


def validate(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Return `table` with exactly the columns of `schema`, in order; missing nullable ones become null.

    Raises SchemaError if a required column is missing, a type differs, or a required value is null.
    This checks what our own code hands on; `data.conform` is what turns foreign data into it.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise SchemaError(f"{name}.{field.name}: missing; it is required")
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if column.type != field.type:
            raise SchemaError(f"{name}.{field.name}: expected {field.type}, got {column.type}; cast first")
        if not field.nullable and column.null_count:
            raise SchemaError(f"{name}.{field.name}: {column.null_count} nulls; it is required")
        columns.append(column)
    return pa.table(columns, schema=schema)
