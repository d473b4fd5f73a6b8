"""The request path of the service: admit, encode within a budget, answer within a deadline, say what was left out.

A plain class: with a backend that a test makes it needs neither Ray nor HTTP.

Under load it steps down rather than queue: full -> words alone -> what is popular -> 429. Each step costs less than
the one before, and the answer's `coverage` names it. (Weighing signals, under a millisecond, is not a step of its own.)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from cachetools import LRUCache

from rayrec.answer import Answer, Coverage, Encoded, Lack, cursor_index, cursor_offset
from rayrec.barring import Bars
from rayrec.config import ServeConfig
from rayrec.engine import POPULAR
from rayrec.errors import NotFound, Overloaded, RayrecError, Unavailable, VersionNotLoaded
from rayrec.photo import Photo, no_pictures
from rayrec.request import Recent, RecommendRequest, SearchRequest, SimilarRequest
from rayrec.serving.backends import Backend, by_a_version
from rayrec.serving.catalog import Catalog
from rayrec.serving.events import Events
from rayrec.serving.photos import Decoder
from rayrec.serving.telemetry import Telemetry
from rayrec.serving.versions import Loaded
from rayrec.store.base import shopper

log = logging.getLogger(__name__)

R = TypeVar("R")

_WORDS_FROM, _POPULAR_FROM = 0.5, 0.75  # of max_in_flight
_SEARCHES_MINDED = 3  # of a shopper's newest events; a query that nobody has asked lately takes 10 ms
_BUSY_WORDS = "busy: answered by words alone"
_BUSY_POPULAR = f"busy: {POPULAR}"


class Gateway:
    """One replica's way from a request to an answer. Not thread-safe: it lives in one event loop."""

    def __init__(
        self,
        config: ServeConfig,
        backend: Backend,
        telemetry: Telemetry,
        replica: str,
        events: Events | None = None,
        catalog: Catalog | None = None,
        bars: Bars | None = None,
        forget: Callable[[str], dict[str, Any]] | None = None,
    ):
        """events, catalog: None of a service without a store, whose shoppers and items are those of the index alone.

        bars: of the workspace, kept fresh by the replica; what counts where there is no store to ask. forget: what
        removes a user and gives a receipt.
        """
        self._bars = bars
        self._forget = forget
        self.config = config
        self.events = events
        self.catalog = catalog
        self.backend = backend
        self.telemetry = telemetry
        self.replica = replica
        self._decoder = Decoder(config)
        self._in_flight = 0
        self._vectors: LRUCache = LRUCache(config.cached_vectors)

    async def search(self, request: SearchRequest, session_id: str | None = None) -> dict[str, Any]:
        """session_id: of who asks, as far as no user is known. Raises InvalidRequest, Overloaded, Unavailable."""
        started = time.perf_counter()
        with self._admitted() as load:
            recent, forgotten_us, lack = await self._recent(request.user_id, session_id)
            request = replace(request, recent=recent, forgotten_us=forgotten_us)
            pinned = None
            if request.cursor is not None:
                pinned, offset = cursor_index(request.cursor), cursor_offset(request.cursor)
                request = replace(request, min_offset=max(request.min_offset, offset), as_of=offset)
            answer = await by_a_version(self.backend, lambda version: self._search(version, request, load), pinned)
        return self._finished("search", answer, started, lack)

    async def _search(self, version: Loaded[Any], request: SearchRequest, load: float) -> Answer:
        request = replace(request, recent=await self._with_vectors(version, request.recent, load))
        if (request.query or request.photo) and load >= _POPULAR_FROM:
            return await self._popular(version, request)
        query = self._query_vector(version, request, load)
        if request.photo is None:
            encoded = Encoded.of(await query, None)
        else:
            photo = self._photo_vector(version, request, request.photo, load)
            encoded = Encoded.of(*await asyncio.gather(query, photo))
        if encoded.why:
            self.telemetry.degraded.labels("search", "words" if request.query else "popular").inc()
        with self._stage("answer"):
            return await self.backend.search(version, request, encoded)

    async def _popular(self, version: Loaded[Any], request: SearchRequest) -> Answer:
        """What is popular under the request's filters, in one page. Raises Overloaded for any page but the first."""
        if request.cursor is not None or request.page > 1:
            raise Overloaded("too busy to page through a search; try again")
        self.telemetry.degraded.labels("search", "popular").inc()
        popular = replace(request, query="", image=None, sort="popular")
        answer = await self.backend.search(version, popular, Encoded())
        return replace(answer, cursor=None, coverage=Coverage(degraded=True, why=_BUSY_POPULAR))

    async def similar(self, request: SimilarRequest) -> dict[str, Any]:
        """Raises NotFound, InvalidRequest, Overloaded, Unavailable."""
        started = time.perf_counter()
        with self._admitted():
            answer = await by_a_version(self.backend, lambda version: self.backend.similar(version, request))
        return self._finished("similar", answer, started)

    async def recommend(self, request: RecommendRequest, session_id: str | None = None) -> dict[str, Any]:
        """session_id: of who asks, as far as no user is known. Raises InvalidRequest, Overloaded, Unavailable."""
        started = time.perf_counter()
        with self._admitted() as load:
            recent, forgotten_us, lack = await self._recent(request.user_id, session_id)
            request = replace(request, recent=recent, forgotten_us=forgotten_us)
            coverage = None
            if load >= _POPULAR_FROM:
                coverage = Coverage(behavior="ok", degraded=True, why=_BUSY_POPULAR)
                self.telemetry.degraded.labels("recommend", "popular").inc()

            async def ask(version: Loaded[Any]) -> Answer:
                minded = await self._with_vectors(version, request.recent, load)
                return await self.backend.recommend(version, replace(request, recent=minded), coverage)

            answer = await by_a_version(self.backend, ask)
        return self._finished("recommend", answer, started, lack)

    async def _recent(self, user_id: str | None, session_id: str | None) -> tuple[tuple[Recent, ...], int, str | None]:
        """(what a shopper did since the index was built, until when nothing of theirs may count, why it is not known).

        The store is asked for both, so that who was forgotten is so in the very next answer of every replica.
        """
        known_us = -1 if self._bars is None else self._bars.until(shopper(user_id, session_id))
        if self.events is None or (user_id is None and session_id is None):
            return (), known_us, None
        try:
            with self._stage("history"):
                recent, forgotten_us = await self.events.recent(user_id, session_id)
            return recent, max(known_us, forgotten_us), None
        except Unavailable:
            self.telemetry.degraded.labels("all", "history").inc()
            return (), known_us, "what the shopper did lately is not known: the store does not answer"

    async def forget(self, user_id: str) -> dict[str, Any]:
        """A receipt of what was removed. It goes on if the caller leaves. Raises Unavailable, NotFound."""
        if self._forget is None:
            raise NotFound("this service forgets nobody")
        return await asyncio.get_running_loop().run_in_executor(None, self._forget, user_id)

    async def _with_vectors(self, version: Loaded[Any], recent: Sequence[Recent], load: float) -> tuple[Recent, ...]:
        """With the vectors of the newest searches among them; of others, and of those that cannot be had, without."""
        if version.pair.model is None:  # nothing minds them
            return tuple(recent)
        searched = [place for place, one in enumerate(recent) if one.query][-_SEARCHES_MINDED:]
        found = list(recent)
        for place in searched:
            vector = await self._query_vector(version, SearchRequest(str(found[place].query)), load)
            if isinstance(vector, np.ndarray):
                found[place] = replace(found[place], vector=vector)
        return tuple(found)

    async def item(self, item_id: str) -> dict[str, Any]:
        """Raises NotFound, Overloaded, Unavailable."""
        with self._admitted():
            return {"item": await by_a_version(self.backend, lambda version: self.backend.item(version, item_id))}

    async def sees_photos(self) -> bool:
        """Whether what answers now can be searched by photo."""
        return self.backend.preprocess((await self.backend.versions(None))[0]) is not None

    async def suggest(self, prefix: str, k: int) -> dict[str, Any]:
        """Raises Overloaded, Unavailable."""
        started = time.perf_counter()
        with self._admitted():
            found = await by_a_version(self.backend, lambda version: self.backend.suggest(version, prefix, k))
        return {"suggestions": [{"text": each.text} for each in found], "took_ms": _elapsed_ms(started)}

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[float]:
        """The share of the capacity that is in use, this request included. Raises Overloaded beyond it."""
        if self._in_flight >= self.config.max_in_flight:
            self.telemetry.degraded.labels("all", "refused").inc()
            raise Overloaded("more requests than can be answered in time; try again")
        self._in_flight += 1
        self.telemetry.in_flight.set(self._in_flight)
        try:
            yield self._in_flight / self.config.max_in_flight
        finally:
            self._in_flight -= 1
            self.telemetry.in_flight.set(self._in_flight)

    async def _query_vector(
        self, version: Loaded[Any], request: SearchRequest, load: float
    ) -> np.ndarray | Lack | None:
        if not request.wants_vector:
            return None
        key = (version.pair, request.query)
        known = self._known(key, load, _BUSY_WORDS)
        if known is not None:
            return known
        return await self._try(key, "encoder", self.backend.vector(version, request.query))

    async def _photo_vector(
        self, version: Loaded[Any], request: SearchRequest, photo: Photo, load: float
    ) -> np.ndarray | Lack:
        """Raises InvalidRequest for a photo that cannot be read or searched with."""
        preprocess = self.backend.preprocess(version)
        if preprocess is None:
            raise no_pictures()
        key = (version.pair, "photo", photo.digest)
        known = self._known(key, load, _BUSY_WORDS if request.query else "busy")
        if known is not None:
            return known
        with self._stage("decode"):
            picture = await self._decoder.picture(photo, preprocess)
        return await self._try(key, "image encoder", self.backend.image_vector(version, picture))

    def _known(self, key: Hashable, load: float, busy: str) -> np.ndarray | Lack | None:
        """A vector that is kept, why none is made now, or None: make it."""
        known = self._vectors.get(key)
        if self.config.cached_vectors:
            self.telemetry.cache.labels("vector", "miss" if known is None else "hit").inc()
        if known is None and load >= _WORDS_FROM:
            return Lack("skipped", busy)
        return known

    async def _try(self, key: Hashable, name: str, vector: Awaitable[np.ndarray]) -> np.ndarray | Lack:
        """A vector within the budget, kept under `key`, or why there is none. Raises VersionNotLoaded."""
        try:
            with self._stage("encode"):
                found = await asyncio.wait_for(vector, self.config.encode_budget_ms / 1000)
        except (TimeoutError, asyncio.TimeoutError):
            return Lack("failed", f"the {name} took longer than {self.config.encode_budget_ms} ms")
        except VersionNotLoaded:
            raise
        except RayrecError as error:
            return Lack("failed", str(error))
        except Exception as error:  # whatever a runtime throws, what is left still answers, and the answer says so
            # never the message: it may hold the query
            log.error("the %s failed: %s", name, type(error).__name__)
            return Lack("failed", f"the {name} failed ({type(error).__name__})")
        if self.config.cached_vectors:
            self._vectors[key] = found
        return found

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.telemetry.stage.labels(name).observe(time.perf_counter() - started)

    def _finished(self, route: str, answer: Answer, started: float, lack: str | None = None) -> dict[str, Any]:
        """lack: why the shopper's newest events are not in it."""
        if lack is not None:
            why = lack if answer.coverage.why is None else f"{answer.coverage.why}; {lack}"
            answer = replace(answer, coverage=replace(answer.coverage, behavior="failed", degraded=True, why=why))
        values = answer.to_dict()
        for part in ("lexical", "dense", "image", "behavior"):
            self.telemetry.coverage.labels(route, part, values["coverage"][part]).inc()
        return {
            **values,
            "took_ms": _elapsed_ms(started),
            "versions": {**values["versions"], "replica": self.replica},
        }


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
