"""From raw rows to EVENTS: checked, each once, in time order."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.config import SourceConfig
from rayrec.data.conform import Quarantine, Rules, conform, record
from rayrec.data.readers import RawTable
from rayrec.errors import SchemaError
from rayrec.schema import EVENT_TYPES, EVENTS, validate

_LOOSE = pa.schema([f.with_nullable(True) if f.name == "event_id" else f for f in EVENTS])


def normalise(raws: Iterable[RawTable], config: SourceConfig) -> tuple[pa.Table, Quarantine, int]:
    """EVENTS of all files in time order, the rows set aside, and how many repeats were dropped.

    A source without event ids gets them from each row's content, so reading a file twice repeats
    nothing; two rows alike in every column are then one event.
    """
    unknown = set(config.columns) - set(EVENTS.names)
    if unknown:
        raise SchemaError(f"columns: {sorted(unknown)} are not event columns; known: {EVENTS.names}")
    quarantine = Quarantine()
    rules = Rules(max_text_chars=config.max_text_chars, one_of={"type": EVENT_TYPES})
    tables = []
    for raw in raws:
        table, rows = conform(raw, _LOOSE, config.columns, rules, quarantine)
        tables.append(_named(table, rows, raw, quarantine))
    events = pa.concat_tables(tables)
    unique = dedupe(events)
    return unique, quarantine, events.num_rows - unique.num_rows


def _named(table: pa.Table, rows: list[int], raw: RawTable, quarantine: Quarantine) -> pa.Table:
    """Set aside events that name neither item nor query; give the others the ids they lack."""
    subject = pc.coalesce(table.column("item_id"), table.column("query"))
    keep = pc.is_valid(subject)
    for i in np.flatnonzero(~keep.to_numpy()):
        expected = "an item_id (or a query, of a search)"
        quarantine.add(raw.source, rows[i], "item_id", None, expected, record(raw, rows[i]))
    table = table.filter(keep)
    ids = table.column("event_id")
    if ids.null_count:
        others = table.drop_columns(["event_id"]).to_pylist()
        ids = pa.chunked_array(
            [[known or _event_id(row) for known, row in zip(ids.to_pylist(), others, strict=True)]], pa.string()
        )
    return validate(table.set_column(0, "event_id", ids), EVENTS, "events")


def _event_id(row: dict[str, object]) -> str:
    # ids of before there was `shown` stay what they were
    named = sorted((name, value) for name, value in row.items() if name != "shown" or value is not None)
    return hashlib.blake2b(repr(named).encode(), digest_size=12).hexdigest()


def dedupe(events: pa.Table) -> pa.Table:
    """EVENTS in order of time (then event_id), the first of each event_id kept."""
    ordered = events.sort_by([("ts_us", "ascending"), ("event_id", "ascending")]).combine_chunks()
    codes = pc.dictionary_encode(ordered.column("event_id")).combine_chunks()
    if len(codes.dictionary) == ordered.num_rows:
        return ordered
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    return ordered.take(pa.array(np.sort(first)))
