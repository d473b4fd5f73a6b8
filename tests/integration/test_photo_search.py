"""Search by photo through a real service, fused and split: an image tower of its own, pictures, jobs, HTTP."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayrec import Engine
from rayrec.workspace import Workspace
from tests.photo_shop import TITLES, photo_of
from tests.service import Service, Told, running

pytestmark = [pytest.mark.ray, pytest.mark.model]

PHOTO = photo_of("blue lamp", (900, 700), "PNG")
BARE = base64.b64encode(PHOTO).decode()


@pytest.fixture(scope="module", params=["fused", "split"])
def photo_service(
    photo_shop: Workspace, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("photos") / "serve.log"
    settings = {"topology": request.param, "max_image_pixels": 4_000_000}
    with running(photo_shop, log, settings, "--replicas", "1") as service:
        yield service


@pytest.fixture(scope="module")
def engine(photo_shop: Workspace) -> Engine:
    return Engine.open(photo_shop)


def post(service: Service, **asked: Any) -> Told:
    return service.ask("POST", "/v1/search", asked)


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["item_id"] for hit in answer["hits"]]


def test_a_photo_finds_its_item(photo_service: Service):
    for title in TITLES[::7]:
        photo = photo_of(title, (500, 640), "WEBP")
        answer = post(photo_service, image=base64.b64encode(photo).decode(), explain=True).json
        assert answer["hits"][0]["item"]["title"] == title
        assert [reason["part"] for reason in answer["hits"][0]["reasons"]] == ["image"]
        coverage = answer["coverage"]
        assert (coverage["lexical"], coverage["dense"], coverage["image"]) == ("skipped", "skipped", "ok")


def test_answers_are_the_engines_own_alone_and_with_words(photo_service: Service, engine: Engine):
    for asked in (
        {},
        {"query": "red scarf", "explain": True},
        {"query": "scarf", "mode": "dense", "filters": {"brand": ["red", "blue"]}},
    ):
        expected = engine.search(image=PHOTO, facets=["brand"], page_size=9, **asked).to_dict()
        for image in (BARE, f"data:image/png;base64,{BARE}"):
            found = post(photo_service, image=image, facets=["brand"], page_size=9, **asked).json
            assert ids(found) == ids(expected)
            assert (found["total"], found["facets"]) == (expected["total"], expected["facets"])
            assert found["coverage"] == expected["coverage"]
            for mine, theirs in zip(found["hits"], expected["hits"], strict=True):
                assert mine.get("reasons") == theirs.get("reasons")
    together = ids(post(photo_service, query="red lamp", image=BARE, mode="dense").json)
    assert {"blue-lamp", "red-lamp"} == set(together[:2])


def test_pages_follow_with_the_photo(photo_service: Service):
    seen, cursor = [], None
    while True:
        page = post(photo_service, query="lamp", image=BARE, page_size=4, cursor=cursor).json
        seen += ids(page)
        if page["cursor"] is None:
            break
        cursor = page["cursor"]
    assert len(seen) == len(set(seen)) == page["total"] > 4
    refused = post(photo_service, query="lamp", page_size=4, cursor=cursor)
    assert (refused.status, refused.json["error"]["code"]) == (400, "invalid_cursor")


def test_a_large_photo_passes_and_a_larger_one_does_not(photo_service: Service):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1_300, 1_500, 3), np.uint8))
    file = io.BytesIO()
    noise.save(file, "PNG", compress_level=0)
    assert 5 << 20 < len(file.getvalue()) < 6 << 20
    told = post(photo_service, image=base64.b64encode(file.getvalue()).decode(), page_size=1)
    assert (told.status, told.json["coverage"]["image"]) == (200, "ok")
    for content, status, code in [
        (file.getvalue() + bytes(1 << 20), 413, "too_large"),
        (photo_of("red mug", (2_001, 2_000), "PNG"), 422, "invalid_image"),
        (PHOTO[: len(PHOTO) // 2], 422, "invalid_image"),
    ]:
        told = post(photo_service, image=base64.b64encode(content).decode())
        assert (told.status, told.json["error"]["code"]) == (status, code)


def test_the_page_is_told_and_nothing_of_a_photo_is_logged(photo_service: Service):
    assert photo_service.ask("GET", "/v1/page").json["photo_search"]
    assert post(photo_service, image=BARE[:-40]).status == 422
    log = photo_service.log.read_text()
    assert BARE[:40] not in log
    assert "PNG" not in log


def test_an_index_without_pictures_says_so(service: Service):
    assert not service.ask("GET", "/v1/page").json["photo_search"]
    refused = post(service, query="milk", image=BARE)
    assert (refused.status, refused.json["error"]["code"]) == (400, "no_pictures")
