"""Changes of the catalog on their way in: checked, embedded, numbered and made durable, and only then acknowledged.

The log holds each item whole, as it is after a change, so that its newest entry says all there is to know of it. A
patch is merged here into the item as this replica knows it, and is made only if nobody was faster; else it is merged
anew.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from rayrec.config import ServeConfig
from rayrec.data.catalog import content_hash, item_text
from rayrec.errors import Overloaded, TooLarge, Unavailable
from rayrec.item_vectors import packed, vector_key
from rayrec.schema import ITEMS
from rayrec.serving.backends import Backend, by_a_version
from rayrec.serving.batching import Batcher
from rayrec.serving.models import ItemBody, first_fault
from rayrec.serving.telemetry import Telemetry
from rayrec.serving.versions import Loaded
from rayrec.store import CatalogLog, Wanted

_TOGETHER = 64  # requests whose changes are flushed to the disk at a time
_EMBEDDED = 8  # items: another request's come in between
_FASTER_S = 3.0  # others may be, before who patches is told to try again

Changes = tuple[list[Wanted], dict[str, bytes]]


class Catalog:
    """One replica's way to the log of changes. Lives in one event loop."""

    def __init__(
        self,
        config: ServeConfig,
        log: CatalogLog,
        backend: Backend,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.time,
    ):
        self._config, self._log, self._backend, self._telemetry, self._clock = config, log, backend, telemetry, clock
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="rayrec-catalog")
        self._commit = Batcher[Changes, list[int | None]](self._change, self._threads, max_size=_TOGETHER)
        self._waiting = 0

    def _change(self, calls: list[Changes]) -> list[list[int | None] | Exception]:
        self._telemetry.batch.labels("changes").observe(len(calls))
        vectors = {key: vector for _, each in calls for key, vector in each.items()}
        offsets = iter(self._log.change([wanted for each, _ in calls for wanted in each], vectors))
        return [[next(offsets) for _ in wanted] for wanted, _ in calls]

    async def put(self, bodies: Sequence[Any]) -> dict[str, Any]:
        """Upsert the good ones, say what is wrong with each other. Raises TooLarge, Overloaded, Unavailable."""
        now_us = self._now_us()
        good: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        for index, body in enumerate(bodies):
            try:
                good.append({"updated_us": now_us, **_given(ItemBody.model_validate(body))})
            except ValidationError as error:
                rejected.append({"index": index, "code": "invalid_item", "message": first_fault(error)})
        self._telemetry.changes.labels("rejected").inc(len(rejected))
        with self._room(len(good)):
            ids = [item["item_id"] for item in good]
            known = await by_a_version(self._backend, partial(self._contents, ids)) if good else {}
            contents = [content_hash(item_text(_full(item))).hex() for item in good]
            fresh = [i for i, item in enumerate(good) if known.get(item["item_id"]) != contents[i]]
            vectors = await self._embed({contents[i]: item_text(_full(good[i])) for i in fresh})
            wanted = [Wanted(item["item_id"], item, c, now_us) for item, c in zip(good, contents, strict=True)]
            offsets = await self._commit((wanted, vectors)) if good else []
        return self._told(offsets, rejected)

    async def patch(self, item_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Merge the given fields of an ItemPatch; null takes one away, attributes are merged by key.

        Raises NotFound, Overloaded, Unavailable if others changed the item all the time.
        """
        with self._room(1):
            deadline = time.monotonic() + _FASTER_S
            while time.monotonic() < deadline:
                seen = await self._in_thread(self._log.newest)
                before = await by_a_version(self._backend, partial(self._item, item_id, seen))
                now_us = self._now_us()
                item = _merged(before, {"updated_us": now_us, **given})
                text, content = item_text(_full(item)), content_hash(item_text(_full(item))).hex()
                vectors = {} if text == item_text(before) else await self._embed({content: text})
                offsets = await self._commit(([Wanted(item_id, item, content, now_us, seen)], vectors))
                if offsets[0] is not None:
                    return self._told(offsets, [])
                await asyncio.sleep(0.05 * random.random())  # else two that are equally fast keep each other out
        raise Unavailable("others change this item all the time; try again")

    async def _contents(self, item_ids: Sequence[str], version: Loaded[Any]) -> dict[str, str]:
        return await self._backend.contents(version, item_ids)

    async def _item(self, item_id: str, offset: int, version: Loaded[Any]) -> dict[str, Any]:
        return await self._backend.item(version, item_id, offset)

    async def delete(self, item_id: str) -> dict[str, Any]:
        """Delete, also what nobody knows: an older file that brings it does not bring it back. Raises Unavailable."""
        with self._room(1):
            return self._told(await self._commit(([Wanted(item_id, None, None, self._now_us())], {})), [])

    async def _embed(self, contents: Mapping[str, str]) -> dict[str, bytes]:
        """Vectors of contents, hash -> text, as the log keeps them."""
        return await by_a_version(self._backend, partial(self._embed_by, contents)) if contents else {}

    async def _embed_by(self, contents: Mapping[str, str], version: Loaded[Any]) -> dict[str, bytes]:
        space, _ = await self._backend.item_vectors(version, [])
        keys = {vector_key(space, content): content for content in contents}
        there = await self._in_thread(lambda: self._log.vectors(keys))
        lacking = [content for key, content in keys.items() if key not in there]
        made: dict[str, np.ndarray] = {}
        for first in range(0, len(lacking), _EMBEDDED):
            part = lacking[first : first + _EMBEDDED]
            _, vectors = await self._backend.item_vectors(version, [contents[content] for content in part])
            made.update(zip(part, vectors, strict=True))
        return {**there, **packed(space, made)}

    @contextlib.contextmanager
    def _room(self, wanted: int) -> Iterator[None]:
        """For changes that are not durable yet. Raises TooLarge, Overloaded."""
        most = self._config.max_pending_items
        if wanted > most:
            raise TooLarge(f"items: {wanted}, at most {most} are taken at a time")
        if self._waiting + wanted > most:
            self._telemetry.degraded.labels("catalog", "refused").inc()
            raise Overloaded("more changes than can be made durable in time; send them again")
        self._waiting += wanted
        try:
            yield
        finally:
            self._waiting -= wanted

    def _told(self, offsets: Sequence[int | None], rejected: list[dict[str, Any]]) -> dict[str, Any]:
        taken = [offset for offset in offsets if offset is not None]
        self._telemetry.changes.labels("accepted").inc(len(taken))
        return {"accepted": len(taken), "rejected": rejected, "offset": max(taken, default=None)}

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)


def _given(item: BaseModel) -> dict[str, Any]:
    return item.model_dump(exclude_none=True)


def _full(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item.get(name) for name in ITEMS.names}


def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """An item with the fields of a patch."""
    attributes = {**before["attributes"], **(given.get("attributes") or {})}
    if "attributes" in given and given["attributes"] is None:
        attributes = {}
    kept = {key: value for key, value in attributes.items() if value is not None}
    merged = {**before, **given, "attributes": kept}
    return {name: value for name, value in merged.items() if value is not None}
