"""The index job: the newest catalog, its vectors and the shoppers' events in, an index version out.

Each shard is one Ray task, and behaviour is another beside them. All of them write into a version that
does not count until its manifest is there; then it is promoted.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from rayrec import encoder_exports
from rayrec.barring import Bars
from rayrec.config import ImagesConfig, IndexConfig, SourceConfig
from rayrec.data import catalog, complete_journey, events, readers
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.encoders.item import fuse
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.files import open_filesystem
from rayrec.forgetting import retain
from rayrec.pipelines import catalog_log, fidelity
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed_pictures import picture_hashes
from rayrec.pipelines.event_log import export_events, read_events
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.shards import attribute_words, build_shard, shard_name, shard_rows
from rayrec.rewriting import clean_version, set_aside
from rayrec.schema import CONTENT_HASH, EVENTS, ITEMS, validate
from rayrec.workspace import Staged, Workspace

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 500_000
_SOURCE = "events.parquet"  # what was loaded, beside what the service took


@dataclass(frozen=True)
class IndexSummary:
    """What was built. generation: of `current.json`, if the version was promoted."""

    index: str
    items: int
    events: int
    quarantined: int
    duplicates: int
    shards: int
    dense: str
    seconds: float
    generation: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def index(config: IndexConfig, ws: Workspace, *, address: str | None = None) -> IndexSummary:
    """Build an index of the newest catalog version and, if the config says so, promote it."""
    started = time.perf_counter()
    catalog_version = catalog_log.compact(ws, config.store)
    if config.retention_days is not None:
        retain(ws, config.store, config.retention_days)
    _, quarantined, duplicates = load_events(config.events, ws)
    exported = export_events(ws, config.store)
    events_version = exported.version
    items_by, queries_by = encoder_exports.resolve(ws, config.encoder)
    space = encoder_exports.encoder_id(items_by).space
    queries_id = encoder_exports.encoder_id(queries_by)
    if queries_id.space != space:
        raise IncompatibleArtifact(
            f"{config.encoder.model} maps queries into {queries_id.space}, items are encoded into {space}; "
            "use the max_tokens and prefixes it was fitted with"
        )
    if queries_by.precision != "fp32":
        fidelity.check(ws, queries_by, ws.read_parquet("catalog", catalog_version))
    export = encoder_exports.ensure(ws, queries_by)

    def embed_changes(encoder_id: str) -> int:
        encoder = {"space": space, "id": encoder_id, "query_id": str(queries_id), "export": export}
        return catalog_log.embed_changes(ws, config.store, catalog_version, encoder)

    encoder_id = find_embeddings(space, ws, catalog_version, embed_changes)
    images = None if config.images is None else find_pictures(config.images, ws, space)
    n = ws.manifest("catalog", catalog_version)["counts"]["items"]
    shards = config.shards or -(-n // ROWS_PER_SHARD)
    with connected(address), ws.stage("indexes") as staged:
        shard_task = ray.remote(num_cpus=1)(_shard_task)
        behavior_task = ray.remote(num_cpus=1)(_behavior_task)
        tasks = [
            shard_task.remote(ws.uri, staged.version, catalog_version, encoder_id, shard, shards, config, images)
            for shard in range(shards)
        ]
        behavior = behavior_task.remote(
            ws.uri, staged.version, catalog_version, events_version, config.half_life_days, export
        )
        items = ws.read_parquet("catalog", catalog_version).select(ITEMS.names)
        staged.write_parquet("items.parquet", items)
        built = ray.get(tasks)
        counted = ray.get(behavior)
        version = staged.publish(
            {
                "config": config.model_dump(mode="json"),
                "catalog": catalog_version,
                "events": events_version,
                "encoder": {
                    "space": EncoderId.parse(encoder_id).space,
                    "id": encoder_id,
                    "query_id": str(queries_id),
                    "export": export,
                    "dim": built[0]["dim"],
                    "images": images,
                },
                "counts": {"items": n, "events": counted, "pictures": sum(b["pictures"] for b in built)},
                "shards": shards,
                "dense": [b["dense"] for b in built],
                "log_offset": ws.manifest("catalog", catalog_version).get("log_offset", 0),
                "events_offset": exported.offset,
            }
        )
    clean_version(ws, "indexes", version, Bars(ws))
    pointer = ws.promote(index=version, model=fitting_model(ws, encoder_id)) if config.promote else None
    return IndexSummary(
        version,
        n,
        counted,
        quarantined,
        duplicates,
        shards,
        built[0]["dense"],
        round(time.perf_counter() - started, 3),
        pointer.generation if pointer else None,
    )


def load_events(source: SourceConfig | None, ws: Workspace) -> tuple[str | None, int, int]:
    """(events version, rows set aside, repeats dropped); the newest version, or None, without a source."""
    if source is None:
        return ws.latest("events"), 0, 0
    if source.format == "complete_journey":
        table = events.dedupe(complete_journey.tables(source.max_items)[1])
        return publish_events(table, source, ws), 0, 0
    filesystem, path = open_filesystem(source.path)
    table, quarantine, duplicates = events.normalise(readers.read(filesystem, path, source.format), source)
    version = publish_events(table, source, ws)
    kept = set_aside(quarantine.table(), Bars(ws))
    if kept.num_rows:
        ws.write_parquet(kept, "quarantine", f"{version}.parquet")
    return version, len(quarantine), duplicates


def publish_events(table: pa.Table, source: SourceConfig, ws: Workspace) -> str:
    """Make EVENTS, in time order, an events version, unless the newest one has it already; nothing of who is barred."""
    table = table.filter(pa.array(~Bars(ws).forgotten(table)))
    latest = ws.latest("events")

    def same(before: pa.Table) -> bool:
        return validate(before, EVENTS, "events").equals(table)

    if latest is not None and ws.exists("events", latest, _SOURCE) and same(ws.read_parquet("events", latest, _SOURCE)):
        return latest
    with ws.stage("events") as staged:
        staged.write_parquet(_SOURCE, table)
        version = staged.publish({"config": source.model_dump(), "counts": {"events": table.num_rows}})
    clean_version(ws, "events", version, Bars(ws))
    return version


def find_pictures(config: ImagesConfig, ws: Workspace, space: str) -> dict[str, Any]:
    """What the index's manifest says of pictures: the image encoder, whose vectors, and what they weigh."""
    export = encoder_exports.find_images(ws, config.model, space)
    manifest = ws.manifest("encoders", export)
    tower = manifest["encoder"]["id"].removesuffix("-fp32")
    ids = [name for name in ws.names("embeddings") if name.rpartition("-")[0] == tower]
    if not ids:
        raise NotFound(f"no picture was embedded by {tower} in {ws.uri}; run 'rayrec embed' with images")
    most = max(ids, key=lambda name: len(EmbeddingStore(ws, name).present()))
    weight = manifest["image_weight"] if config.weight is None else config.weight
    return {"export": export, "id": most, "weight": weight}


