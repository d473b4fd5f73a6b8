"""Bodies within their limits: those of a search may hold a picture, and nothing else beyond what others may."""

import asyncio
import contextlib
import json
import time

import pytest
from starlette.datastructures import Headers

from rayrec.config import ServeConfig
from rayrec.errors import Overloaded, TooLarge, Unavailable
from rayrec.serving import bodies
from rayrec.serving.bodies import Bodies, depth, without_image

SEARCH, OTHER = "/v1/search", "/v1/recommend"
IMAGE = 400_000  # in base64
CONFIG = ServeConfig(workspace="unused", max_image_bytes=300_000)


def read(body, path=SEARCH, reader=None, told=True, held=None, chunk=1 << 16):
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False

    async def receive():
        return messages.pop(0)

    headers = Headers({"content-length": str(len(body))} if told else {})
    with held or contextlib.ExitStack() as stack:
        return asyncio.run((reader or Bodies(CONFIG)).read(receive, headers, path, stack))


def with_image(size, **more):
    return json.dumps({**more, "image": "A" * size}).encode()


@pytest.mark.parametrize("told", [True, False])
def test_a_search_may_bring_a_picture_and_nothing_else_may(told):
    whole = with_image(IMAGE, query="pizza")
    assert read(whole, told=told) == whole
    for body, path in [
        (whole, OTHER),
        (with_image(IMAGE + 70_000), SEARCH),
        (json.dumps({"query": "a" * 70_000}).encode(), SEARCH),
        (with_image(300_000, query="a" * 70_000), SEARCH),
        (json.dumps({"image": 1, "images": "A" * 300_000}).encode(), SEARCH),
        (b'{"image": "' + b"A" * 100_000 + b'", "image": "' + b"A" * 100_000 + b'"}', SEARCH),
    ]:
        with pytest.raises(TooLarge, match="over 65536 bytes"):
            read(body, path, told=told)


@pytest.mark.parametrize(
    "body",
    [
        with_image(100_000)[:-1] + b', "filters": ' + b"[" * 30,
        with_image(100_000)[:-2] + b'\\"", "x": ' + b"[" * 30,  # a quote that is escaped does not end the picture
        b'{"filters": ' + b'{"a":' * 20 + b'1, "image": "' + b"A" * 100_000 + b'"' + b"}" * 21,
        b'{"query": "\\"image\\": \\"", "filters": ' + b"[" * 30 + b"]" * 30 + b', "image": "' + b"A" * 100_000 + b'"}',
    ],
)
def test_a_picture_hides_no_depth_behind_it(body):
    with pytest.raises(TooLarge):
        read(body)


def test_what_stands_beside_a_picture_is_what_is_measured():
    for spaces in ("", " ", "\n\t "):
        body = f'{{"query": "x", "image"{spaces}:{spaces}"AAAA", "page": 2}}'.encode()
        assert without_image(body) == body.replace(b"AAAA", b"")
    for same in (
        b"",
        b"{}",
        b'{"image": 3}',
        b'{"image": "A',
        b'{"image": "A\\"A"}',
        b'{"query": "\\"image\\": \\"A"}',
    ):
        assert without_image(same) == same


@pytest.mark.parametrize(
    "body", [b'"image"' * 1_000_000, b'"image"' + b" " * 8_000_000, b'"image":"' + b"A" * 8_000_000]
)
def test_looking_for_a_picture_takes_no_time_whatever_is_sent(body):
    began = time.perf_counter()
    without_image(body)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("text", ['\\"' * 30_000, "\\\n" * 30_000 + "\\", '"[' * 15_000, "\\" * 60_000])
def test_measuring_depth_takes_no_time_whatever_is_sent(text):
    began = time.perf_counter()
    depth(b"[" * 20 + b'"' + text.encode())
    assert time.perf_counter() - began < 1


def test_only_so_many_pictures_are_on_their_way_at_a_time(monkeypatch):
    monkeypatch.setattr(bodies, "_LARGE_MIB", 1)
    reader = Bodies(CONFIG)
    busy = contextlib.ExitStack()

    async def fill():
        for _ in range(2):
            body = with_image(IMAGE)
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive(messages=messages):
                return messages.pop(0)

            await reader.read(receive, Headers({}), SEARCH, busy)

    asyncio.run(fill())
    with pytest.raises(Overloaded):
        read(with_image(IMAGE), reader=reader)
    assert read(with_image(50_000), reader=reader)
    busy.close()
    assert read(with_image(IMAGE), reader=reader)


def test_a_picture_that_drips_gives_its_place_up(monkeypatch):
    monkeypatch.setattr(bodies, "_UPLOAD_S", 0.05)
    reader = Bodies(CONFIG)
    sent = []

    async def receive():
        if sent:
            await asyncio.sleep(60)
        sent.append(1)
        return {"type": "http.request", "body": with_image(100_000)[:90_000], "more_body": True}

    async def main():
        with contextlib.ExitStack() as held:
            await reader.read(receive, Headers({}), SEARCH, held)

    room = reader._room
    with pytest.raises(Unavailable, match="did not come"):
        asyncio.run(main())
    assert reader._room == room
