"""The embed job: rows in, a catalog version and the vectors it lacks out, on Ray Data.

What is embedded is `needed keys - present keys`; each block of rows is one task that ends in one
atomic part file, so a killed worker or driver costs the blocks in hand and the next run does only
what is missing. The pool's actors are the only tasks of the job: there is no read or write task that
could wait for a CPU which they hold (Ray Data deadlocks on two CPUs that way).
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from rayrec import encoder_exports
from rayrec.config import EmbedConfig, EncoderConfig, SourceConfig
from rayrec.data import catalog, complete_journey, readers
from rayrec.data.conform import Quarantine
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import Encoder, EncoderId
from rayrec.encoders.text import TextModel, TorchTextEncoder
from rayrec.errors import NotFound
from rayrec.files import open_filesystem
from rayrec.pipelines.cluster import connected
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""(rows done, rows to do, rows per second)"""


@dataclass(frozen=True)
class EmbedSummary:
    """items: of the catalog; embedded and reused: distinct contents; rows_per_s: while embedding."""

    catalog: str
    encoder_id: str
    items: int
    embedded: int
    reused: int
    quarantined: int
    seconds: float
    rows_per_s: float
    workers: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def embed(
    config: EmbedConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> EmbedSummary:
    """Load the source, publish it as a catalog version if it is new, and embed what has no vector yet."""
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as aside:  # a first export takes 15 s of one core: meanwhile rows load, Ray starts
        export = aside.submit(encoder_exports.ensure, ws, config.encoder)
        version, quarantined = load_catalog(config.source, ws)
        with connected(address):
            embedded, reused, encoder_id, per_worker, busy = embed_catalog(
                config, ws, version, export.result(), on_progress
            )
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
    )


# -- the catalog ----------------------------------------------------------------------------------


def load_catalog(source: SourceConfig | None, ws: Workspace) -> tuple[str, int]:
    """(catalog version, rows set aside). A source whose items are those of the newest version makes no new one."""
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
    return publish_catalog(items, quarantine, source, ws), len(quarantine)


def publish_catalog(items: pa.Table, quarantine: Quarantine, source: SourceConfig, ws: Workspace) -> str:
    latest = ws.latest("catalog")
    difference: dict[str, int] = {"added": items.num_rows}
    if latest is not None:
        before = ws.read_parquet("catalog", latest)
        if before.equals(items):
            save_quarantine(quarantine, ws, latest)
            return latest
        difference = asdict(catalog.diff(before, items))
    with ws.stage("catalog") as staged:
        staged.write_parquet("items.parquet", items)
        save_quarantine(quarantine, ws, staged.version)
        return staged.publish(
            {
                "config": source.model_dump(),
                "counts": {"items": items.num_rows, "quarantined": len(quarantine), **difference},
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
    encoder_id = choose_encoder(config, encoder_exports.encoder_id(config.encoder))
    store = EmbeddingStore(ws, str(encoder_id))
    texts, hashes, needed = pending(ws, version, store)
    if not texts:
        return 0, needed, encoder_id, {}, 0.0
    workers = config.workers or default_workers(config)
    if not placeable(config, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
        log.warning(
            "no node has the %g CPUs and %g GPUs that a worker needs: waiting until the cluster adds one",
            config.cpus_per_worker,
            config.gpus_per_worker,
        )
    worker = {"ws_uri": ws.uri, "encoder": config.encoder, "encoder_id": str(encoder_id), "export": export}
    done, per_worker, first, last = 0, dict[str, int](), math.inf, 0.0
    for block in run_blocks(texts, hashes, config, workers, worker):
        done += block["rows"]
        per_worker[block["worker"]] = per_worker.get(block["worker"], 0) + block["rows"]
        first, last = min(first, block["started"]), max(last, block["ended"])
        if on_progress is not None:
            on_progress(done, len(texts), done / max(last - first, 1e-9))
    return done, needed - len(texts), encoder_id, per_worker, last - first


def choose_encoder(config: EmbedConfig, exported: EncoderId) -> EncoderId:
    """Which encoder the items get: the export, or torch in bf16 (fp32 without GPUs) if the config or GPUs say so."""
    asked = config.encoder.runtime
    own_engine = not exported.variant.startswith("onnx")
    if asked == "onnx" or own_engine or (asked == "auto" and not config.gpus_per_worker):
        return exported
    return EncoderId(exported.space, "torch-bf16" if config.gpus_per_worker else "torch-fp32")


def default_workers(config: EmbedConfig) -> int:
    """One worker per CPU of the cluster, or as many as its GPUs hold."""
    resources = ray.cluster_resources()
    if config.gpus_per_worker:
        return max(1, int(resources.get("GPU", 0) / config.gpus_per_worker))
    return max(1, int(resources.get("CPU", 1)))


def placeable(config: EmbedConfig, nodes: list[dict[str, float]]) -> bool:
    """Whether any node, given what each has in all, can hold a worker."""
    needed = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes)


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


def run_blocks(
    texts: list[str], hashes: pa.Array, config: EmbedConfig, workers: int, worker: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Embed on a pool of actors; yield what each block did, as it is done."""
    blocks = []
    for start in range(0, len(texts), config.block_rows):
        part = slice(start, start + config.block_rows)
        blocks.append(pa.table({"text": texts[part], CONTENT_HASH: hashes[part]}))
    workers = min(workers, len(blocks))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    dataset = ray.data.from_arrow(blocks).map_batches(
        EmbedWorker,
        batch_size=config.block_rows,
        batch_format="pyarrow",
        fn_constructor_kwargs=worker,
        # a block takes seconds, so one waiting block per actor hides the hand-over and leaves no queue behind
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from table.to_pylist()


class EmbedWorker:
    """One actor of the pool; a plain class that a test can call."""

    def __init__(self, ws_uri: str, encoder: EncoderConfig, encoder_id: str, export: str):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core each
        ws = Workspace.open(ws_uri, create=False)
        self._store = EmbeddingStore(ws, encoder_id)
        variant = EncoderId.parse(encoder_id).variant
        if variant.startswith("torch-"):
            self._encoder: Encoder = TorchTextEncoder(
                TextModel.of(encoder), precision=variant.removeprefix("torch-"), batch_size=encoder.batch_size
            )
        else:
            self._encoder = encoder_exports.open_export(ws, export, batch_size=encoder.batch_size)
        self._name = f"{os.uname().nodename}:{os.getpid()}"

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one block {text, content_hash}, make it durable, and tell about it in one row."""
        started = time.time()
        hashes = block.column(CONTENT_HASH).combine_chunks()
        if isinstance(hashes, pa.ChunkedArray):
            hashes = pa.concat_arrays(hashes.chunks)
        self._store.write(hashes, self._encoder.encode(block.column("text").to_pylist()))
        row = {"rows": block.num_rows, "worker": self._name, "started": started, "ended": time.time()}
        return pa.Table.from_pylist([row])
