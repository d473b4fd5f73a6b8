"""From what retrieval found to an answer: filter, score, order, count, explain.

A scorer is one index version without its text encoder and without its word and vector search: it says what
to look for (a `Probe`, or a `Near`) and turns what was found into an answer. Whoever does the looking (the
engine in this process, or retriever replicas elsewhere) stands between, so the same code answers in both.
"""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rayrec.answer import Answer, Coverage, Encoded, Hit, cursor_state, fingerprint, make_cursor, read_cursor
from rayrec.config import FusionWeights
from rayrec.data import catalog
from rayrec.errors import NotFound, described
from rayrec.plans import Near, RecommendPlan, Scored, SimilarPlan
from rayrec.ranking import policy, scoring, signals
from rayrec.ranking.explain import Wordings, of_recommendation, of_search, of_similar, reasons
from rayrec.request import Recent, RecommendRequest, SearchRequest, SimilarRequest
from rayrec.retrieval import hybrid
from rayrec.retrieval.base import Candidates, Column, Found, Probe, Update, top_k
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.completions import Completion, Completions
from rayrec.retrieval.live import LiveCatalog
from rayrec.retrieval.shards import Shards
from rayrec.shoppers import Did, Shoppers
from rayrec.trained import TrainedModel

log = logging.getLogger(__name__)

PERSONAL = 500
"""candidates of a search, the best by the query, whose order the shopper's taste may change"""
Texts = Callable[[int], Wordings]
"""row -> wordings of its parts"""


def _added(parts: scoring.Parts, more: scoring.Parts) -> scoring.Parts:
    return {**parts, **{name: parts[name] + values if name in parts else values for name, values in more.items()}}


