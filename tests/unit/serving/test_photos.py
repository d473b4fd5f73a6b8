"""Search by photo over HTTP: what is taken, what is refused, and what load and failures cost. Red looks like pizza."""

import asyncio
import base64
import json
import logging
import threading

import numpy as np
import pytest

from rayrec.config import ServeConfig
from rayrec.errors import InvalidRequest, Overloaded, Unavailable
from rayrec.photo import Photo
from rayrec.request import SearchRequest
from rayrec.serving import models
from rayrec.serving.backends import FusedBackend
from rayrec.serving.gateway import Gateway
from rayrec.serving.photos import from_text
from rayrec.serving.telemetry import Telemetry
from tests.fakes import make_photo

RED, GREEN = make_photo("red"), make_photo("green", form="JPEG")


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def shop(make_app, ws_with_pictures):
    return make_app(of=ws_with_pictures)


# -- what is taken and what is refused ------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}", "data:application/octet-stream;base64,{}", " {}\n"])
def test_base64_is_read_bare_and_as_a_url(form):
    assert from_text(form.format(text(RED))).content == RED


@pytest.mark.parametrize(
    "sent", ["x", "data:image/png,abcd", "http://a/b.png,c", "AAA", "AAAA,AAAA", "é", "AA-_", "data:;base64,", "\ud800"]
)
def test_what_is_no_base64_is_refused(sent):
    with pytest.raises(InvalidRequest) as refused:
        from_text(sent)
    assert (refused.value.code, refused.value.field) == ("invalid_image", "image")


def test_a_search_by_photo_is_the_engines_own(shop, ws_with_pictures):
    from rayrec import Engine

    engine = Engine.open(ws_with_pictures)
    for asked in ({}, {"query": "acme", "filters": {"available": True}, "facets": ["brand"], "explain": True}):
        found = shop.call("POST", "/v1/search", {**asked, "image": text(RED), "page_size": 5})
        models.AnswerModel.model_validate(found.json, strict=True)
        expected = engine.search(image=RED, page_size=5, **asked).to_dict()
        for key in ("hits", "total", "facets", "cursor", "coverage"):
            assert found.json[key] == json.loads(json.dumps(expected[key])), key


def test_pages_follow_with_the_photo_and_not_without(shop):
    asked = {"image": text(RED), "page_size": 4}
    first = shop.call("POST", "/v1/search", asked).json
    second = shop.call("POST", "/v1/search", {**asked, "cursor": first["cursor"]}).json
    assert second["page"] == 2
    assert not {h["item_id"] for h in first["hits"]} & {h["item_id"] for h in second["hits"]}
    for other in ({"image": text(GREEN)}, {"image": None}):
        refused = shop.call("POST", "/v1/search", {**asked, **other, "cursor": first["cursor"]})
        assert (refused.status, refused.error["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("x", "not base64"),
        ("", "at least 1 character"),
        (3, "valid string"),
        (text(b"GIF89a"), "cut short"),
        (text(b"%PDF-1.7"), "expected JPEG, PNG"),
        (text(RED[:60]), "cut short"),
        (text(make_photo("red", (200, 101))), "more than 20,000"),
    ],
)
def test_an_image_that_is_none_is_told_by_field(make_app, ws_with_pictures, caplog, image, said):
    caplog.set_level(logging.DEBUG, "rayrec")
    answer = make_app(of=ws_with_pictures, max_image_pixels=20_000).call("POST", "/v1/search", {"image": image})
    assert (answer.status, answer.error["code"], answer.error["field"]) == (422, "invalid_image", "image")
    assert said in answer.error["message"]
    assert caplog.text == ""


