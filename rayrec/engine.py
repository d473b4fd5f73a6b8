"""The request path as a plain object: no Ray, no HTTP.

>>> engine = Engine.open("workspace")                                              # doctest: +SKIP
>>> engine.search("frozen pizza", filters={"brand": ["Private"]}, facets=["brand"])  # doctest: +SKIP
>>> engine.similar("32553"), engine.recommend(user_id="900")                     # doctest: +SKIP
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rayrec import encoder_exports
from rayrec.answer import Answer, Coverage, Hit, fingerprint, make_cursor, read_cursor
from rayrec.config import FusionWeights
from rayrec.encoders.base import Encoder
from rayrec.errors import IncompatibleArtifact, InvalidRequest, NotFound
from rayrec.ranking import policy, scoring
from rayrec.ranking.explain import reasons
from rayrec.retrieval import hybrid
from rayrec.retrieval.base import Candidates
from rayrec.retrieval.shards import Shards
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

MODES = ("hybrid", "lexical", "dense")
_MAX_PAGE_SIZE = 1_000
_MAX_QUERY_CHARS = 1_000
_CACHED_VECTORS = 512
_CACHED_CANDIDATES = 64  # each up to LEXICAL_CANDIDATES rows of 17 bytes: 110 MB at the very most


class Engine:
    """One index version, answering. Thread-safe: nothing in it changes after loading but its caches."""

    def __init__(
        self,
        shards: Shards,
        encoder: Encoder,
        *,
        index: str,
        weights: FusionWeights,
        log_offset: int = 0,
        model: str | None = None,
    ):
        if encoder.dim != shards.dim:
            raise IncompatibleArtifact(f"the encoder makes {encoder.dim} dimensions, index {index} has {shards.dim}")
        self.shards = shards
        self.encoder = encoder
        self.weights = weights
        self.versions = {"index": index, "model": model, "log_offset": log_offset}
        self.columns = shards.columns
        self._vector = lru_cache(_CACHED_VECTORS)(self._encode)
        self._candidates = lru_cache(_CACHED_CANDIDATES)(self._find_candidates)

    @classmethod
    def open(cls, workspace: str | os.PathLike[str] | Workspace, *, index: str | None = None) -> "Engine":
        """Load the version that `current.json` names, or `index`.

        Raises NotFound without one, IncompatibleArtifact if a file is damaged or the encoder's space differs.
        """
        ws = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace, create=False)
        pointer = ws.current()
        version = index or pointer.index
        if version is None:
            raise NotFound(f"no index answers in {ws.uri} yet; run 'rayrec index' (and 'rayrec embed' before it)")
        directory = ws.local_copy("indexes", version)
        manifest = ws.manifest("indexes", version)
        encoder = encoder_exports.open_for(ws, manifest["encoder"]["space"])
        if encoder.id.space != manifest["encoder"]["space"]:
            raise IncompatibleArtifact(
                f"indexes/{version} holds space {manifest['encoder']['space']}, the encoder is of {encoder.id.space}"
            )
        model = pointer.model if index is None else None
        weights = FusionWeights()
        if model is not None:
            ws.verify("models", model)
            weights = FusionWeights.model_validate(ws.manifest("models", model)["fusion"])
        shards = Shards.load(directory, manifest["shards"])
        return cls(shards, encoder, index=version, weights=weights, log_offset=manifest["log_offset"], model=model)

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
        """Items for a query; all items, popular first, without one.

        filters: AND across fields, OR within one; facets: fields to count, each as if its own filter were
        open, so a count is the total of choosing that value. k: same as page_size. cursor: of the answer
        before, wins over page. Raises InvalidRequest.
        """
        started = time.perf_counter()
        page_size = k if k is not None else page_size
        self._check(query, page, mode)
        _check_count("page_size", page_size)
        query = " ".join(query.split())
        candidates, coverage = self.retrieve(query, mode) if query else (self._everything(), Coverage())
        # degraded answers rank differently, so a page of one never follows a page of the other
        request = fingerprint(query, filters or None, sort, mode, page_size, coverage.degraded)
        if cursor is not None:
            page = read_cursor(cursor, str(self.versions["index"]), request)
        mask = self.columns.mask(filters)
        inside = np.ones(len(candidates.rows), bool) if mask is None else mask[candidates.rows]
        ranked_by = "lexical" if coverage.dense == "failed" else mode
        parts = self._search_parts(candidates, ranked_by) if query else {"popular": self._popularity(candidates)}
        scores = scoring.total(parts)
        places = np.flatnonzero(inside)
        order = places[
            self.columns.order(
                candidates.rows[places],
                sort,
                scores[places],
                self._popularity(candidates)[places],
            )
        ]
        first = (page - 1) * page_size
        shown = order[first : first + page_size]
        records = self.columns.records(candidates.rows[shown])
        hits = [
            Hit(
                record["item_id"],
                float(scores[place]),
                record,
                self._search_reasons(query, record, candidates, parts, place) if explain else None,
            )
            for place, record in zip(shown, records, strict=True)
        ]
        more = first + page_size < len(order)
        return self._answer(
            started,
            hits,
            total=len(order),
            exact=candidates.exact,
            page=page,
            coverage=coverage,
            facets={name: self._facet(name, filters, candidates) for name in facets},
            cursor=make_cursor(str(self.versions["index"]), request, page + 1) if more else None,
        )

    def _check(self, query: str, page: int, mode: str) -> None:
        if mode not in MODES:
            raise InvalidRequest("invalid_mode", f"mode: no such mode {mode!r}", field="mode", hint=", ".join(MODES))
        if page < 1:
            raise InvalidRequest("invalid_page", f"page: expected 1 or more, got {page}", field="page")
        if not query.isascii() and query != query.encode("utf-8", "ignore").decode():
            raise InvalidRequest("invalid_query", "query: not valid Unicode text", field="query")
        if len(query) > _MAX_QUERY_CHARS:
            raise InvalidRequest("query_too_long", f"query: over {_MAX_QUERY_CHARS} characters", field="query")

    def retrieve(self, query: str, mode: str = "hybrid") -> tuple[Candidates, Coverage]:
        """M(query), before filters and order, and which parts took part."""
        lexical, dense = ("ok" if mode != "dense" else "skipped"), ("ok" if mode != "lexical" else "skipped")
        if dense == "ok":
            try:
                self._vector(query)
            except Exception as error:  # whatever a runtime throws, words still answer, and the answer says so
                log.exception("encoding a query failed")
                why = f"the encoder failed ({type(error).__name__})"
                return self._candidates(query, "lexical"), Coverage("ok", "failed", degraded=True, why=why)
        return self._candidates(query, mode), Coverage(lexical, dense)

    def _encode(self, query: str) -> np.ndarray:
        return self.encoder.encode([query])[0]

    def _find_candidates(self, query: str, mode: str) -> Candidates:
        lexical = self.shards.match(query, hybrid.LEXICAL_CANDIDATES) if mode != "dense" else None
        if mode == "lexical":
            return hybrid.join(lexical, None)
        vector = self._vector(query)
        best = float(self.shards.nearest(vector, 1)[1].max(initial=-1.0))
        floor = hybrid.dense_floor(best, self.shards.background(vector))
        return hybrid.join(lexical, self.shards.at_least(vector, floor))

    def _everything(self) -> Candidates:
        n = self.columns.n
        return Candidates(np.arange(n), np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros(n, bool))

    def _search_parts(self, candidates: Candidates, mode: str) -> scoring.Parts:
        share = {"hybrid": self.weights.dense, "lexical": 0.0, "dense": 1.0}[mode]
        return hybrid.fuse(candidates, self.weights.model_copy(update={"dense": share}))

    def _popularity(self, candidates: Candidates) -> np.ndarray:
        return self.shards.behavior.popularity[candidates.rows].astype(np.float64)

    def _facet(self, name: str, filters: Mapping[str, Any] | None, candidates: Candidates) -> Any:
        mask = self.columns.mask({field: v for field, v in (filters or {}).items() if field != name})
        rows = candidates.rows if mask is None else candidates.rows[mask[candidates.rows]]
        return self.columns.facet(name, rows)

    def _search_reasons(
        self, query: str, record: dict[str, Any], candidates: Candidates, parts: scoring.Parts, place: int
    ) -> list[dict[str, Any]]:
        def words() -> str:
            text = " ".join(str(v) for v in (record["title"], record["brand"], record["description"]) if v)
            text += " " + " ".join(v for v in [*(record["category"] or []), *record["attributes"].values()] if v)
            there = set(self.shards.terms(text))
            found = [w for w in query.split() if there.intersection(self.shards.terms(w))]
            return "says " + ", ".join(f"'{word}'" for word in dict.fromkeys(found))

        return reasons(
            parts,
            place,
            {
                "lexical": words,
                "dense": lambda: f"close in meaning (cosine {candidates.dense[place]:.2f})",
                "popular": lambda: "often bought lately",
            },
        )

    # -- items ------------------------------------------------------------------------------------

    def item(self, item_id: str) -> dict[str, Any]:
        """The item. Raises NotFound."""
        return self.columns.records([self._row(item_id)])[0]

    def similar(
        self, item_id: str, *, k: int = 24, filters: Mapping[str, Any] | None = None, explain: bool = False
    ) -> Answer:
        """Items like this one, in content or because they are bought together. Raises NotFound."""
        started = time.perf_counter()
        _check_count("k", k)
        row = self._row(item_id)
        rows, parts = scoring.similar(self.shards, row, policy.eligible(self.columns, self.columns.mask(filters)))
        title = self.columns.records([row])[0]["title"]

        def texts(_: int) -> dict[str, Any]:
            return {
                "content": lambda: f"like {title}",
                "together": lambda: f"bought together with {title}",
            }

        return self._ranked(started, rows, parts, k, texts if explain else None, Coverage(dense="ok", behavior="ok"))

    def recommend(
        self,
        *,
        user_id: str | None = None,
        recent_item_ids: Sequence[str] = (),
        k: int = 24,
        filters: Mapping[str, Any] | None = None,
        explain: bool = False,
    ) -> Answer:
        """Items for a shopper, from their history and `recent_item_ids` (oldest first); else what is popular.

        Recent items the catalog does not know are passed over.
        """
        started = time.perf_counter()
        _check_count("k", k)
        behavior = self.shards.behavior
        history, ages = behavior.history(user_id) if user_id is not None else (np.empty(0, np.int64), np.empty(0))
        recent = [self.columns.row_of[i] for i in recent_item_ids if i in self.columns.row_of]
        history = np.concatenate([history, np.array(recent, np.int64)])
        ages = np.concatenate([ages, np.zeros(len(recent))])
        allowed = policy.eligible(self.columns, self.columns.mask(filters))
        rows, parts = scoring.recommend(self.shards, history, ages, allowed)

        def texts(row: int) -> dict[str, Any]:
            return {
                "repeat": lambda: f"{behavior.repeat[row]:.0%} of its buyers buy it again, and it is one of yours",
                "together": lambda: self._companion_text(row, history),
                "content": lambda: "like what you buy",
                "popular": lambda: "often bought lately",
            }

        coverage = Coverage(dense="ok" if len(history) else "skipped", behavior="ok")
        return self._ranked(started, rows, parts, k, texts if explain else None, coverage)

    def _companion_text(self, row: int, history: np.ndarray) -> str:
        companion = scoring.companions(self.shards.behavior, row, history)
        if companion is None:
            return "bought together with your items"
        return f"bought together with {self.columns.records([companion])[0]['title']}"

    def _row(self, item_id: str) -> int:
        if item_id not in self.columns.row_of:
            raise NotFound(f"item {item_id!r} is not in index {self.versions['index']}")
        return self.columns.row_of[item_id]

    def _ranked(
        self, started: float, rows: np.ndarray, parts: scoring.Parts, k: int, texts: Any, coverage: Coverage
    ) -> Answer:
        scores = scoring.total(parts)
        best = np.lexsort((rows, -scores))[:k]
        hits = [
            Hit(
                record["item_id"],
                float(scores[place]),
                record,
                reasons(parts, place, texts(int(rows[place]))) if texts else None,
            )
            for place, record in zip(best, self.columns.records(rows[best]), strict=True)
        ]
        return self._answer(
            started, hits, total=len(hits), exact=True, page=1, coverage=coverage, facets={}, cursor=None
        )

    def _answer(
        self,
        started: float,
        hits: list[Hit],
        *,
        total: int,
        exact: bool,
        page: int,
        coverage: Coverage,
        facets: dict[str, Any],
        cursor: str | None,
    ) -> Answer:
        return Answer(
            request_id=secrets.token_hex(8),
            hits=hits,
            total=total,
            total_is_exact=exact,
            facets=facets,
            page=page,
            cursor=cursor,
            took_ms=round((time.perf_counter() - started) * 1000, 3),
            coverage=coverage,
            versions=dict(self.versions),
        )


def _check_count(field: str, wanted: int) -> None:
    if not 1 <= wanted <= _MAX_PAGE_SIZE:
        message = f"{field}: expected 1 to {_MAX_PAGE_SIZE}, got {wanted}"
        raise InvalidRequest(f"invalid_{field}", message, field=field)
