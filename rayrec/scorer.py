"""From what retrieval found to an answer: filter, score, order, count, explain.

A scorer is one index version without its text encoder and without its word and vector search: it says what
to look for (a `Probe`, or a `Near`) and turns what was found into an answer. Whoever does the looking (the
engine in this process, or retriever replicas elsewhere) stands between, so the same code answers in both.
"""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayrec.answer import Answer, Coverage, Encoded, Hit, cursor_state, fingerprint, make_cursor, read_cursor
from rayrec.config import FusionWeights
from rayrec.data import catalog
from rayrec.data.histories import DAY_US, Histories
from rayrec.errors import NotFound, described
from rayrec.ranking import policy, scoring, signals
from rayrec.ranking.explain import reasons
from rayrec.request import Recent, RecommendRequest, SearchRequest, SimilarRequest
from rayrec.retrieval import hybrid
from rayrec.retrieval.base import Candidates, Column, Found, Probe, Update, top_k
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.completions import Completion, Completions
from rayrec.retrieval.live import LiveCatalog
from rayrec.retrieval.shards import Shards
from rayrec.schema import EVENT_TYPES
from rayrec.trained import TrainedModel

log = logging.getLogger(__name__)

PERSONAL = 500
"""candidates of a search, the best by the query, whose order the shopper's taste may change"""
Texts = Callable[[int], dict[str, Callable[[], str]]]
"""row -> part of a score -> a function that words it"""


@dataclass(frozen=True)
class Scored:
    """M(q), and what each part of the score gives each candidate; of the query alone, so it can be kept."""

    candidates: Candidates
    parts: scoring.Parts


@dataclass(frozen=True)
class Near:
    """Ask for the rows of the k items nearest to vector float32 (D,), among allowed bool (N,)."""

    vector: np.ndarray
    k: int
    allowed: np.ndarray | None


@dataclass(frozen=True)
class SimilarPlan:
    """Who is asked about, and what to look for; `Scorer.similar` continues with what was found."""

    row: int
    allowed: np.ndarray | None
    near: Near