def test_a_picture_over_the_limit_of_bytes_is_refused(make_app, ws_with_pictures):
    app = make_app(of=ws_with_pictures, max_image_bytes=100_000)
    noise = np.random.default_rng(0).integers(0, 256, 150_000, np.uint8).tobytes()
    for size, status, code in [
        (100_000, 422, "invalid_image"),
        (100_090, 422, "invalid_image"),
        (150_000, 413, "too_large"),
    ]:
        answer = app.call("POST", "/v1/search", {"image": text(noise[:size])})
        assert (answer.status, answer.error["code"]) == (status, code)
    assert (
        "more than 100,000 bytes"
        in app.call("POST", "/v1/search", {"image": text(RED + noise[:100_000])}).error["message"]
    )
    assert app.call("POST", "/v1/recommend", {"image": text(noise[:100_000])}).status == 413


def test_an_index_without_pictures_takes_no_photo_and_its_page_offers_none(app, shop):
    for query in ("", "acme"):
        refused = app.call("POST", "/v1/search", {"query": query, "image": text(RED)})
        assert (refused.status, refused.error["code"], refused.error["field"]) == (400, "no_pictures", "image")
        assert "rayrec fit images" in refused.error["hint"]
    assert [a.call("GET", "/v1/page").json["photo_search"] for a in (app, shop)] == [False, True]


def test_the_image_is_described(app):
    described = app.call("GET", "/openapi.json", scope=None).json
    image = described["components"]["schemas"]["SearchBody"]["properties"]["image"]
    assert image["contentEncoding"] == "base64"
    assert "6 MiB" in image["description"]


def test_metrics_count_photos(shop):
    for _ in range(2):
        shop.call("POST", "/v1/search", {"image": text(RED)})
    told = shop.call("GET", "/metrics", scope=None).body.decode()
    assert 'rayrec_coverage_total{part="image",route="search",state="ok"} 2.0' in told
    assert 'rayrec_batch_size_count{stage="encode_images"} 1.0' in told
    assert 'rayrec_cache_total{cache="vector",result="hit"} 1.0' in told


# -- load and failures ----------------------------------------------------------------------------


class Held(FusedBackend):
    """The real backend, whose searches wait until they are let go; its image encoder does what a test says."""

    def __init__(self, config, telemetry):
        super().__init__(config, telemetry)
        self.free = asyncio.Event()
        self.seen = 0
        self.error = None
        self.delay_s = 0.0

    async def image_vector(self, version, picture):
        self.seen += 1
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return await super().image_vector(version, picture)

    async def search(self, *args):
        await self.free.wait()
        return await super().search(*args)


def run(ws, scenario, **settings):
    async def main():
        config = ServeConfig(workspace=ws.uri, **settings)
        telemetry = Telemetry()
        backend = Held(config, telemetry)
        return await scenario(Gateway(config, backend, telemetry, "r1"), backend)

    return asyncio.run(main())


def photo(shade: int) -> Photo:
    return Photo.of(np.array([[[255, shade, 0]]], np.uint8))


def _states(answer):
    coverage = answer["coverage"]
    return coverage["lexical"], coverage["dense"], coverage["image"], coverage["degraded"]


def test_load_steps_down_for_photos_too(ws_with_pictures):
    async def scenario(gateway, backend):
        asked = [SearchRequest("acme" if n % 2 else "", image=photo(n)) for n in range(8)]
        searches = [asyncio.create_task(gateway.search(request)) for request in asked]
        await asyncio.sleep(0.2)
        with pytest.raises(Overloaded):
            await gateway.search(SearchRequest(image=photo(0)))
        backend.free.set()
        return await asyncio.gather(*searches), backend.seen, await gateway.search(SearchRequest())

    answers, seen, everything = run(ws_with_pictures, scenario, max_in_flight=8)
    assert seen == 3
    full = [("skipped", "skipped", "ok", False), ("ok", "ok", "ok", False), ("skipped", "skipped", "ok", False)]
    less = [("ok", "skipped", "skipped", True), *[("skipped", "skipped", "skipped", True)] * 4]
    assert [_states(answer) for answer in answers] == full + less
    whys = [answer["coverage"]["why"] for answer in answers[3:]]
    assert whys == ["busy: answered by words alone", *["busy: answered with what is popular"] * 4]
    for answer in answers[4:]:
        assert [h["item_id"] for h in answer["hits"]] == [h["item_id"] for h in everything["hits"]]