class Scorer:
    """Thread-safe, as long as nobody calls `update`: nothing else in it changes after loading but caches."""

    def __init__(
        self,
        shards: Shards,
        *,
        weights: FusionWeights,
        versions: Mapping[str, Any],
        model: TrainedModel | None = None,
        made_us: int | None = None,
        events_offset: int = 0,
    ):
        """made_us, events_offset: as of `Shoppers`."""
        self._shards = shards
        self._model = model
        self._shoppers = Shoppers(shards, made_us=made_us, events_offset=events_offset, searches=model is not None)
        self.columns = shards.columns
        self.weights = weights
        self.versions = dict(versions)
        pictures = shards.contents()[1] if "image" in weights.signals else None
        self._pictures = None if pictures is None else Column(pictures)
        self._completions = Completions.build(shards.columns, shards.behavior.popularity, shards.analyzer.starts)

    @property
    def behavior(self) -> BehaviorIndex:
        return self._shards.behavior

    def live(self, offset: int, image_weight: float | None) -> LiveCatalog:
        """What works out changes after `offset`, as of `Shards.live`."""
        return self._shards.live(offset, image_weight)

    def taken_back(self, updates: Sequence[Update]) -> list[Update]:
        """As of `Shards.taken_back`."""
        return self._shards.taken_back(updates)

    def update(self, updates: Sequence[Update], offset: int) -> None:
        """Take up what became of items by changes up to `offset`, shards included. Never beside an answer."""
        records: dict[int, Any] = {}
        for update in updates:
            if update.row not in records and self.columns.row(update.item_id) is not None:
                records[update.row] = self.columns.records([update.row])[0]
        self._shards.update(updates)
        for update in updates:
            old, records[update.row] = records.get(update.row), update.record
            self._completions.change(old, update.record, float(self.behavior.popularity[update.row]))
            if self._pictures is not None and (update.picture is not None or update.row >= len(self._pictures.values)):
                self._pictures.put(update.row, 0 if update.picture is None else update.picture)
        if self._model is not None:
            self._model.update(updates)
        self.versions["log_offset"] = offset

    def contents(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Hashes of what items say, in hex, of those that are there."""
        rows = [row for item_id in item_ids if (row := self.columns.row(item_id)) is not None]
        return {
            record["item_id"]: catalog.content_hash(catalog.item_text(record)).hex()
            for record in self.columns.records(rows)
        }

    @property
    def learns(self) -> bool:
        """Whether a trained model is part of it."""
        return self._model is not None

    # -- search -----------------------------------------------------------------------------------

    def probe(self, request: SearchRequest, encoded: Encoded) -> Probe | None:
        """What to look for; None if there is neither a word nor a vector to look with."""
        vector = encoded.vector
        by_words = bool(request.query) and (request.mode != "dense" or encoded.dense != "ok")
        if not by_words and vector is None:
            return None
        background = 0.0 if vector is None else self._shards.background(vector)
        return Probe(request.query if by_words else None, vector, background)

    def scored(self, probe: Probe, found: list[Found], *, mode: str = "hybrid") -> Scored:
        """M(q) and the parts of each candidate's score; by words or vectors as they are in the modes of one of them."""
        candidates = hybrid.join(found, probe.background, self.columns.n, self.columns.there)
        share = 0.0 if probe.vector is None else 1.0 if probe.query is None else self.weights.dense
        parts = hybrid.fuse(candidates, self.weights.model_copy(update={"dense": share}))
        if self.weights.signals and mode == "hybrid":
            parts = _added(parts, signals.weigh(self.query_signals(probe, candidates), self.weights.signals))
        return Scored(candidates, parts)

    def query_signals(
        self, probe: Probe, candidates: Candidates, pictures: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """pictures: float32 (N, D) of all items, where the weights do not ask for them themselves."""
        rows = candidates.rows
        if pictures is None and self._pictures is not None:
            pictures = self._pictures.values
        looks = None if pictures is None or probe.vector is None else pictures[rows] @ probe.vector
        return signals.of_query(
            candidates, self.columns.numbers("price_cents")[rows], self.behavior.popularity[rows], looks
        )

    def shopper_signals(
        self, did: Did, rows: np.ndarray, wanted: Collection[str] = signals.OF_SHOPPER
    ) -> dict[str, np.ndarray]:
        """Of who did that, about candidates `rows`."""
        taste = scoring.Taste.of(did.items, did.ages, self._shards.vectors)
        learned = self._expected(did) if "learned" in wanted else None
        return signals.of_shopper(rows, taste, learned, self.behavior, self._shards.vectors)

    def _for_shopper(self, request: SearchRequest, scored: Scored, coverage: Coverage) -> tuple[Scored, Coverage]:
        """With what the shopper's taste adds to the best of M(q), filtered or not. What fails is left out, and said."""
        if not self.weights.signals or request.mode != "hybrid" or not coverage.ordered_by:  # nothing was asked
            return scored, coverage
        coverage = replace(coverage, rerank="ok")
        weights = {name: w for name, w in self.weights.signals.items() if w and name in signals.OF_SHOPPER}
        if not weights or request.sort != "relevance":
            return scored, coverage
        did = self._shoppers.did(request.user_id, request.recent, request.forgotten_us)
        if not len(did.events.rows):
            return scored, coverage
        best = top_k(scoring.total(scored.parts), PERSONAL)
        rows = scored.candidates.rows
        try:
            found = signals.weigh(self.shopper_signals(did, rows[best], weights), weights)
        except Exception as error:  # a model's runtime may throw anything; the query's own order still answers
            log.error("a shopper's taste could not be weighed: %s", described(error))
            why = f"not ranked for the shopper ({type(error).__name__})"
            why = why if coverage.why is None else f"{coverage.why}; {why}"
            return scored, replace(coverage, rerank="failed", degraded=True, why=why)
        spread = {}
        for part, values in found.items():
            spread[part] = np.zeros(len(rows))
            spread[part][best] = values
        return Scored(scored.candidates, _added(scored.parts, spread)), replace(coverage, behavior="ok")

    def everything(self) -> Scored:
        """M of no query, by popularity."""
        there = self.columns.there
        rows = np.arange(self.columns.n) if there is None else np.flatnonzero(there)
        none = np.zeros(len(rows), np.float32)
        popular = self.behavior.popularity[rows].astype(np.float64)
        return Scored(Candidates(rows, none, none, np.zeros(len(rows), bool)), {"popular": popular})

    def search(self, request: SearchRequest, scored: Scored, coverage: Coverage) -> Answer:
        """Raises InvalidRequest."""
        started = time.perf_counter()
        index = str(self.versions["index"])
        photo = None if request.image is None else request.image.digest
        asked = fingerprint(
            request.query,
            photo,
            request.filters or None,
            request.sort,
            request.mode,
            request.page_size,
            request.user_id,
        )
        mask = self.columns.mask(request.filters)
        candidates = scored.candidates
        rows = candidates.rows
        places = np.arange(len(rows)) if mask is None else np.flatnonzero(mask[rows])
        if request.cursor is not None:
            pinned = cursor_state(request.cursor)
            request = replace(request, recent=[one for one in request.recent if one.offset <= pinned])
        scored, coverage = self._for_shopper(request, scored, coverage)
        state = max((one.offset for one in request.recent), default=0) if coverage.behavior == "ok" else 0
        by = f"{coverage.ordered_by} {self.versions['model'] or ''} {state}"
        page = request.page if request.cursor is None else read_cursor(request.cursor, index, asked, by)
        scores = scoring.total(scored.parts)
        first = (page - 1) * request.page_size
        wanted = first + request.page_size
        by_popularity = self.behavior.popularity[rows[places]] if request.sort == "popular" else None
        order = places[self.columns.order(rows[places], request.sort, scores[places], by_popularity, wanted)]
        shown = order[first:wanted]
        records = self.columns.records(rows[shown])
        hits = [
            Hit(
                record["item_id"],
                float(scores[place]),
                record,
                self._search_reasons(request.query, coverage, record, scored, place) if request.explain else None,
            )
            for place, record in zip(shown, records, strict=True)
        ]
        inside = rows[places]
        return self._answer(
            started,
            hits,
            total=len(places),
            exact=candidates.exact,
            page=page,
            coverage=coverage,
            facets={name: self._facet(name, request.filters, candidates, inside) for name in request.facets},
            cursor=make_cursor(index, asked, page + 1, by, state, self.versions["log_offset"])
            if wanted < len(places)
            else None,
        )

    def _facet(self, name: str, filters: Mapping[str, Any] | None, candidates: Candidates, inside: np.ndarray) -> Any:
        if not filters or name not in filters:
            return self.columns.facet(name, inside)
        mask = self.columns.mask({field: wanted for field, wanted in filters.items() if field != name})
        return self.columns.facet(name, candidates.rows if mask is None else candidates.rows[mask[candidates.rows]])

    def _search_reasons(
        self, query: str, coverage: Coverage, record: dict[str, Any], scored: Scored, place: int
    ) -> list[dict[str, Any]]:
        photo = coverage.image == "ok"
        alone = "image" if photo and coverage.dense != "ok" else "dense"
        parts = {alone if part == "dense" else part: share for part, share in scored.parts.items()}
        shared = partial(self._shards.analyzer.shared, query)
        return reasons(parts, place, of_search(record, shared, scored.candidates.dense[place], photo=photo))

    def suggest(self, prefix: str, k: int = 8) -> list[Completion]:
        """How the shop would finish what is being typed, most wanted first."""
        return self._completions.complete(prefix, k)

    # -- items ------------------------------------------------------------------------------------

    def item(self, item_id: str) -> dict[str, Any]:
        """The item. Raises NotFound."""
        return self.columns.records([self._row(item_id)])[0]

    def plan_similar(self, request: SimilarRequest) -> SimilarPlan:
        """Raises NotFound, InvalidRequest."""
        row = self._row(request.item_id)
        allowed = policy.eligible(self.columns, self.columns.mask(request.filters))
        vector = self._shards.vectors(np.array([row]))[0]
        return SimilarPlan(row, allowed, Near(vector, scoring.NEAREST + 1, allowed))

    def similar(self, request: SimilarRequest, plan: SimilarPlan, near: np.ndarray) -> Answer:
        """near: rows that were found for plan.near."""
        started = time.perf_counter()
        near, allowed = self._still(near, plan.allowed)
        rows, parts = scoring.similar(plan.row, plan.near.vector, near, self.behavior, self._shards.vectors, allowed)
        title = self.columns.records([plan.row])[0]["title"]

        def texts(_: int) -> Wordings:
            return of_similar(title)

        coverage = Coverage(dense="ok", behavior="ok")
        return self._ranked(started, rows, parts, request.k, texts if request.explain else None, coverage)

    def plan_recommend(self, request: RecommendRequest, *, popular: bool = False) -> RecommendPlan:
        """popular: plan as for a stranger. Raises InvalidRequest."""
        if popular:
            request = replace(request, user_id=None, recent_item_ids=(), recent=())
        last_us = request.recent[-1].ts_us if request.recent else 0
        viewed = [Recent(item_id, "view", last_us) for item_id in request.recent_item_ids]
        did = self._shoppers.did(request.user_id, [*request.recent, *viewed], request.forgotten_us)
        history = did.items
        allowed = policy.eligible(self.columns, self.columns.mask(request.filters))
        if self._model is not None and self._model.without_had and len(history):
            allowed = np.ones(self.columns.n, bool) if allowed is None else allowed.copy()
            allowed[history] = False
        taste = scoring.Taste.of(history, did.ages, self._shards.vectors)
        near = None if taste is None else Near(taste.vector, scoring.NEAREST, allowed)
        return RecommendPlan(history, taste, allowed, near, self._expected(did))

    def _expected(self, did: Did) -> scoring.Learned | None:
        """What the trained model expects of who did that; None without one, or of a stranger."""
        if self._model is None or not len(did.events.rows):
            return None
        return self._model.expects(did.events, did.asked)

    def recommend(
        self, request: RecommendRequest, plan: RecommendPlan, near: np.ndarray, coverage: Coverage | None = None
    ) -> Answer:
        """near: rows that were found for plan.near. coverage: of an answer that had to do without a part."""
        started = time.perf_counter()
        taste = plan.taste

        def cosine(rows: np.ndarray) -> np.ndarray:
            assert taste is not None
            return self._shards.vectors(rows) @ taste.vector

        near, allowed = self._still(near, plan.allowed)
        learned = plan.learned
        if learned is not None and (lacking := self.columns.n - len(learned.scores)):
            learned = replace(
                learned, scores=np.pad(learned.scores, (0, lacking), constant_values=learned.scores.min())
            )
        rows, parts = scoring.recommend(taste, near, self.behavior, cosine, allowed, learned)

        def companion(row: int) -> str | None:
            found = scoring.companions(self.behavior, row, plan.history)
            return None if found is None else self.columns.records([found])[0]["title"]

        def texts(row: int) -> Wordings:
            return of_recommendation(self.behavior.repeat[row], partial(companion, row))

        coverage = coverage or Coverage(dense="skipped" if taste is None else "ok", behavior="ok")
        return self._ranked(started, rows, parts, request.k, texts if request.explain else None, coverage)

    def _still(self, near: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """What a plan says, of the items that are there by now: changes may come between it and its answer.

        A shard may be ahead, and find items that are not known here.
        """
        n, there = self.columns.n, self.columns.there
        if allowed is not None and len(allowed) < n:
            allowed = np.pad(allowed, (0, n - len(allowed)))
        if there is not None:
            allowed = there if allowed is None else allowed & there
        return near[near < n], allowed

    def _row(self, item_id: str) -> int:
        row = self.columns.row(item_id)
        if row is None:
            raise NotFound(f"item {item_id!r} is not in index {self.versions['index']}")
        return row

    def _ranked(
        self, started: float, rows: np.ndarray, parts: scoring.Parts, k: int, texts: Texts | None, coverage: Coverage
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
