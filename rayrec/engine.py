"""The request path as a plain object: no Ray, no HTTP.

>>> engine = Engine.open("workspace")                                              # doctest: +SKIP
>>> engine.search("frozen pizza", filters={"brand": ["Private"]}, facets=["brand"])  # doctest: +SKIP
>>> engine.similar("32553"), engine.recommend(user_id="900")                     # doctest: +SKIP
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cachetools import LRUCache, cachedmethod

from rayrec import encoder_exports
from rayrec.answer import Answer, Coverage, Lack
from rayrec.config import FusionWeights
from rayrec.encoders.base import Encoder
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.request import RecommendRequest, SearchRequest, SimilarRequest
from rayrec.retrieval.base import Candidates
from rayrec.retrieval.completions import Completion
from rayrec.retrieval.shards import Shards
from rayrec.scorer import Near, Scored, Scorer
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

CACHED_VECTORS = 2_048
CANDIDATE_CACHE_MIB = 32  # some 230 queries of 4,400 candidates
_CANDIDATE_BYTES = 33


class Engine:
    """One index version, answering. Thread-safe: nothing in it changes after loading but its caches.

    cached_vectors: queries whose vector is kept; candidate_cache_mib: for keeping M(q) of queries; 0 keeps none.
    """

    def __init__(
        self,
        shards: Shards,
        encoder: Encoder,
        *,
        index: str,
        weights: FusionWeights,
        log_offset: int = 0,
        model: str | None = None,
        cached_vectors: int = CACHED_VECTORS,
        candidate_cache_mib: int = CANDIDATE_CACHE_MIB,
    ):
        if encoder.dim != shards.dim:
            raise IncompatibleArtifact(f"the encoder makes {encoder.dim} dimensions, index {index} has {shards.dim}")
        self.shards = shards
        self.encoder = encoder
        self.versions = {"index": index, "model": model, "log_offset": log_offset}
        self.scorer = Scorer(shards, weights=weights, versions=self.versions)
        self._vectors: LRUCache = LRUCache(cached_vectors)
        self._candidates: LRUCache = LRUCache(
            candidate_cache_mib << 20, getsizeof=lambda found: 500 + _CANDIDATE_BYTES * len(found.candidates.rows)
        )
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, workspace: str | os.PathLike[str] | Workspace, *, index: str | None = None, **caches: int
    ) -> "Engine":
        """Load the version that `current.json` names, or `index`. caches: as of the constructor.

        Raises NotFound without one, IncompatibleArtifact if a file is damaged or the encoder's space differs.
        """
        ws = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace, create=False)
        pointer = ws.current()
        version = index or pointer.index
        if version is None:
            raise NotFound(f"no index answers in {ws.uri} yet; run 'rayrec index' (and 'rayrec embed' before it)")
        model = pointer.model if index is None else None
        return cls.load(ws, version, model, **caches)

    @classmethod
    def load(cls, ws: Workspace, index: str, model: str | None, **caches: int) -> "Engine":
        """Load a pair of index and model, whatever answers now. Raises as `open`."""
        directory = ws.local_copy("indexes", index)
        manifest = ws.manifest("indexes", index)
        encoder = encoder_exports.open_for(ws, manifest["encoder"])
        if encoder.id.space != manifest["encoder"]["space"]:
            raise IncompatibleArtifact(
                f"indexes/{index} holds space {manifest['encoder']['space']}, the encoder is of {encoder.id.space}"
            )
        weights = fusion_weights(ws, model)
        shards = Shards.load(directory, manifest["shards"])
        offset = manifest["log_offset"]
        return cls(shards, encoder, index=index, weights=weights, log_offset=offset, model=model, **caches)

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
    ) -> Answer:
        """Items for a query, as `SearchRequest` says. k: same as page_size. Raises InvalidRequest."""
        started = time.perf_counter()
        size = page_size if k is None else k
        request = SearchRequest(query, filters, facets, sort, page, size, cursor, mode, explain)
        vector, lack = self._try_vector(request)
        return replace(self.answer(request, vector, lack), took_ms=_elapsed_ms(started))

    def answer(self, request: SearchRequest, vector: np.ndarray | None, lack: Lack | None) -> Answer:
        """Answer a search whose query was encoded elsewhere, or was not."""
        coverage = search_coverage(request, vector, lack)
        if not request.query:
            return self.scorer.search(request, self.scorer.everything(), coverage)
        mode = "lexical" if vector is None else request.mode
        return self.scorer.search(request, self._scored(request.query, mode, vector), coverage)

    def retrieve(self, query: str, mode: str = "hybrid") -> tuple[Candidates, Coverage]:
        """M(query), before filters and order, and which parts took part."""
        request = SearchRequest(query, mode=mode)
        vector, lack = self._try_vector(request)
        mode = "lexical" if vector is None else mode
        return self._scored(request.query, mode, vector).candidates, search_coverage(request, vector, lack)

    def _try_vector(self, request: SearchRequest) -> tuple[np.ndarray | None, Lack | None]:
        if not request.wants_vector:
            return None, None
        try:
            return self.vector(request.query), None
        except Exception as error:  # whatever a runtime throws, words still answer, and the answer says so
            log.exception("encoding a query failed")
            return None, Lack("failed", f"the encoder failed ({type(error).__name__})")

    @cachedmethod(lambda self: self._vectors, lock=lambda self: self._lock)
    def vector(self, query: str) -> np.ndarray:
        """float32 (D,)."""
        return self.encoder.encode([query], "query")[0]

    def _scored(self, query: str, mode: str, vector: np.ndarray | None) -> Scored:
        """M(query) and its scores, given the query's vector unless mode is lexical."""
        with self._lock:
            known = self._candidates.get((query, mode))
        if known is not None:
            return known
        probe = self.scorer.probe(query, mode, vector)
        found = self.scorer.scored(probe, self.shards.find(probe), mode)
        with self._lock, contextlib.suppress(ValueError):  # too large to be kept
            self._candidates[query, mode] = found
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


def search_coverage(request: SearchRequest, vector: np.ndarray | None, lack: Lack | None) -> Coverage:
    """Which parts take part in a search."""
    if not request.query:
        return Coverage()
    if lack is not None:
        return Coverage("ok", lack.state, degraded=True, why=lack.why)
    lexical = "skipped" if request.mode == "dense" else "ok"
    return Coverage(lexical, "skipped" if vector is None else "ok")


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
