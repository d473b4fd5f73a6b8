"""The parts of a split service: query encoder, retriever of one shard, scorer. Plain classes that a test can call.

Each follows the workspace's pointer by itself and keeps the pair before the present one for a while, so callers
name the pair they want and fall back on the other where a part is not there yet.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rayrec import encoder_exports
from rayrec.answer import Answer, Encoded
from rayrec.config import ServeConfig
from rayrec.encoders.base import Encoder
from rayrec.encoders.image import ImageEncoder
from rayrec.engine import Engine, fusion_weights, search_coverage
from rayrec.errors import IncompatibleArtifact
from rayrec.photo import no_pictures
from rayrec.request import SearchRequest
from rayrec.retrieval.base import Found, Hits, Probe
from rayrec.retrieval.shards import Shard, Shards
from rayrec.scorer import Scorer, TrainedModel
from rayrec.serving.telemetry import Telemetry
from rayrec.serving.versions import Live, Pair, T
from rayrec.workspace import Workspace

_WARM_UP = "warm up"
_WARM_UP_PICTURE = np.zeros((8, 8, 3), np.uint8)


def follow(
    config: ServeConfig, part: str, telemetry: Telemetry, load: Callable[[Workspace, Pair, T | None], T]
) -> Live[T]:
    """A part that follows the config's workspace, and whose versions and failures are counted."""
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


class Encoders(NamedTuple):
    """An index's encoders; images is None, and its export too, for one without pictures."""

    texts: Encoder
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
    if before is not None and before.export == export:
        return Encoders(texts, before.images, export)
    images = encoder_exports.open_images(ws, wanted)
    if images is not None:
        images.encode([_WARM_UP_PICTURE])
    return Encoders(texts, images, export)


class Retriever:
    """One shard's words and vectors. Raises IncompatibleArtifact if the index has other shards than the config says."""

    def __init__(self, config: ServeConfig, shard: int, telemetry: Telemetry):
        self._shard = shard
        self._shards = config.shards
        self._telemetry = telemetry
        self._live = follow(config, f"retriever-{shard}", telemetry, self._load)

    def _load(self, ws: Workspace, pair: Pair, before: Shard | None) -> Shard:
        check_shards(ws, pair, self._shards)
        return Shard.load(ws.local_copy("indexes", pair.index), self._shard, self._shards)

    def find(self, pair: Pair, probes: Sequence[Probe]) -> list[Found]:
        """What the shard has for each probe. Raises VersionNotLoaded."""
        self._telemetry.batch.labels("retrieve").observe(len(probes))
        return self._live.get(pair).value.find(probes)

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

    def __init__(self, config: ServeConfig, telemetry: Telemetry):
        self._shards = config.shards
        self._live = follow(config, "scorer", telemetry, self._load)

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

    def scorer(self, pair: Pair) -> Scorer:
        """Raises VersionNotLoaded."""
        return self._live.get(pair).value

    def answer(
        self, pair: Pair, request: SearchRequest, probe: Probe | None, found: Sequence[Found], encoded: Encoded
    ) -> Answer:
        """A search from what the shards found for its probe; no probe, what is popular."""
        scorer = self.scorer(pair)
        scored = scorer.everything() if probe is None else scorer.scored(probe, list(found), mode=request.mode)
        return scorer.search(request, scored, search_coverage(probe, encoded))