@dataclass(frozen=True)
class RecommendPlan:
    """A shopper's history and taste, and what to look for; near is None for a stranger.

    learned: what a trained model expects of them, None without one.
    """

    history: np.ndarray
    taste: scoring.Taste | None
    allowed: np.ndarray | None
    near: Near | None
    learned: scoring.Learned | None = None


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
        """made_us: when the index was built; None: when the newest event that it knows was.

        events_offset: in the log of events, up to which it knows them.
        """
        self._events_offset = events_offset
        self._shards = shards
        self._made_us = shards.behavior.now_us if made_us is None else made_us
        self._model = model
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
        self,
        events: Histories,
        now_us: int,
        rows: np.ndarray,
        wanted: Collection[str] = signals.OF_SHOPPER,
        asked: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Of the shopper whose events until now_us these are, about candidates `rows`.

        asked: vectors of events.texts; None: those are the index's own.
        """
        items = events.rows >= 0
        ages = np.maximum(0, now_us - events.ts_us[items]) / DAY_US
        taste = scoring.Taste.of(events.rows[items], ages, self._shards.vectors)
        learned = None
        if self._model is not None and len(events.rows) and "learned" in wanted:
            learned = self._model.expects(events, self.behavior.asked if asked is None else asked)
        return signals.of_shopper(rows, taste, learned, self.behavior, self._shards.vectors)

    def _for_shopper(self, request: SearchRequest, scored: Scored, coverage: Coverage) -> tuple[Scored, Coverage]:
        """With what the shopper's taste adds to the best of M(q), filtered or not. What fails is left out, and said."""
        if not self.weights.signals or request.mode != "hybrid" or not coverage.ordered_by:  # nothing was asked
            return scored, coverage
        coverage = replace(coverage, rerank="ok")
        weights = {name: w for name, w in self.weights.signals.items() if w and name in signals.OF_SHOPPER}
        if not weights or request.sort != "relevance":
            return scored, coverage
        events, asked, now_us = self._history(request.user_id, request.recent, request.forgotten_us)
        if not len(events.rows):
            return scored, coverage
        best = top_k(scoring.total(scored.parts), PERSONAL)
        rows = scored.candidates.rows
        try:
            told = self.shopper_signals(events, now_us, rows[best], weights, asked)
            found = signals.weigh(told, weights)
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
        def words() -> str:
            text = " ".join(str(v) for v in (record["title"], record["brand"], record["description"]) if v)
            text += " " + " ".join(v for v in [*(record["category"] or []), *record["attributes"].values()] if v)
            return "says " + ", ".join(f"'{word}'" for word in self._shards.analyzer.shared(query, text))

        alone = "image" if coverage.image == "ok" and coverage.dense != "ok" else "dense"
        close = "close to your words and photo together" if coverage.image == "ok" else "close in meaning"
        cosine = f"(cosine {scored.candidates.dense[place]:.2f})"
        return reasons(
            {alone if part == "dense" else part: share for part, share in scored.parts.items()},
            place,
            {
                "lexical": words,
                "dense": lambda: f"{close} {cosine}",
                "image": lambda: f"looks like your photo {cosine}",
                "popular": lambda: "often bought lately",
                "price": lambda: "at a price that is often chosen",
                "repeat": lambda: "you have it, and its buyers buy it again",
                "content": lambda: "like what you buy",
                "learned": lambda: "what shoppers who did as you did want",
            },
        )

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
        rows, parts = scoring.similar(
            plan.row, plan.near.vector, near, self.behavior, self._shards.vectors, plan.allowed
        )
        title = self.columns.records([plan.row])[0]["title"]

        def texts(_: int) -> dict[str, Callable[[], str]]:
            return {
                "content": lambda: f"like {title}",
                "together": lambda: f"bought together with {title}",
            }

        coverage = Coverage(dense="ok", behavior="ok")
        return self._ranked(started, rows, parts, request.k, texts if request.explain else None, coverage)

    def plan_recommend(self, request: RecommendRequest, *, popular: bool = False) -> RecommendPlan:
        """popular: plan as for a stranger. Raises InvalidRequest."""
        if popular:
            request = replace(request, user_id=None, recent_item_ids=(), recent=())
        last_us = request.recent[-1].ts_us if request.recent else 0
        viewed = [Recent(item_id, "view", last_us) for item_id in request.recent_item_ids]
        events, asked, now_us = self._history(request.user_id, [*request.recent, *viewed], request.forgotten_us)
        items = events.rows >= 0
        history, ages = events.rows[items], (now_us - events.ts_us[items]) / DAY_US
        allowed = policy.eligible(self.columns, self.columns.mask(request.filters))
        if self._model is not None and self._model.without_had and len(history):
            allowed = np.ones(self.columns.n, bool) if allowed is None else allowed.copy()
            allowed[history] = False
        taste = scoring.Taste.of(history, ages, self._shards.vectors)
        near = None if taste is None else Near(taste.vector, scoring.NEAREST, allowed)
        learned = None
        if self._model is not None and len(events.rows):
            learned = self._model.expects(events, asked)
        return RecommendPlan(history, taste, allowed, near, learned)

    def _history(
        self, user_id: str | None, recent: Sequence[Recent], forgotten_us: int
    ) -> tuple[Histories, np.ndarray, int]:
        """(a shopper's events, those that the index knows and then recent ones; vectors of what they searched for; the
        time from which ages count).

        Time stands still between the newest event of an index and its building, so that of an index built late what it
        knows is not old at once. Of recent events those that the index knows already are passed over, and searches
        where no model minds them.
        """
        events, newest_us = self.behavior.history(user_id or "").after(forgotten_us), self.behavior.now_us
        new = [one for one in recent if not 0 < one.offset <= self._events_offset]
        known = [
            (row, EVENT_TYPES.index(one.type), one)
            for one in new
            if (row := self._row_or_none(one)) >= 0 or (one.vector is not None and self._model is not None)
        ]
        if not known:
            return events, self.behavior.asked, newest_us
        rows = np.array([row for row, _, _ in known], np.int64)
        kinds = np.array([kind for _, kind, _ in known], np.int8)
        since = np.array([max(0, one.ts_us - self._made_us) for _, _, one in known])
        ts_us = newest_us + np.maximum.accumulate(since)
        # of all that the index has vectors for, those of this shopper alone
        before = events.compact()
        asked = [*self.behavior.asked[np.unique(events.queries[events.queries >= 0])]]
        texts, queries = list(before.texts), np.full(len(known), -1, np.int64)
        for place, (row, _, one) in enumerate(known):
            if row < 0:
                queries[place] = len(asked)
                asked.append(one.vector)
                texts.append(one.query or "")
        vectors = np.stack(asked) if asked else self.behavior.asked[:0]
        return before.and_then(rows, kinds, ts_us, queries, texts), vectors, int(ts_us[-1])

    def _row_or_none(self, one: Recent) -> int:
        row = None if one.item_id is None else self.columns.row(one.item_id)
        return -1 if row is None else row

    def recommend(
        self, request: RecommendRequest, plan: RecommendPlan, near: np.ndarray, coverage: Coverage | None = None
    ) -> Answer:
        """near: rows that were found for plan.near. coverage: of an answer that had to do without a part."""
        started = time.perf_counter()
        taste = plan.taste

        def cosine(rows: np.ndarray) -> np.ndarray:
            assert taste is not None
            return self._shards.vectors(rows) @ taste.vector

        rows, parts = scoring.recommend(taste, near, self.behavior, cosine, plan.allowed, plan.learned)

        def texts(row: int) -> dict[str, Callable[[], str]]:
            return {
                "learned": lambda: "what shoppers who did as you did want next",
                "repeat": lambda: f"{self.behavior.repeat[row]:.0%} of its buyers buy it again, and it is one of yours",
                "together": lambda: self._companion_text(row, plan.history),
                "content": lambda: "like what you buy",
                "popular": lambda: "often bought lately",
            }

        coverage = coverage or Coverage(dense="skipped" if taste is None else "ok", behavior="ok")
        return self._ranked(started, rows, parts, request.k, texts if request.explain else None, coverage)

    def _companion_text(self, row: int, history: np.ndarray) -> str:
        companion = scoring.companions(self.behavior, row, history)
        if companion is None:
            return "bought together with your items"
        return f"bought together with {self.columns.records([companion])[0]['title']}"

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