def test_a_vector_that_is_kept_answers_under_load(ws_with_pictures):
    async def scenario(gateway, backend):
        backend.free.set()
        await gateway.search(SearchRequest(image=photo(0)))
        backend.free.clear()
        asked = [SearchRequest(image=photo(n)) for n in (1, 0)]
        searches = [asyncio.create_task(gateway.search(request)) for request in asked]
        await asyncio.sleep(0.1)
        backend.free.set()
        return (await asyncio.gather(*searches))[1], backend.seen

    answer, seen = run(ws_with_pictures, scenario, max_in_flight=4)
    assert _states(answer) == ("skipped", "skipped", "ok", False)
    assert seen == 2


@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError("pixels of a face"), "RuntimeError"), (Unavailable("the encoder is starting"), "starting")],
)
def test_what_is_left_answers_while_the_image_encoder_fails(ws_with_pictures, caplog, error, why):
    caplog.set_level(logging.DEBUG)

    async def scenario(gateway, backend):
        backend.free.set()
        backend.error = error
        both = await gateway.search(SearchRequest("acme", image=photo(0)))
        alone = await gateway.search(SearchRequest(image=photo(0)))
        backend.error = None
        return both, alone, await gateway.search(SearchRequest(image=photo(0)))

    both, alone, healed = run(ws_with_pictures, scenario)
    assert _states(both) == ("ok", "ok", "failed", True)
    assert _states(alone) == ("skipped", "skipped", "failed", True)
    assert why in both["coverage"]["why"]
    assert alone["coverage"]["why"].endswith(": answered with what is popular")
    assert _states(healed) == ("skipped", "skipped", "ok", False)
    assert "face" not in caplog.text


def test_an_image_encoder_over_its_budget_costs_the_photo_not_the_answer(ws_with_pictures):
    async def scenario(gateway, backend):
        backend.free.set()
        backend.delay_s = 30
        return await gateway.search(SearchRequest("acme", image=photo(0)))

    answer = run(ws_with_pictures, scenario, encode_budget_ms=100)
    assert _states(answer) == ("ok", "ok", "failed", True)
    assert answer["coverage"]["why"] == "the image encoder took longer than 100 ms"


def test_photos_are_decoded_beside_the_event_loop_one_at_a_time(ws_with_pictures, monkeypatch):
    threads, at_once, most = set(), [0], [0]
    picture = Photo.picture

    def watched(self, *args):
        threads.add(threading.current_thread())
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        found = picture(self, *args)
        at_once[0] -= 1
        return found

    monkeypatch.setattr(Photo, "picture", watched)

    async def scenario(gateway, backend):
        backend.free.set()
        await asyncio.gather(*(gateway.search(SearchRequest(image=photo(n))) for n in range(12)))
        samples = gateway.telemetry.snapshot()["rayrec_batch_size"][2]
        return samples[("rayrec_batch_size_count", (("stage", "encode_images"),))]

    batches = run(ws_with_pictures, scenario)
    assert batches <= 12
    assert len(threads) == most[0] == 1
    assert threading.main_thread() not in threads


def test_nothing_of_a_photos_content_is_kept(ws_with_pictures):
    async def scenario(gateway, backend):
        backend.free.set()
        await gateway.search(SearchRequest(image=Photo.of(RED)))
        await gateway.search(SearchRequest(Photo.of(RED).digest))  # a query that reads like a photo's name
        return list(gateway._vectors)

    assert [key[1:] for key in run(ws_with_pictures, scenario)] == [
        ("photo", Photo.of(RED).digest),
        (Photo.of(RED).digest,),
    ]
