"""From the log of changes to a catalog version: what was put, patched and deleted in a running shop becomes its base.

A catalog version names in `log_offset` up to where the log is in it, and keeps in live.arrow which items were changed
or deleted that way and when, for good: an older file that is imported again neither revives nor undoes anything.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data import catalog
from rayrec.data.catalog import CATALOG, LIVE
from rayrec.embedding_store import EmbeddingStore
from rayrec.errors import NotFound
from rayrec.item_vectors import ItemVectors
from rayrec.schema import CONTENT_HASH, Change
from rayrec.store import default_store, open_catalog_log
from rayrec.workspace import Staged, Workspace

log = logging.getLogger(__name__)

_AT_ONCE = 10_000
_LIVE = "live.arrow"
_EMBEDDED = 256
CATALOG_LOCK = "catalog.lock"
"""of a workspace: who makes a catalog version of the newest holds it, so that none is made past another"""


@dataclass(frozen=True)
class Known:
    """A catalog with all changes of its log: items CATALOG, live LIVE, offset of the newest; version: its base."""

    version: str | None
    items: pa.Table
    live: pa.Table
    offset: int
    changed: int


def known(ws: Workspace, url: str | None) -> Known:
    """The newest catalog version with what was changed since. url: of the store; None: the workspace's own, if any."""
    version = ws.latest("catalog")
    items, live, offset = CATALOG.empty_table(), LIVE.empty_table(), 0
    if version is not None:
        items = ws.read_parquet("catalog", version)
        offset = ws.manifest("catalog", version).get("log_offset", 0)
        live = read_live(ws, version)
    changes = changes_after(url or default_store(ws), offset)
    items, live = catalog.take_up(items, live, changes)
    return Known(version, items, live, changes[-1].offset if changes else offset, len(changes))


def changes_after(url: str | None, offset: int) -> list[Change]:
    if url is None:
        return []
    changes: list[Change] = []
    store = open_catalog_log(url)
    try:
        while part := store.changes(offset, _AT_ONCE):
            changes += part
            offset = part[-1].offset
    finally:
        store.close()
    return changes


def read_live(ws: Workspace, version: str) -> pa.Table:
    """LIVE of a catalog version; empty of one that no running shop has changed."""
    if not ws.exists("catalog", version, _LIVE):
        return LIVE.empty_table()
    return pa.ipc.open_file(ws.read_bytes("catalog", version, _LIVE)).read_all()


def write_live(staged: Staged, live: pa.Table) -> None:
    """Beside a catalog version that is being made."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, LIVE) as writer:
        writer.write_table(live)
    staged.write_bytes(_LIVE, sink.getvalue().to_pybytes())


def compact(ws: Workspace, url: str | None) -> str:
    """The newest catalog version, or one of what was changed since. Raises NotFound without any catalog."""
    with ws.lock(CATALOG_LOCK):
        now = known(ws, url)
        if now.version is None:
            raise NotFound(f"no catalog in {ws.uri} yet; run 'rayrec embed' first")
        if not now.changed:
            return now.version
        with ws.stage("catalog") as staged:
            staged.write_parquet("items.parquet", now.items)
            write_live(staged, now.live)
            counts = {"items": now.items.num_rows, "quarantined": 0, "changes": now.changed}
            config = ws.manifest("catalog", now.version)["config"]
            version = staged.publish({"config": config, "counts": counts, "log_offset": now.offset})
    log.info("catalog/%s has %d changes", version, now.changed)
    return version


def embed_changes(ws: Workspace, url: str | None, catalog_version: str, encoder: Mapping[str, str]) -> int:
    """Keep the vectors of what was changed beside the others of an encoder; how many were lacking.

    They came with the changes, or are made here. encoder: what the index will say of its encoder. Contents of imported
    files are the embed job's, and stay lacking.
    """
    url = url or default_store(ws)
    if url is None:
        return 0
    items = ws.read_parquet("catalog", catalog_version)
    live = read_live(ws, catalog_version)
    embeddings = EmbeddingStore(ws, encoder["id"])
    lacks = pc.invert(pc.is_in(items.column(CONTENT_HASH), value_set=embeddings.present()))
    changed = pc.is_in(items.column("item_id"), value_set=live.column("item_id").combine_chunks())
    todo = items.filter(pc.and_(lacks, changed))
    texts = dict(zip(todo.column(CONTENT_HASH).to_pylist(), catalog.item_texts(todo), strict=True))
    store = open_catalog_log(url)
    try:
        vectors = ItemVectors(store, ws, encoder)
        hashes = list(texts)
        for first in range(0, len(hashes), _EMBEDDED):
            part = hashes[first : first + _EMBEDDED]
            made = vectors({each.hex(): texts[each] for each in part})
            embeddings.write(pa.array(part, pa.binary(16)), np.stack([made[each.hex()] for each in part]))
    finally:
        store.close()
    return len(texts)
