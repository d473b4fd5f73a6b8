"""The embed job: rows in, a catalog version and the vectors it lacks out, on Ray Data.

What is embedded is `needed keys - present keys`; each block of rows is one task that ends in one
atomic part file, so a killed worker or driver costs the blocks in hand and the next run does only
what is missing.
"""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec import encoder_exports
from rayrec.config import EmbedConfig, EncoderConfig, SourceConfig
from rayrec.data import catalog, complete_journey, readers
from rayrec.data.conform import Quarantine
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import Encoder, EncoderId
from rayrec.encoders.text import TextModel, TorchTextEncoder
from rayrec.errors import NotFound
from rayrec.files import open_filesystem
from rayrec.pipelines import catalog_log, fidelity
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed_pictures import PicturesSummary, embed_pictures
from rayrec.pipelines.pool import Progress, hashes_of, run_blocks, tally, worker_name
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedSummary:
    """items: of the catalog; embedded and reused: distinct contents; rows_per_s: while embedding.

    pictures: None if none were asked for, else what became of those of the catalog.
    """

    catalog: str
    encoder_id: str
    items: int
    embedded: int
    reused: int
    quarantined: int
    seconds: float
    rows_per_s: float
    workers: dict[str, int]
    pictures: PicturesSummary | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def embed(
    config: EmbedConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> EmbedSummary:
    """Load the source, publish it as a catalog version if it is new, and embed what has no vector yet."""
    started = time.perf_counter()
    items_by, _ = encoder_exports.resolve(ws, config.encoder)
    if config.images is not None:  # what is missing is said before the texts are embedded
        encoder_exports.find_images(ws, config.images.model, encoder_exports.encoder_id(items_by).space)
    with ThreadPoolExecutor(1) as aside:  # a first export takes 15 s of one core: meanwhile rows load, Ray starts
        export = aside.submit(encoder_exports.ensure, ws, items_by)
        version, quarantined = load_catalog(config.source, ws, config.store)
        if items_by.precision != "fp32":
            export.result()  # or the check would export it a second time
            fidelity.check(ws, items_by, ws.read_parquet("catalog", version))
        with connected(address):
            embedded, reused, encoder_id, per_worker, busy = embed_catalog(
                config, ws, version, export.result(), on_progress
            )
            pictures = None
            if config.images is not None:
                pictures = embed_pictures(config, config.images, ws, version, encoder_id.space, on_progress)
    items = ws.manifest("catalog", version)["counts"]["items"]
    return EmbedSummary(
        version,
        str(encoder_id),
        items,
        embedded,
        reused,
        quarantined,
        round(time.perf_counter() - started, 3),
        round(embedded / busy, 1) if busy else 0.0,
        per_worker,
        pictures,
    )


# -- the catalog ----------------------------------------------------------------------------------


def load_catalog(source: SourceConfig | None, ws: Workspace, store: str | None = None) -> tuple[str, int]:
    """(catalog version, rows set aside). A source whose items are those of the newest version makes no new one.

    store: with what was changed in the running shop, which an import does not undo; None: the workspace's own.
    """
    if source is None:
        version = ws.latest("catalog")
        if version is None:
            raise NotFound(f"no catalog in {ws.uri} yet; name one in the config's source")
        return version, 0
    if source.format == "complete_journey":
        items, quarantine = catalog.seal(complete_journey.tables(source.max_items)[0]), Quarantine()
    else:
        filesystem, path = open_filesystem(source.path)
        items, quarantine = catalog.normalise(readers.read(filesystem, path, source.format), source)
    return publish_catalog(items, quarantine, source, ws, store), len(quarantine)


def publish_catalog(
    items: pa.Table, quarantine: Quarantine, source: SourceConfig, ws: Workspace, store: str | None = None
) -> str:
    with ws.lock(catalog_log.CATALOG_LOCK):
        now = catalog_log.known(ws, store)
        items, live, counts = catalog.reconcile(items, now.items, now.live)
        if sum(counts.values()):
            log.warning(
                "%d items stay as the running shop changed them, %d that it deleted stay away; rows whose updated_us "
                "is newer replace them",
                *counts.values(),
            )
        latest = now.version
        difference: dict[str, int] = {"added": items.num_rows}
        if latest is not None:
            before = ws.read_parquet("catalog", latest)
            if before.equals(items) and not now.changed:
                save_quarantine(quarantine, ws, latest)
                return latest
            difference = asdict(catalog.diff(before, items))
        with ws.stage("catalog") as staged:
            staged.write_parquet("items.parquet", items)
            catalog_log.write_live(staged, live)
            save_quarantine(quarantine, ws, staged.version)
            return staged.publish(
                {
                    "config": source.model_dump(),
                    "counts": {"items": items.num_rows, "quarantined": len(quarantine), **difference, **counts},
                    "log_offset": now.offset,
                }
            )


def save_quarantine(quarantine: Quarantine, ws: Workspace, version: str) -> None:
    """The rows a load set aside, in quarantine/<version>.parquet."""
    if len(quarantine):
        ws.write_parquet(quarantine.table(), "quarantine", f"{version}.parquet")


# -- the vectors ----------------------------------------------------------------------------------


def embed_catalog(
    config: EmbedConfig, ws: Workspace, version: str, export: str, on_progress: Progress | None = None
) -> tuple[int, int, EncoderId, dict[str, int], float]:
    """Embed what a catalog version lacks: (embedded, reused, encoder id, rows per worker, seconds busy).

    export: version of the encoder under encoders/; queries use it, whatever embeds the items.
    """
    encoder_id = choose_encoder(config, encoder_exports.encoder_id(encoder_exports.resolve(ws, config.encoder)[0]))
    store = EmbeddingStore(ws, str(encoder_id))
    texts, hashes, needed = pending(ws, version, store)
    if not texts:
        return 0, needed, encoder_id, {}, 0.0
    worker = {"ws_uri": ws.uri, "encoder": config.encoder, "encoder_id": str(encoder_id), "export": export}
    blocks = run_blocks(EmbedWorker, "text", texts, hashes, config, worker)
    done, per_worker, busy = tally(blocks, len(texts), on_progress)
    return done, needed - len(texts), encoder_id, per_worker, busy


def choose_encoder(config: EmbedConfig, exported: EncoderId) -> EncoderId:
    """Which encoder the items get: the export, or torch in bf16 (fp32 without GPUs) if the config or GPUs say so."""
    asked = config.encoder.runtime
    own_engine = not exported.variant.startswith("onnx")
    if asked == "onnx" or own_engine or (asked == "auto" and not config.gpus_per_worker):
        return exported
    return EncoderId(exported.space, "torch-bf16" if config.gpus_per_worker else "torch-fp32")


def pending(ws: Workspace, version: str, store: EmbeddingStore) -> tuple[list[str], pa.Array, int]:
    """(texts, their hashes, distinct contents needed): what a catalog needs and the store lacks, longest first."""
    columns = ["item_id", "title", "description", "brand", "category", CONTENT_HASH]
    items = ws.read_parquet("catalog", version, "items.parquet", columns=columns)
    hashes = items.column(CONTENT_HASH).combine_chunks()
    _, first = np.unique(pc.dictionary_encode(hashes).indices.to_numpy(), return_index=True)
    distinct = items.take(pa.array(first))
    missing = pc.invert(pc.is_in(distinct.column(CONTENT_HASH), value_set=store.present()))
    todo = distinct.filter(missing)
    texts = catalog.item_texts(todo)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    return (
        [texts[i] for i in order],
        todo.column(CONTENT_HASH).take(pa.array(order, pa.int64())).combine_chunks(),
        distinct.num_rows,
    )


class EmbedWorker:
    """One actor of the pool; a plain class that a test can call."""

    def __init__(self, ws_uri: str, encoder: EncoderConfig, encoder_id: str, export: str):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core each
        ws = Workspace.open(ws_uri, create=False)
        self._store = EmbeddingStore(ws, encoder_id)
        encoder, _ = encoder_exports.resolve(ws, encoder)  # to a directory of this node
        variant = EncoderId.parse(encoder_id).variant
        if variant.startswith("torch-"):
            self._encoder: Encoder = TorchTextEncoder(
                TextModel.of(encoder), precision=variant.removeprefix("torch-"), batch_size=encoder.batch_size
            )
        else:
            self._encoder = encoder_exports.open_export(ws, export, batch_size=encoder.batch_size)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one block {text, content_hash}, make it durable, and tell about it in one row."""
        started = time.time()
        self._store.write(hashes_of(block), self._encoder.encode(block.column("text").to_pylist()))
        row = {"rows": block.num_rows, "worker": worker_name(), "started": started, "ended": time.time()}
        return pa.Table.from_pylist([row])
