"""The parts of a split service: query encoder, retriever of one shard, scorer. Plain classes that a test can call.

Each follows the workspace's pointer by itself and keeps the pair before the present one for a while, so callers
name the pair they want and fall back on the other where a part is not there yet.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rayrec import encoder_exports
from rayrec.answer import Answer, Encoded
from rayrec.config import ServeConfig
from rayrec.encoders.base import Encoder
from rayrec.encoders.image import ImageEncoder
from rayrec.engine import Engine, fusion_weights, search_coverage
from rayrec.errors import IncompatibleArtifact
from rayrec.item_vectors import ItemVectors
from rayrec.photo import no_pictures
from rayrec.request import SearchRequest
from rayrec.retrieval.base import Found, Hits, Probe, Update
from rayrec.retrieval.live import LiveCatalog, Pictures, taken_back
from rayrec.retrieval.shards import Shard, Shards, load_columns
from rayrec.scorer import Scorer
from rayrec.serving.tail import Between, Following, Tail, alone, no_such_change
from rayrec.serving.telemetry import Telemetry
from rayrec.serving.versions import Live, Pair, T
from rayrec.store import CatalogLog
from rayrec.trained import TrainedModel
from rayrec.workspace import Workspace

_WARM_UP = "warm up"
_WARM_UP_PICTURE = np.zeros((8, 8, 3), np.uint8)


Load = Callable[[Workspace, Pair, T | None], T]
FollowChanges = Callable[[Workspace, Pair, T, CatalogLog], Following]
"""how a loaded part takes up changes of the catalog"""


def follow(config: ServeConfig, part: str, telemetry: Telemetry, load: Load[T]) -> Live[T]:
    """A part that follows the config's workspace, and whose versions and failures are counted."""
    return _follow(config, part, telemetry, load, lambda value: None)


def follow_with_changes(
    config: ServeConfig,
    part: str,
    telemetry: Telemetry,
    load: Load[T],
    changes: FollowChanges[T],
    catalog: CatalogLog,
    between: Between,
) -> tuple[Live[T], Tail]:
    """As `follow`, of a part that takes up changes of the catalog too; a version that comes late catches up first."""
    tail = Tail(
        catalog,
        config.tail_ms / 1000,
        between,
        on_failure=telemetry.tail_failures.labels(part).inc,
        on_change=telemetry.log_offset.labels(part).set,
    )

    def load_and_catch_up(ws: Workspace, pair: Pair, before: T | None) -> T:
        value = load(ws, pair, before)
        tail.follow(changes(ws, pair, value, catalog))
        return value

    return _follow(config, part, telemetry, load_and_catch_up, tail.drop), tail


def _follow(
    config: ServeConfig, part: str, telemetry: Telemetry, load: Load[T], on_drop: Callable[[T], None]
) -> Live[T]:
    ws = Workspace.open(config.workspace, create=False)

    def changed(pair: Pair) -> None:
        telemetry.version.clear()
        telemetry.version.labels(part, pair.index, pair.model or "").set(1)

    return Live(
        ws,
        lambda pair, before: load(ws, pair, before),
        poll_s=config.poll_s,
        keep_previous_s=config.keep_previous_s,
        on_change=changed,
        on_failure=lambda pair: telemetry.load_failures.labels(part).inc(),
        on_drop=on_drop,
    )


def load_engine(config: ServeConfig) -> Callable[[Workspace, Pair, Engine | None], Engine]:
    """How a fused gateway loads a pair: whole, and used once, so that its first shopper does not wait."""

    def load(ws: Workspace, pair: Pair, before: Engine | None) -> Engine:
        engine = Engine.load(
            ws,
            pair.index,
            pair.model,
            cached_vectors=0,  # the gateway keeps them
            candidate_cache_mib=config.candidate_cache_mib,
        )
        engine.search(_WARM_UP, facets=("brand", "category", "price_cents"))
        engine.recommend(k=1)
        if engine.image_encoder is not None:
            engine.image_encoder.encode([_WARM_UP_PICTURE])
        return engine

    return load


def engine_changes(ws: Workspace, pair: Pair, engine: Engine, catalog: CatalogLog) -> Following:
    vectors = ItemVectors(catalog, ws, ws.manifest("indexes", pair.index)["encoder"], engine.encoder)
    return Following(engine, engine.live, engine.update, engine.shards.taken_back, vectors)


class Encoders(NamedTuple):
    """An index's encoders, of queries and of items; images is None, and its export too, for one without pictures."""

    texts: Encoder
    items: Encoder
    images: ImageEncoder | None
    export: str | None