def find_embeddings(
    space: str, ws: Workspace, catalog_version: str, fill: Callable[[str], int] = lambda encoder_id: 0
) -> str:
    """The encoder id of a text space whose vectors cover the catalog. Raises NotFound if none does.

    fill: adds vectors of an encoder that can be had at once, and answers how many.
    """
    ids = [EncoderId.parse(name) for name in ws.names("embeddings")]
    found = [str(id) for id in ids if id.space == space and not id.variant.startswith(encoder_exports.PHOTOS)]
    if not found:
        raise NotFound(f"no embeddings of space {space} in {ws.uri}; run 'rayrec embed' with the same encoder")
    needed = pc.unique(ws.read_parquet("catalog", catalog_version, columns=[CONTENT_HASH]).column(CONTENT_HASH))
    lacking = {
        name: pc.sum(pc.invert(pc.is_in(needed, value_set=EmbeddingStore(ws, name).present()))).as_py()
        for name in found
    }
    best = min(found, key=lambda name: lacking[name])
    if lacking[best] and lacking[best] > fill(best):
        raise NotFound(f"{lacking[best]} of {len(needed)} contents have no embedding by {best}; run 'rayrec embed'")
    return best


def fitting_model(ws: Workspace, encoder_id: str) -> str | None:
    """What to promote beside an index: None keeps the present model, "none" drops one of another space."""
    model = ws.current().model
    if model is None or ws.manifest("models", model)["encoder"]["space"] == EncoderId.parse(encoder_id).space:
        return None
    log.warning("models/%s is of another embedding space than the new index, and no longer answers", model)
    return "none"


def _shard_task(
    ws_uri: str,
    version: str,
    catalog_version: str,
    encoder_id: str,
    shard: int,
    shards: int,
    config: IndexConfig,
    images: dict[str, Any] | None,
) -> dict[str, Any]:
    ws = Workspace.open(ws_uri, create=False)
    items = ws.read_parquet("catalog", catalog_version)
    mine = items.take(pa.array(shard_rows(items.num_rows, shard, shards)))
    hashes = mine.column(CONTENT_HASH).combine_chunks()
    vectors, pictured, parts = EmbeddingStore(ws, encoder_id).lookup(hashes), 0, None
    if images is not None:
        keys = picture_hashes(mine.column("image_uri").combine_chunks())
        pictures, there = EmbeddingStore(ws, images["id"]).find(keys)
        parts, pictured = (vectors, pictures), int(there.sum())
        vectors = fuse(vectors, pictures, images["weight"])
    with tempfile.TemporaryDirectory(prefix="rayrec-shard-") as local:
        kind = build_shard(
            Path(local),
            vectors,
            catalog.item_texts(mine),
            attribute_words(mine.column("attributes")),
            dense=config.dense,
            language=config.language,
            parts=parts,
        )
        Staged(ws, "indexes", version).upload(Path(local), shard_name(shard))
    return {"dense": kind, "dim": int(vectors.shape[1]), "pictures": pictured}


def _behavior_task(
    ws_uri: str,
    version: str,
    catalog_version: str,
    events_version: str | None,
    half_life_days: float,
    export: str,
) -> int:
    ws = Workspace.open(ws_uri, create=False)
    ids = ws.read_parquet("catalog", catalog_version, columns=["item_id"]).column("item_id").combine_chunks()
    table = EVENTS.empty_table() if events_version is None else read_events(ws, events_version)
    behavior = BehaviorIndex.build(table, ids, half_life_days)
    if behavior.histories.texts:  # what shoppers searched for is part of what they want
        encoder = encoder_exports.open_export(ws, export)
        behavior = replace(behavior, asked=encoder.encode(behavior.histories.texts, "query"))
    with tempfile.TemporaryDirectory(prefix="rayrec-behavior-") as local:
        behavior.save(Path(local))
        Staged(ws, "indexes", version).upload(Path(local), "behavior")
    return behavior.events
