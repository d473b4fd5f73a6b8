"""From raw rows to a catalog: ITEMS, one row an item, sorted by item_id, each with its content hash.

The content is what the text encoder reads. Its hash keys the embedding, so a new price costs nothing
and a new title costs one embedding.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayrec.config import SourceConfig
from rayrec.data.conform import Quarantine, Rules, conform, drop_repeats
from rayrec.data.readers import RawTable
from rayrec.errors import SchemaError
from rayrec.schema import CONTENT_HASH, HASH_BYTES, ITEMS, Change

_CONTENT = ("title", "brand", "category", "description")
CATALOG = ITEMS.append(pa.field(CONTENT_HASH, pa.binary(HASH_BYTES), nullable=False))


LIVE = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("ts_us", pa.int64(), nullable=False),
        pa.field("deleted", pa.bool_(), nullable=False),
    ]
)
"""Items that were changed or deleted in a running shop, and when last."""


def normalise(raws: Iterable[RawTable], config: SourceConfig) -> tuple[pa.Table, Quarantine]:
    """The catalog in all files of a source, and the rows that could not be used.

    Of rows with one item_id the first stays. Raises SchemaError if no row at all could be used.
    """
    unknown = set(config.columns) - set(ITEMS.names)
    if unknown:
        raise SchemaError(f"columns: {sorted(unknown)} are not item columns; known: {ITEMS.names}")
    quarantine = Quarantine()
    rules = Rules(max_text_chars=config.max_text_chars, category_separator=config.category_separator)
    seen: set[str] = set()
    tables = []
    for raw in raws:
        table, rows = conform(raw, ITEMS, config.columns, rules, quarantine)
        tables.append(drop_repeats(table, "item_id", rows, raw, seen, quarantine))
    items = pa.concat_tables(tables)
    if not items.num_rows:
        first = quarantine.records[0] if quarantine.records else None
        why = (
            "it has no rows"
            if first is None
            else f"of {len(quarantine)} rows set aside the first is row {first['row']} of {first['source']}: "
            f"{first['column'] or 'row'}: found {first['found']!r}, expected {first['expected']}"
        )
        raise SchemaError(f"{config.path}: no usable item; {why}")
    return seal(items), quarantine


def seal(items: pa.Table) -> pa.Table:
    """Sort ITEMS by item_id and add the content hash: a table of CATALOG."""
    items = items.sort_by("item_id").combine_chunks()
    hashes = [content_hash(text) for text in item_texts(items)]
    return pa.table([*items.columns, pa.array(hashes, pa.binary(HASH_BYTES))], schema=CATALOG)


def item_texts(items: pa.Table) -> list[str]:
    """What the text encoder reads of each item: title, brand, category path, description.

    Brand and categories that the title says already are left out: fewer tokens, the same content.
    """
    return [item_text(record) for record in items.select(_CONTENT).to_pylist()]


def table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """ITEMS of records whose attributes are dicts; what one does not say is null."""
    rows = [{**record, "attributes": list((record.get("attributes") or {}).items())} for record in records]
    return pa.Table.from_pylist(rows, schema=ITEMS)


def item_text(record: Mapping[str, Any]) -> str:
    """`item_texts` of one item."""
    title, brand, category, description = (record[name] for name in _CONTENT)
    said = (title, _new_words(title, [brand]), _new_words(title, category), description)
    return ". ".join(part for part in said if part)


def _new_words(title: str, words: list[str | None] | None) -> str:
    known = title.casefold()
    return " ".join(word for word in words or () if word and word.casefold() not in known)


def content_hash(text: str) -> bytes:
    """The 16-byte BLAKE2b of a content."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def take_up(items: pa.Table, live: pa.Table, changes: Sequence[Change]) -> tuple[pa.Table, pa.Table]:
    """(CATALOG, LIVE) after changes, in the order of their log."""
    newest = {change.item_id: change for change in changes}
    if not newest:
        return items, live
    ids = pa.array(list(newest), pa.string())
    put = [change.item for change in newest.values() if change.item is not None]
    told = [(c.item_id, c.ts_us, c.item is None) for c in newest.values()]
    facts = pa.table(list(zip(*told, strict=True)), schema=LIVE)
    return (
        _sorted(pa.concat_tables([_without(items, ids), seal(table(put))])),
        pa.concat_tables([_without(live, ids), facts]).sort_by("item_id"),
    )


def reconcile(imported: pa.Table, present: pa.Table, live: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """(CATALOG, LIVE, counts) of an imported CATALOG beside what was changed in the running shop.

    What was changed or deleted there stays as it is, unless the imported row says by its updated_us that it is newer.
    present: CATALOG with all changes. counts: kept, items that stay as changed; barred, rows of deleted ones.
    """
    if not live.num_rows:
        return imported, live, {"kept": 0, "barred": 0}
    row = pc.index_in(live.column("item_id"), value_set=imported.column("item_id"))
    updated = pc.fill_null(imported.column("updated_us").take(row), -1)
    stays = pc.less_equal(updated, live.column("ts_us"))
    kept = live.filter(stays)
    ids = kept.column("item_id").combine_chunks()
    gone = kept.filter(kept.column("deleted")).column("item_id").combine_chunks()
    ours = present.filter(pc.is_in(present.column("item_id"), value_set=ids))
    barred = pc.sum(pc.is_in(imported.column("item_id"), value_set=gone)).as_py() or 0
    items = _sorted(pa.concat_tables([_without(imported, ids), ours]))
    return items, kept, {"kept": ours.num_rows, "barred": barred}


def _without(items: pa.Table, ids: pa.Array) -> pa.Table:
    return items.filter(pc.invert(pc.is_in(items.column("item_id"), value_set=ids)))


def _sorted(items: pa.Table) -> pa.Table:
    return items.sort_by("item_id").combine_chunks()


@dataclass(frozen=True)
class CatalogDiff:
    """Counts between two catalogs. `content_changed` of `changed` need a new embedding."""

    added: int
    removed: int
    changed: int
    content_changed: int


def diff(old: pa.Table, new: pa.Table) -> CatalogDiff:
    """Compare two CATALOG tables by item_id."""
    before, after = old.column("item_id"), new.column("item_id")
    place = pc.index_in(after, value_set=before)
    kept = pc.is_valid(place)
    ours = old.take(place.filter(kept)).combine_chunks()
    theirs = new.filter(kept).combine_chunks()
    content = pc.sum(pc.not_equal(ours.column(CONTENT_HASH), theirs.column(CONTENT_HASH))).as_py() or 0
    changed = sum(a != b for a, b in zip(ours.to_pylist(), theirs.to_pylist(), strict=True))
    both = theirs.num_rows
    return CatalogDiff(new.num_rows - both, old.num_rows - both, changed, content)
