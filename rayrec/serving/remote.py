"""Calls between replicas: what a scorer does for a gateway, and how it asks the retrievers.

Errors of ours travel as values, and a replica that died is asked again elsewhere.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np

from rayrec.answer import Answer, Coverage, Encoded
from rayrec.engine import NOTHING
from rayrec.errors import RayrecError, Unavailable, described
from rayrec.plans import Near
from rayrec.request import RecommendRequest, SearchRequest, SimilarRequest
from rayrec.retrieval.base import Found, Probe
from rayrec.retrieval.completions import Completion
from rayrec.retrieval.shards import best_rows, own_part
from rayrec.serving.parts import ScorerPart
from rayrec.serving.versions import Pair

log = logging.getLogger(__name__)

R = TypeVar("R")
_ATTEMPTS = 3


def discreet(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R | RayrecError]]:
    """A replica's method that hands errors back as values, for `retried` to raise.

    What it raised would be logged by Ray Serve with its message, which may hold a query or an id. Of an error that is
    not ours the kind and the place are logged.
    """

    @wraps(method)
    async def call(*args: Any) -> R | RayrecError:
        try:
            return await method(*args)
        except RayrecError as error:
            return error
        except Exception as error:  # whatever a runtime throws
            log.error("%s failed: %s", method.__qualname__, described(error))
            return Unavailable(f"a part of the service failed ({type(error).__name__})")

    return call


async def retried(call: Callable[[], Awaitable[R | RayrecError]]) -> R:
    """Await a call to another replica, again if that replica died under it. Raises our own errors, or Unavailable."""
    for attempt in range(_ATTEMPTS):
        try:
            found = await call()
            if isinstance(found, RayrecError):
                raise found
            return found
        except RayrecError:
            raise
        except Exception as error:  # Ray and gRPC raise many kinds for a replica that is gone
            if attempt == _ATTEMPTS - 1:
                raise Unavailable(f"a part of the service does not answer ({type(error).__name__})") from error
            await asyncio.sleep(0.05 * (attempt + 1))
    raise AssertionError("unreachable")


class RemoteRetrievers:
    """The shards as the scorer's replicas see them: one handle each."""

    def __init__(self, handles: Sequence[Any]):
        self._handles = handles

    async def find(self, pair: Pair, probe: Probe) -> list[Found]:
        return await asyncio.gather(*(retried(partial(handle.find.remote, pair, probe)) for handle in self._handles))

    async def nearest(self, pair: Pair, near: Near | None) -> np.ndarray:
        """Rows of the items nearest to near.vector, best first."""
        if near is None:
            return NOTHING

        def part(number: int) -> np.ndarray | None:
            mask = own_part(near.allowed, number, len(self._handles))
            return None if mask is None else np.packbits(mask)

        calls = (
            retried(partial(handle.nearest.remote, pair, near.vector, near.k, part(i)))
            for i, handle in enumerate(self._handles)
        )
        return best_rows(list(await asyncio.gather(*calls)), near.k)


class RemoteScorer:
    """What a scorer replica does for a gateway: plan, ask the retrievers, answer."""

    def __init__(self, part: ScorerPart, retrievers: RemoteRetrievers, thread: ThreadPoolExecutor | None = None):
        """thread: in which the part takes up changes, too."""
        self._part = part
        self._retrievers = retrievers
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="rayrec-score")

    @discreet
    async def search(self, pair: Pair, request: SearchRequest, encoded: Encoded) -> Answer:
        await self._part.reach(pair, request.min_offset)
        probe = await self._run(self._part.probe, pair, request, encoded)
        found = [] if probe is None else await self._retrievers.find(pair, probe)
        return await self._run(self._part.answer, pair, request, probe, found, encoded)

    @discreet
    async def similar(self, pair: Pair, request: SimilarRequest) -> Answer:
        scorer = self._part.scorer(pair)
        plan = await self._run(scorer.plan_similar, request)
        near = await self._retrievers.nearest(pair, plan.near)
        return await self._run(scorer.similar, request, plan, near)

    @discreet
    async def recommend(self, pair: Pair, request: RecommendRequest, coverage: Coverage | None) -> Answer:
        scorer = self._part.scorer(pair)
        plan = await self._run(partial(scorer.plan_recommend, request, popular=coverage is not None))
        near = await self._retrievers.nearest(pair, plan.near)
        return await self._run(scorer.recommend, request, plan, near, coverage)

    @discreet
    async def item(self, pair: Pair, item_id: str, min_offset: int) -> dict[str, Any]:
        await self._part.reach(pair, min_offset)
        return await self._run(self._part.scorer(pair).item, item_id)

    @discreet
    async def suggest(self, pair: Pair, prefix: str, k: int) -> list[Completion]:
        return await self._run(self._part.scorer(pair).suggest, prefix, k)

    @discreet
    async def contents(self, pair: Pair, item_ids: Sequence[str]) -> dict[str, str]:
        return await self._run(self._part.scorer(pair).contents, item_ids)

    async def _run(self, work: Callable[..., R], *args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