class QueryEncoder:
    """Queries and photos -> vectors in the space of an index."""

    def __init__(self, config: ServeConfig, telemetry: Telemetry):
        self._telemetry = telemetry
        self._live = follow(config, "encoder", telemetry, _load_encoders)

    def encode(self, pair: Pair, queries: Sequence[str]) -> np.ndarray:
        """float32 (B, D). Raises VersionNotLoaded."""
        self._telemetry.batch.labels("encode").observe(len(queries))
        return self._live.get(pair).value.texts.encode(queries, "query")

    def encode_items(self, pair: Pair, texts: Sequence[str]) -> tuple[str, np.ndarray]:
        """(space, float32 (B, D)) of what items say. Raises VersionNotLoaded."""
        encoder = self._live.get(pair).value.items
        return encoder.id.space, encoder.encode(texts, "passage") if texts else np.empty((0, 0), np.float32)

    def encode_images(self, pair: Pair, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (B, D) of uint8 (H, W, 3). Raises VersionNotLoaded, InvalidRequest for an index without pictures."""
        self._telemetry.batch.labels("encode_images").observe(len(pictures))
        encoder = self._live.get(pair).value.images
        if encoder is None:
            raise no_pictures()
        return encoder.encode(pictures)


def _load_encoders(ws: Workspace, pair: Pair, before: Encoders | None) -> Encoders:
    wanted = ws.manifest("indexes", pair.index)["encoder"]
    export = (wanted.get("images") or {}).get("export")
    if before is not None and str(before.texts.id) == wanted["query_id"]:
        texts = before.texts
    else:
        texts = encoder_exports.open_for(ws, wanted)
        texts.encode([_WARM_UP], "query")
    items = texts if wanted["id"] == wanted["query_id"] else encoder_exports.open_items(ws, wanted)
    if before is not None and before.export == export:
        return Encoders(texts, items, before.images, export)
    images = encoder_exports.open_images(ws, wanted)
    if images is not None:
        images.encode([_WARM_UP_PICTURE])
    return Encoders(texts, items, images, export)


class Retriever:
    """One shard's words and vectors. Raises IncompatibleArtifact if the index has other shards than the config says."""

    def __init__(
        self,
        config: ServeConfig,
        shard: int,
        telemetry: Telemetry,
        catalog: CatalogLog | None = None,
        between: Between = alone,
    ):
        """catalog: whose changes are taken up; between: runs their taking up while nothing is looked for."""
        self._shard = shard
        self._shards = config.shards
        self._telemetry = telemetry
        self.tail: Tail | None = None
        part = f"retriever-{shard}"
        if catalog is None:
            self._live = follow(config, part, telemetry, self._load)
        else:
            self._live, self.tail = follow_with_changes(
                config, part, telemetry, self._load, self._changes, catalog, between
            )

    def _load(self, ws: Workspace, pair: Pair, before: Shard | None) -> Shard:
        check_shards(ws, pair, self._shards)
        return Shard.load(ws.local_copy("indexes", pair.index), self._shard, self._shards)

    def _changes(self, ws: Workspace, pair: Pair, shard: Shard, catalog: CatalogLog) -> Following:
        """Of the items a shard knows only their words and vectors: who their rows are is read from the index."""
        manifest = ws.manifest("indexes", pair.index)
        directory = ws.local_copy("indexes", pair.index)
        columns = load_columns(directory)
        weight = encoder_exports.image_weight(manifest["encoder"])

        def pictures() -> Pictures | None:
            return Shards.load(directory, self._shards, mapped=True).pictures(weight)

        live = LiveCatalog(columns, shard.dense.dim, manifest["log_offset"], pictures)

        def update(updates: Sequence[Update], offset: int) -> None:
            columns.update(updates)
            shard.update(updates)

        def back(updates: Sequence[Update]) -> list[Update]:
            return taken_back(updates, columns, shard.before)

        return Following(shard, live, update, back, ItemVectors(catalog, ws, manifest["encoder"]))

    async def reach(self, pair: Pair, offset: int) -> None:
        """Wait until the change of an offset is taken up. Raises VersionNotLoaded, Unavailable."""
        if self.tail is not None and offset:
            await self.tail.reach(self._live.get(pair).value, offset)

    def find(self, pair: Pair, probes: Sequence[Probe]) -> list[Found]:
        """What the shard has for each probe. Raises VersionNotLoaded."""
        self._telemetry.batch.labels("retrieve").observe(len(probes))
        shard = self._live.get(pair).value
        if self.tail is None:
            return shard.find(probes)
        following = self.tail.of(shard)
        offset = following.live.offset
        present = [place for place, probe in enumerate(probes) if probe.as_of is None or probe.as_of >= offset]
        found = dict(zip(present, shard.find([probes[place] for place in present]), strict=True))
        for place, probe in enumerate(probes):
            if place not in found:
                with following.as_of(probe.as_of or 0):
                    found[place] = shard.find([probe])[0]
        return [replace(found[place], offset=offset) for place in range(len(probes))]

    def nearest(self, pair: Pair, vector: np.ndarray, k: int, allowed: np.ndarray | None) -> Hits:
        """The k items nearest to vector (D,). allowed: packed bits of this shard's mask. Raises VersionNotLoaded."""
        shard = self._live.get(pair).value
        mask = None if allowed is None else np.unpackbits(allowed, count=shard.dense.n).astype(bool)
        return shard.nearest(vector, k, mask)


def check_shards(ws: Workspace, pair: Pair, shards: int) -> None:
    found = ws.manifest("indexes", pair.index)["shards"]
    if found != shards:
        raise IncompatibleArtifact(
            f"indexes/{pair.index} has {found} shards, the service {shards} retrievers; "
            f"build it with shards: {shards}, or deploy again with shards: {found}"
        )


class ScorerPart:
    """The scorer of each loaded pair; it reads vectors of single rows from the mapped file."""

    def __init__(
        self,
        config: ServeConfig,
        telemetry: Telemetry,
        catalog: CatalogLog | None = None,
        between: Between = alone,
    ):
        """catalog, between: as of a retriever."""
        self._shards = config.shards
        self.tail: Tail | None = None
        if catalog is None:
            self._live = follow(config, "scorer", telemetry, self._load)
        else:
            self._live, self.tail = follow_with_changes(
                config, "scorer", telemetry, self._load, self._changes, catalog, between
            )

    def _load(self, ws: Workspace, pair: Pair, before: Scorer | None) -> Scorer:
        check_shards(ws, pair, self._shards)
        directory = ws.local_copy("indexes", pair.index)
        manifest = ws.manifest("indexes", pair.index)
        versions = {"index": pair.index, "model": pair.model, "log_offset": manifest["log_offset"]}
        shards = Shards.load(directory, self._shards, mapped=True)
        trained = TrainedModel.load(ws, pair.model, shards, manifest["encoder"]["space"])
        return Scorer(
            shards,
            weights=fusion_weights(ws, pair.model),
            versions=versions,
            model=trained,
            made_us=manifest["created_us"],
            events_offset=manifest.get("events_offset", 0),
        )

    def _changes(self, ws: Workspace, pair: Pair, scorer: Scorer, catalog: CatalogLog) -> Following:
        manifest = ws.manifest("indexes", pair.index)
        weight = encoder_exports.image_weight(manifest["encoder"])
        live = scorer.live(manifest["log_offset"], weight)
        return Following(scorer, live, scorer.update, scorer.taken_back, ItemVectors(catalog, ws, manifest["encoder"]))

    async def reach(self, pair: Pair, offset: int) -> None:
        """Wait until the change of an offset is taken up. Raises VersionNotLoaded, InvalidRequest, Unavailable."""
        scorer = self.scorer(pair)
        if self.tail is not None and offset:
            await self.tail.reach(scorer, offset)
        elif offset > scorer.versions["log_offset"]:
            raise no_such_change(offset)

    def scorer(self, pair: Pair) -> Scorer:
        """Raises VersionNotLoaded."""
        return self._live.get(pair).value

    def answer(
        self, pair: Pair, request: SearchRequest, probe: Probe | None, found: Sequence[Found], encoded: Encoded
    ) -> Answer:
        """A search from what the shards found for its probe; no probe, what is popular."""
        with self.as_of(pair, request):
            return self._answer(pair, request, probe, found, encoded)

    def probe(self, pair: Pair, request: SearchRequest, encoded: Encoded) -> Probe | None:
        """What the shards are to look for."""
        probe = self.scorer(pair).probe(request, encoded)
        return None if probe is None else replace(probe, min_offset=request.min_offset, as_of=request.as_of)

    @contextlib.contextmanager
    def as_of(self, pair: Pair, request: SearchRequest) -> Iterator[None]:
        """As the catalog was when the request's cursor was made."""
        with contextlib.ExitStack() as stack:
            if self.tail is not None and request.as_of is not None:
                stack.enter_context(self.tail.of(self.scorer(pair)).as_of(request.as_of))
            yield

    def _answer(
        self, pair: Pair, request: SearchRequest, probe: Probe | None, found: Sequence[Found], encoded: Encoded
    ) -> Answer:
        scorer = self.scorer(pair)
        scored = scorer.everything() if probe is None else scorer.scored(probe, list(found), mode=request.mode)
        answer = scorer.search(request, scored, search_coverage(probe, encoded))
        offset = min([answer.versions["log_offset"], *(each.offset for each in found if each.offset is not None)])
        return replace(answer, versions={**answer.versions, "log_offset": offset})
