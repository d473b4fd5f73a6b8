"""Bodies of requests: read whole, within limits of size, depth and memory, before anything parses them."""

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from rayrec.config import ServeConfig
from rayrec.errors import Overloaded, TooLarge, Unavailable

_WITH_IMAGE = "/v1/search"
_OF_MANY = ("/v1/events", "/v1/items")
_LARGE_MIB = 64  # of large bodies at a time in a replica, which parsing and decoding make three times as much
_UPLOAD_S = 30.0
_IMAGE = re.compile(rb'"image"\s*:\s*"')
# also one that does not end, or every quote in it would be tried as a beginning
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)


class Bodies:
    """Reads bodies. Those of a search may hold a picture beyond what others may, those of events and items many."""

    def __init__(self, config: ServeConfig):
        self._limit = config.max_body_bytes
        self._many = max(config.max_events_bytes, config.max_body_bytes)
        self._depth = config.max_depth
        self._image = 4 * -(-config.max_image_bytes // 3)  # in base64
        self._room = max(_LARGE_MIB << 20, self._limit + self._image, self._many)

    async def read(self, receive: Receive, headers: Headers, path: str, held: contextlib.ExitStack) -> bytes:
        """The whole body. held: gives back the memory that it takes, when the request is done.

        Raises TooLarge; Overloaded or Unavailable if too many large ones are on their way, or one is too slow.
        """
        own = self._many if path in _OF_MANY else self._limit
        limit = own + (self._image if path == _WITH_IMAGE else 0)
        told = headers.get("content-length", "0")
        size_told = int(told) if told.isdecimal() else 0
        if size_told > limit:
            raise self._too_large(path)
        chunks, size, more, until = [], 0, True, None
        while more:
            message = await (receive() if until is None else _before(until, receive))
            if message["type"] == "http.disconnect":
                break
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise self._too_large(path)
            if size > self._limit and until is None:
                held.enter_context(self._room_for(size_told or limit))
                until = time.monotonic() + _UPLOAD_S
            more = message.get("more_body", False)
        body = b"".join(chunks)
        rest = body if size <= own else without_image(body)
        if len(rest) > own:
            raise self._too_large(path)
        # brackets within strings count too: a body with so many of them has to be read more closely
        if rest.count(b"{") + rest.count(b"[") > self._depth and depth(rest) > self._depth:
            raise TooLarge(f"body: nested deeper than {self._depth}")
        return body

    def _too_large(self, path: str) -> TooLarge:
        beside = f", beside an image of up to {self._image} in base64" if path == _WITH_IMAGE else ""
        limit = self._many if path in _OF_MANY else self._limit
        return TooLarge(f"body: over {limit} bytes{beside}")

    @contextlib.contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        if size > self._room:
            raise Overloaded("too many large bodies are on their way; try again")
        self._room -= size
        try:
            yield
        finally:
            self._room += size


async def _before(until: float, receive: Receive) -> Message:
    try:
        return await asyncio.wait_for(receive(), until - time.monotonic())
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise Unavailable(f"the body did not come within {_UPLOAD_S:.0f} s") from error


def without_image(body: bytes) -> bytes:
    """JSON without the text of its `image`, as far as it may be base64: no quote in it is escaped."""
    found = _IMAGE.search(body)
    if found is None:
        return body
    end = body.find(b'"', found.end())
    if end < 0 or body[end - 1 : end] == b"\\":
        return body
    return body[: found.end()] + body[end:]


def call_it_json(scope: Scope) -> None:
    """Bodies are JSON, also where a client (curl -d, say) sends them under another name."""
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    scope["headers"] = [*others, (b"content-type", b"application/json")]


def depth(body: bytes) -> int:
    """How deep JSON nests."""
    bare = _TEXT.sub(b"", body)
    deepest = now = 0
    for bracket in re.findall(rb"[\[\]{}]", bare):
        now += 1 if bracket in b"[{" else -1
        deepest = max(deepest, now)
    return deepest


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands on a body which was read already, then what comes after it."""
    handed = False

    async def again() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
