"""Where answers come from: the whole engine in this process, or parts in processes of their own.

Both say the same things and give equal answers. Calls are async; what computes runs in threads, so that the
replica's event loop stays free to refuse and to report.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from rayrec import encoder_exports
from rayrec.answer import Answer, Coverage, Encoded
from rayrec.config import ServeConfig
from rayrec.encoders.image import Preprocess
from rayrec.engine import Engine
from rayrec.errors import Unavailable, VersionNotLoaded
from rayrec.photo import no_pictures
from rayrec.request import RecommendRequest, SearchRequest, SimilarRequest
from rayrec.retrieval.completions import Completion
from rayrec.serving.batching import Batcher, by_key
from rayrec.serving.parts import engine_changes, follow, follow_with_changes, load_engine
from rayrec.serving.remote import retried
from rayrec.serving.tail import Between, Tail, no_such_change
from rayrec.serving.telemetry import Telemetry
from rayrec.serving.versions import Live, Loaded, Pair, T
from rayrec.store import CatalogLog
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

R = TypeVar("R")
_WAIT_FOR_VERSION_S = 3.0
# one takes 10 ms of a core, alone or in a batch of 8 (efficientnet-lite0; a query 4 ms): more would hold queries up
PICTURES_TOGETHER = 4


class Backend(Protocol):
    """version: one of those that `versions` gave; all calls of one request name the same one, for vectors of one
    encoder mean nothing to an index of another. A part that has not loaded it raises VersionNotLoaded.
    """

    async def versions(self, index: str | None) -> list[Loaded[Any]]:
        """What may answer, best first: the present versions, or those of the index that a cursor pins, and others
        that will do while not every part has those yet.
        """
        ...

    def preprocess(self, version: Loaded[Any]) -> Preprocess | None:
        """How a version's image encoder reads pictures; None if its index holds none."""
        ...

    async def vector(self, version: Loaded[Any], query: str) -> np.ndarray: ...
    async def image_vector(self, version: Loaded[Any], picture: np.ndarray) -> np.ndarray: ...
    async def search(self, version: Loaded[Any], request: SearchRequest, encoded: Encoded) -> Answer: ...
    async def similar(self, version: Loaded[Any], request: SimilarRequest) -> Answer: ...
    async def recommend(self, version: Loaded[Any], request: RecommendRequest, coverage: Coverage | None) -> Answer: ...
    async def item(self, version: Loaded[Any], item_id: str, min_offset: int = 0) -> dict[str, Any]: ...
    async def suggest(self, version: Loaded[Any], prefix: str, k: int) -> list[Completion]: ...

    # -- for changes of the catalog ---------------------------------------------------------------

    async def contents(self, version: Loaded[Any], item_ids: Sequence[str]) -> dict[str, str]:
        """Hashes of what items say, of those that are there."""
        ...

    async def item_vectors(self, version: Loaded[Any], texts: Sequence[str]) -> tuple[str, np.ndarray]:
        """(embedding space, float32 (B, D)) of what items say."""
        ...


async def choose(live: Live[T], index: str | None) -> Loaded[T]:
    """What is loaded now, or of the index that a cursor pins, for which a replica behind the others waits."""
    deadline = time.monotonic() + _WAIT_FOR_VERSION_S
    while index is not None:
        pinned = live.of_index(index)
        if pinned is not None:
            return pinned
        # names grow with time: one older than what answers will not come
        if index < live.current.pair.index or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)
    return live.current


async def by_a_version(backend: Backend, ask: Callable[[Loaded[Any]], Awaitable[R]], pinned: str | None = None) -> R:
    """What `ask` answers by the best version that every part has loaded: during a swap not all have the newest."""
    versions = await backend.versions(pinned)
    for version in versions:
        try:
            return await ask(version)
        except VersionNotLoaded:
            continue
    raise Unavailable(f"no version is loaded by every part yet; {versions[0].pair.index} is on its way")


