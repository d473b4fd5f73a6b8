"""The request path as a plain object: no Ray, no HTTP.

>>> engine = Engine.open("workspace")                                              # doctest: +SKIP
>>> engine.search("frozen pizza", filters={"brand": ["Private"]}, facets=["brand"])  # doctest: +SKIP
>>> engine.search(image=Path("photo.jpg").read_bytes())                          # doctest: +SKIP
>>> engine.similar("32553"), engine.recommend(user_id="900")                     # doctest: +SKIP
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from cachetools import LRUCache, cachedmethod

from rayrec import encoder_exports
from rayrec.answer import Answer, Coverage, Encoded, Lack
from rayrec.config import FusionWeights
from rayrec.encoders.base import Encoder
from rayrec.encoders.image import ImageEncoder
from rayrec.errors import IncompatibleArtifact, InvalidRequest, NotFound, described
from rayrec.item_vectors import ItemVectors
from rayrec.photo import Photo, no_pictures
from rayrec.plans import Near, Scored
from rayrec.request import RecommendRequest, SearchRequest, SimilarRequest
from rayrec.retrieval.base import Candidates, Probe, Update
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.completions import Completion
from rayrec.retrieval.shards import Shards
from rayrec.scorer import Scorer
from rayrec.store import CatalogLog, default_store, open_catalog_log
from rayrec.trained import TrainedModel
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

CACHED_VECTORS = 2_048
CANDIDATE_CACHE_MIB = 32  # some 230 queries of 4,400 candidates
_CANDIDATE_BYTES = 33
_AT_ONCE = 1_000
POPULAR = "answered with what is popular"


class Engine:
    """One index version, answering. Thread-safe, as long as nobody calls `update`: nothing else in it changes after
    loading but its caches.

    image_encoder: of an index with pictures, which weigh image_weight beside texts; trained: a fusion model over items.
    cached_vectors: queries and photos whose vector is kept;
    candidate_cache_mib: for keeping M(q) of queries; 0 keeps none.
    """

    def __init__(
        self,
        shards: Shards,
        encoder: Encoder,
        *,
        index: str,
        weights: FusionWeights,
        image_encoder: ImageEncoder | None = None,
        log_offset: int = 0,
        image_weight: float | None = None,
        model: str | None = None,
        trained: TrainedModel | None = None,
        made_us: int | None = None,
        events_offset: int = 0,
        cached_vectors: int = CACHED_VECTORS,
        candidate_cache_mib: int = CANDIDATE_CACHE_MIB,
    ):
        for part in (encoder, image_encoder):
            if part is not None and part.dim != shards.dim:
                raise IncompatibleArtifact(f"{part.id} makes {part.dim} dimensions, index {index} has {shards.dim}")
        self.shards = shards
        self.encoder = encoder
        self.image_encoder = image_encoder
        self.scorer = Scorer(
            shards,
            weights=weights,
            versions={"index": index, "model": model, "log_offset": log_offset},
            model=trained,
            made_us=made_us,
            events_offset=events_offset,
        )
        self.live = shards.live(log_offset, image_weight)
        self._vectors: LRUCache = LRUCache(cached_vectors)
        self._candidates: LRUCache = LRUCache(
            candidate_cache_mib << 20, getsizeof=lambda found: 500 + _CANDIDATE_BYTES * len(found.candidates.rows)
        )
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, workspace: str | os.PathLike[str] | Workspace, *, index: str | None = None, **caches: Any
    ) -> "Engine":
        """Load the version that `current.json` names, or `index`, and what the running shop changed since then, if its
        store is in the workspace. caches: as of the constructor.

        Raises NotFound without one, IncompatibleArtifact if a file is damaged or the encoder's space differs.
        """
        ws = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace, create=False)
        pointer = ws.current()
        version = index or pointer.index
        if version is None:
            raise NotFound(f"no index answers in {ws.uri} yet; run 'rayrec index' (and 'rayrec embed' before it)")
        model = pointer.model if index is None else None
        engine = cls.load(ws, version, model, **caches)
        store = default_store(ws)
        if store is not None:
            changes = open_catalog_log(store)
            try:
                engine.catch_up(ws, changes)
            finally:
                changes.close()
        return engine

    def catch_up(self, ws: Workspace, changes: CatalogLog) -> None:
        """Take up what the log has beyond this index. Never beside an answer."""
        vectors = ItemVectors(changes, ws, ws.manifest("indexes", self.versions["index"])["encoder"], self.encoder)
        while part := changes.changes(self.live.offset, _AT_ONCE):
            self.update(self.live.plan(part, vectors), part[-1].offset)
            self.live.took(part[-1].offset)

    @classmethod
    def load(
        cls,
        ws: Workspace,
        index: str,
        model: str | None,
        *,
        weights: FusionWeights | None = None,
        behavior: BehaviorIndex | None = None,
        **caches: Any,
    ) -> "Engine":
        """Load a pair of index and model, whatever answers now. Raises as `open`.

        weights, behavior: in place of the model's and the index's own.
        """
        directory = ws.local_copy("indexes", index)
        manifest = ws.manifest("indexes", index)
        encoder = encoder_exports.open_for(ws, manifest["encoder"])
        image_encoder = encoder_exports.open_images(ws, manifest["encoder"])
        for part in (encoder, image_encoder):
            if part is not None and part.id.space != manifest["encoder"]["space"]:
                raise IncompatibleArtifact(
                    f"indexes/{index} holds space {manifest['encoder']['space']}, the encoder is of {part.id.space}"
                )
        shards = Shards.load(directory, manifest["shards"])
        if behavior is not None:
            shards = shards.with_behavior(behavior)
        return cls(
            shards,
            encoder,
            image_encoder=image_encoder,
            index=index,
            weights=weights or fusion_weights(ws, model),
            log_offset=manifest["log_offset"],
            image_weight=encoder_exports.image_weight(manifest["encoder"]),
            made_us=manifest["created_us"],
            events_offset=manifest.get("events_offset", 0),
            model=model,
            trained=TrainedModel.load(ws, model, shards, manifest["encoder"]["space"]),
            **caches,
        )

    @property
    def versions(self) -> dict[str, Any]:
        return self.scorer.versions

    def update(self, updates: Sequence[Update], offset: int) -> None:
        """Take up what `live` planned of the changes up to `offset`. Never beside an answer: rows and scores change."""
        self.scorer.update(updates, offset)
        with self._lock:
            self._candidates.clear()

    @contextlib.contextmanager
    def candidates_aside(self) -> Iterator[None]:
        """What is kept of queries now is kept still after the block, whatever is taken up and back within it."""
        with self._lock:
            kept, self._candidates = self._candidates, LRUCache(0)
        try:
            yield
        finally:
            with self._lock:
                self._candidates = kept

    @property
    def columns(self) -> Any:
        return self.shards.columns

    @property
    def weights(self) -> FusionWeights:
        return self.scorer.weights

    # -- search -----------------------------------------------------------------------------------

    def search(
        self,
        query: str = "",
        *,
        filters: Mapping[str, Any] | None = None,
        facets: Sequence[str] = (),
        sort: str = "relevance",
        page: int = 1,
        page_size: int = 24,
        k: int | None = None,
        cursor: str | None = None,
        mode: str = "hybrid",
        explain: bool = False,
        image: bytes | np.ndarray | None = None,
        user_id: str | None = None,
    ) -> Answer:
        """Items for a query, a photo or both, as `SearchRequest` says. Raises InvalidRequest.

        k: same as page_size. image: a picture file's bytes, or pixels uint8 (H, W, 3) in RGB.
        """
        started = time.perf_counter()
        size = page_size if k is None else k
        photo = None if image is None else Photo.of(image)
        request = SearchRequest(query, filters, facets, sort, page, size, cursor, mode, explain, photo, user_id)
        return replace(self.answer(request, self._encode(request)), took_ms=_elapsed_ms(started))

    def answer(self, request: SearchRequest, encoded: Encoded) -> Answer:
        """Answer a search whose query and photo were encoded elsewhere, or were not."""
        scored, coverage = self._found(request, encoded)
        return self.scorer.search(request, scored, coverage)

    def retrieve(self, query: str, mode: str = "hybrid") -> tuple[Candidates, Coverage]:
        """M(query), before filters and order, and which parts took part."""
        request = SearchRequest(query, mode=mode)
        scored, coverage = self._found(request, self._encode(request))
        return scored.candidates, coverage

    def weighed(self, query: str) -> tuple[Probe | None, Scored]:
        """What is looked for, and M(query) with its scores. Probe is None of a query without a word."""
        request = SearchRequest(query)
        encoded = self._encode(request)
        return self.scorer.probe(request, encoded), self._found(request, encoded)[0]

    def _encode(self, request: SearchRequest) -> Encoded:
        """Raises InvalidRequest for a photo that cannot be read or searched with."""
        query = photo = None
        if request.wants_vector:
            query = _attempt("encoder", partial(self.vector, request.query))
        if request.photo is not None:
            photo = _attempt("image encoder", partial(self.image_vector, request.photo))
        return Encoded.of(query, photo)

    @cachedmethod(lambda self: self._vectors, lock=lambda self: self._lock)
    def vector(self, query: str) -> np.ndarray:
        """float32 (D,)."""
        return self.encoder.encode([query], "query")[0]

    @cachedmethod(
        lambda self: self._vectors, key=lambda self, photo: ("photo", photo.digest), lock=lambda self: self._lock
    )
    def image_vector(self, photo: Photo) -> np.ndarray:
        """float32 (D,). Raises InvalidRequest."""
        if self.image_encoder is None:
            raise no_pictures()
        return self.image_encoder.encode([photo.picture(self.image_encoder.preprocess)])[0]

    def _found(self, request: SearchRequest, encoded: Encoded) -> tuple[Scored, Coverage]:
        """M(q) and its scores, and which parts took part."""
        probe = self.scorer.probe(request, encoded)
        scored = self.scorer.everything() if probe is None else self._scored(request, encoded, probe)
        return scored, search_coverage(probe, encoded)

    def _scored(self, request: SearchRequest, encoded: Encoded, probe: Probe) -> Scored:
        photo = request.photo.digest if request.photo is not None and encoded.image == "ok" else None
        key = (probe.query, request.query if encoded.dense == "ok" else None, photo, request.mode == "hybrid")
        with self._lock:
            known = self._candidates.get(key)
        if known is not None:
            return known
        found = self.scorer.scored(probe, self.shards.find(probe), mode=request.mode)
        with self._lock, contextlib.suppress(ValueError):  # too large to be kept
            self._candidates[key] = found
        return found

    def suggest(self, prefix: str, k: int = 8) -> list[Completion]:
        """How the shop would finish what is being typed, most wanted first."""
        return self.scorer.suggest(prefix, k)

    # -- items ------------------------------------------------------------------------------------

    def item(self, item_id: str) -> dict[str, Any]:
        """The item. Raises NotFound."""
        return self.scorer.item(item_id)

    def similar(
        self, item_id: str, *, k: int = 24, filters: Mapping[str, Any] | None = None, explain: bool = False
    ) -> Answer:
        """Items like this one, as `SimilarRequest` says. Raises NotFound, InvalidRequest."""
        return self.answer_similar(SimilarRequest(item_id, k, filters, explain))

    def answer_similar(self, request: SimilarRequest) -> Answer:
        started = time.perf_counter()
        plan = self.scorer.plan_similar(request)
        return replace(self.scorer.similar(request, plan, self._near(plan.near)), took_ms=_elapsed_ms(started))

    def recommend(
        self,
        *,
        user_id: str | None = None,
        recent_item_ids: Sequence[str] = (),
        k: int = 24,
        filters: Mapping[str, Any] | None = None,
        explain: bool = False,
    ) -> Answer:
        """Items for a shopper, as `RecommendRequest` says. Raises InvalidRequest."""
        return self.answer_recommend(RecommendRequest(user_id, recent_item_ids, k, filters, explain))

    def answer_recommend(self, request: RecommendRequest, coverage: Coverage | None = None) -> Answer:
        """coverage: of an answer that is to do with what is popular."""
        started = time.perf_counter()
        plan = self.scorer.plan_recommend(request, popular=coverage is not None)
        answer = self.scorer.recommend(request, plan, self._near(plan.near), coverage)
        return replace(answer, took_ms=_elapsed_ms(started))

    def _near(self, near: Near | None) -> np.ndarray:
        return NOTHING if near is None else self.shards.nearest(near.vector, near.k, near.allowed)


NOTHING = np.empty(0, np.int64)


def fusion_weights(ws: Workspace, model: str | None) -> FusionWeights:
    """What a model version says, or the default. Raises IncompatibleArtifact, NotFound."""
    if model is None:
        return FusionWeights()
    return FusionWeights.model_validate(ws.verify("models", model)["fusion"])


def search_coverage(probe: Probe | None, encoded: Encoded) -> Coverage:
    """Which parts take part in a search for what `probe` looks for."""
    lexical = "skipped" if probe is None or probe.query is None else "ok"
    why = f"{encoded.why}: {POPULAR}" if encoded.why and probe is None else encoded.why
    return Coverage(lexical, encoded.dense, encoded.image, degraded=why is not None, why=why)


def _attempt(name: str, encode: Callable[[], np.ndarray]) -> np.ndarray | Lack:
    """A vector, or that its encoder failed. Raises InvalidRequest, which is no fault of the encoder's."""
    try:
        return encode()
    except InvalidRequest:
        raise
    except Exception as error:  # whatever a runtime throws, what is left still answers, and the answer says so
        log.error("the %s failed: %s", name, described(error))
        return Lack("failed", f"the {name} failed ({type(error).__name__})")


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