class FusedBackend:
    """The whole engine here, in one thread beside the event loop: a replica is one core's worth of work, which more
    threads only hand about (benchmarks/LOG.md).

    Requests hold the engine they began with, so a swap takes nothing from under them.
    """

    def __init__(self, config: ServeConfig, telemetry: Telemetry, catalog: CatalogLog | None = None):
        """catalog: whose changes are taken up; None: the index stays as it was built."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayrec-engine")
        # items are embedded beside the answers, not between them
        self._items = ThreadPoolExecutor(1, thread_name_prefix="rayrec-items")
        load = load_engine(config)
        self._live: Live[Engine]
        self.tail: Tail | None = None
        if catalog is None:
            self._live = follow(config, "gateway", telemetry, load)
        else:
            self._live, self.tail = follow_with_changes(
                config, "gateway", telemetry, load, engine_changes, catalog, between_answers(self._thread)
            )

        def encode(calls: list[tuple[Engine, str]]) -> list[np.ndarray | Exception]:
            telemetry.batch.labels("encode").observe(len(calls))
            return by_key(calls, lambda engine, queries: list(engine.encoder.encode(queries, "query")))

        def encode_images(calls: list[tuple[Engine, np.ndarray]]) -> list[np.ndarray | Exception]:
            telemetry.batch.labels("encode_images").observe(len(calls))
            return by_key(calls, _encode_pictures)

        self._encode = Batcher[tuple[Engine, str], np.ndarray](encode, self._thread, max_size=config.max_batch)
        self._encode_images = Batcher[tuple[Engine, np.ndarray], np.ndarray](
            encode_images, self._thread, max_size=min(config.max_batch, PICTURES_TOGETHER)
        )

    async def versions(self, index: str | None) -> list[Loaded[Engine]]:
        return [await choose(self._live, index)]

    def preprocess(self, version: Loaded[Engine]) -> Preprocess | None:
        encoder = version.value.image_encoder
        return None if encoder is None else encoder.preprocess

    async def vector(self, version: Loaded[Engine], query: str) -> np.ndarray:
        return await self._encode((version.value, query))

    async def image_vector(self, version: Loaded[Engine], picture: np.ndarray) -> np.ndarray:
        return await self._encode_images((version.value, picture))

    async def search(self, version: Loaded[Engine], request: SearchRequest, encoded: Encoded) -> Answer:
        await self._reach(version, request.min_offset)
        return await self._run(self._answer, version.value, request, encoded)

    def _answer(self, engine: Engine, request: SearchRequest, encoded: Encoded) -> Answer:
        offset = request.as_of
        if self.tail is None or offset is None or not (following := self.tail.of(engine)).live.since(offset):
            return engine.answer(request, encoded)
        with engine.candidates_aside(), following.as_of(offset):
            return engine.answer(request, encoded)

    async def similar(self, version: Loaded[Engine], request: SimilarRequest) -> Answer:
        return await self._run(version.value.answer_similar, request)

    async def recommend(self, version: Loaded[Engine], request: RecommendRequest, coverage: Coverage | None) -> Answer:
        return await self._run(version.value.answer_recommend, request, coverage)

    async def item(self, version: Loaded[Engine], item_id: str, min_offset: int = 0) -> dict[str, Any]:
        await self._reach(version, min_offset)
        return await self._run(version.value.item, item_id)

    async def suggest(self, version: Loaded[Engine], prefix: str, k: int) -> list[Completion]:
        return await self._run(version.value.suggest, prefix, k)

    async def contents(self, version: Loaded[Engine], item_ids: Sequence[str]) -> dict[str, str]:
        return await self._run(version.value.scorer.contents, item_ids)

    async def item_vectors(self, version: Loaded[Engine], texts: Sequence[str]) -> tuple[str, np.ndarray]:
        assert self.tail is not None, "changes are taken where they are followed"
        vectors = self.tail.of(version.value).vectors
        if not texts:
            return vectors.space, np.empty((0, 0), np.float32)
        numbered = {str(place): text for place, text in enumerate(texts)}
        made = await asyncio.get_running_loop().run_in_executor(self._items, vectors.made, numbered)
        return vectors.space, np.stack(list(made.values()))

    async def _reach(self, version: Loaded[Engine], offset: int) -> None:
        if not offset:
            return
        if self.tail is not None:
            await self.tail.reach(version.value, offset)
        elif offset > version.value.versions["log_offset"]:
            raise no_such_change(offset)

    async def _run(self, work: Callable[..., R], *args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


def _encode_pictures(engine: Engine, pictures: list[np.ndarray]) -> Sequence[np.ndarray]:
    if engine.image_encoder is None:
        raise no_pictures()
    return list(engine.image_encoder.encode(pictures))


class SplitBackend:
    """Handles to the encoder and the scorer; the scorer asks the retrievers itself.

    encoder, scorer: objects whose `method.remote(*args)` is awaited, as Ray Serve's handles are. Every call only
    reads, so one whose replica died is asked again.
    """

    def __init__(self, config: ServeConfig, telemetry: Telemetry, encoder: Any, scorer: Any):
        self._live: Live[Preprocess | None] = follow(config, "gateway", telemetry, _load_preprocess)
        self._encoder = encoder
        self._scorer = scorer

    async def versions(self, index: str | None) -> list[Loaded[Preprocess | None]]:
        first = await choose(self._live, index)
        others = (self._live.current, self._live.previous)
        return [first, *(each for each in others if each is not None and each.pair != first.pair)]

    def preprocess(self, version: Loaded[Preprocess | None]) -> Preprocess | None:
        return version.value

    async def vector(self, version: Loaded[Any], query: str) -> np.ndarray:
        return await retried(partial(self._encoder.encode.remote, version.pair, query))

    async def image_vector(self, version: Loaded[Any], picture: np.ndarray) -> np.ndarray:
        return await retried(partial(self._encoder.encode_image.remote, version.pair, picture))

    async def search(self, version: Loaded[Any], request: SearchRequest, encoded: Encoded) -> Answer:
        return await retried(partial(self._scorer.search.remote, version.pair, request, encoded))

    async def similar(self, version: Loaded[Any], request: SimilarRequest) -> Answer:
        return await retried(partial(self._scorer.similar.remote, version.pair, request))

    async def recommend(self, version: Loaded[Any], request: RecommendRequest, coverage: Coverage | None) -> Answer:
        return await retried(partial(self._scorer.recommend.remote, version.pair, request, coverage))

    async def item(self, version: Loaded[Any], item_id: str, min_offset: int = 0) -> dict[str, Any]:
        return await retried(partial(self._scorer.item.remote, version.pair, item_id, min_offset))

    async def suggest(self, version: Loaded[Any], prefix: str, k: int) -> list[Completion]:
        return await retried(partial(self._scorer.suggest.remote, version.pair, prefix, k))

    async def contents(self, version: Loaded[Any], item_ids: Sequence[str]) -> dict[str, str]:
        return await retried(partial(self._scorer.contents.remote, version.pair, item_ids))

    async def item_vectors(self, version: Loaded[Any], texts: Sequence[str]) -> tuple[str, np.ndarray]:
        return await retried(partial(self._encoder.encode_items.remote, version.pair, texts))


def _load_preprocess(ws: Workspace, pair: Pair, before: Preprocess | None) -> Preprocess | None:
    return encoder_exports.image_preprocess(ws, ws.manifest("indexes", pair.index)["encoder"])


def between_answers(thread: ThreadPoolExecutor) -> Between:
    """Work of changes, where all answers come from one thread."""
    return lambda work: thread.submit(work).result()
