"""Search by photo: alone, with words, in pages, and when an encoder fails. A red picture looks like pizza."""

import logging

import numpy as np
import pytest

from rayrec.errors import IncompatibleArtifact, InvalidRequest
from tests.fakes import (
    BrokenEncoder,
    BrokenImageEncoder,
    FakeImageEncoder,
    build_engine,
    make_catalog,
    make_photo,
    make_shoppers,
)

RED, GREEN = make_photo("red"), make_photo("green")


@pytest.fixture(scope="module")
def items():
    return make_catalog()


@pytest.fixture(scope="module", params=[1, 3])
def engine(items, request, tmp_path_factory):
    events, _ = make_shoppers(items)
    return build_engine(
        tmp_path_factory.mktemp("e"), items, events, shards=request.param, image_encoder=FakeImageEncoder()
    )


def _ids(answer):
    return [hit.item_id for hit in answer.hits]


def _states(answer):
    coverage = answer.coverage
    return coverage.lexical, coverage.dense, coverage.image, coverage.degraded


def _refusal(call, *args, **kwargs):
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value.code, caught.value.field


def test_a_photo_finds_what_it_shows(engine):
    answer = engine.search(image=RED, page_size=1000)
    assert all("pizza" in hit.item["title"] for hit in answer.hits[:10])
    assert 0 < answer.total < 240
    assert _states(answer) == ("skipped", "skipped", "ok", False)
    word = engine.search("pizza", mode="dense", page_size=1000)
    assert [(h.item_id, h.score) for h in answer.hits] == [(h.item_id, h.score) for h in word.hits]


def test_pixels_are_taken_like_a_file(engine):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[..., 0] = 255
    assert _ids(engine.search(image=pixels)) == _ids(engine.search(image=RED))


def test_a_photo_and_words_are_searched_for_together(engine):
    both = engine.search("acme", image=RED, page_size=1000)
    assert _states(both) == ("ok", "ok", "ok", False)
    assert all(hit.item["title"].startswith("Acme") for hit in both.hits[:10])
    together = engine.search("acme", image=RED, mode="dense")
    assert all(hit.item["title"].startswith("Acme") and "pizza" in hit.item["title"] for hit in together.hits[:5])
    assert set(_ids(engine.search("acme", mode="lexical", page_size=1000))) <= set(_ids(both))
    vectors = [engine.encoder.encode(["acme"])[0], engine.image_encoder.encode([np.array([[[9, 0, 0]]], np.uint8)])[0]]
    wanted = sum(vectors) / np.linalg.norm(sum(vectors))
    dense = engine.search("acme", image=RED, mode="dense", explain=True, k=1).hits[0]
    cosine = float(engine.shards.vectors(np.array([engine.columns.rows[dense.item_id]]))[0] @ wanted)
    text = f"close to your words and photo together (cosine {cosine:.2f})"
    assert dense.reasons == [{"part": "dense", "weight": 1.0, "text": text}]


def test_a_hit_says_that_it_looks_like_the_photo(engine):
    hit = engine.search(image=RED, explain=True).hits[0]
    assert [reason["part"] for reason in hit.reasons] == ["image"]
    assert hit.reasons[0]["text"].startswith("looks like your photo (cosine 0.")
    both = {reason["part"] for reason in engine.search("acme", image=RED, explain=True).hits[0].reasons}
    assert both == {"lexical", "dense"}


def test_filters_facets_and_sorting_hold_for_photos(engine):
    whole = engine.search(image=RED, facets=["brand"], page_size=1000)
    for entry in whole.facets["brand"]:
        chosen = engine.search(image=RED, filters={"brand": [entry["value"]]}, page_size=1000)
        assert chosen.total == entry["count"]
        assert set(_ids(chosen)) <= set(_ids(whole))
    cheap = engine.search(image=RED, sort="price_asc", page_size=1000)
    assert set(_ids(cheap)) == set(_ids(whole))


def test_pages_belong_to_one_photo(engine):
    whole = engine.search(image=RED, page_size=1000)
    ids, cursor = [], None
    while True:
        page = engine.search(image=RED, page_size=4, cursor=cursor)
        ids += _ids(page)
        cursor = page.cursor or cursor
        if page.cursor is None:
            break
    assert ids == _ids(whole)
    for other in ({"image": GREEN}, {}, {"query": "pizza", "image": RED}):
        assert _refusal(engine.search, **other, page_size=4, cursor=cursor) == ("invalid_cursor", "cursor")


def test_words_alone_leave_a_photo_aside(engine):
    assert _ids(engine.search("acme", image=RED, mode="lexical")) == _ids(engine.search("acme", mode="lexical"))
    assert _states(engine.search("acme", image=b"no picture", mode="lexical")) == ("ok", "skipped", "skipped", False)
    assert _refusal(engine.search, image=RED, mode="lexical") == ("invalid_mode", "mode")


def test_an_index_without_pictures_says_what_to_do(tmp_path, items):
    engine = build_engine(tmp_path, items)
    for query in ("", "acme"):
        with pytest.raises(InvalidRequest, match="rayrec fit images") as refused:
            engine.search(query, image=RED)
        assert (refused.value.code, refused.value.field) == ("no_pictures", "image")


def test_a_picture_that_cannot_be_read_is_the_askers_fault(engine):
    for query in ("", "acme"):
        assert _refusal(engine.search, query, image=b"no picture") == ("invalid_image", "image")
        assert _refusal(engine.search, query, image=np.zeros(3)) == ("invalid_image", "image")


def test_a_photo_is_encoded_once_and_its_content_is_not_kept(tmp_path, items):
    engine = build_engine(tmp_path, items, image_encoder=FakeImageEncoder())
    seen = []
    encode = engine.image_encoder.encode
    engine.image_encoder.encode = lambda pictures: seen.append(len(pictures)) or encode(pictures)
    for query in ("", "acme", ""):
        engine.search(query, image=RED)
    engine.search(image=GREEN)
    assert seen == [1, 1]
    assert RED not in [part for key in (*engine._vectors, *engine._candidates) for part in key]


def test_an_image_encoder_of_another_dimension_is_refused(engine):
    with pytest.raises(IncompatibleArtifact, match=r"photos-numpy makes 8 dimensions"):
        type(engine)(
            engine.shards, engine.encoder, index="v1", weights=engine.weights, image_encoder=FakeImageEncoder(8)
        )


# -- failing encoders -----------------------------------------------------------------------------


def test_without_the_image_encoder_words_answer_and_then_what_is_popular(tmp_path, items, caplog):
    caplog.set_level(logging.CRITICAL)
    engine = build_engine(tmp_path, items, make_shoppers(items)[0], image_encoder=BrokenImageEncoder())
    both = engine.search("acme", image=RED)
    assert _states(both) == ("ok", "ok", "failed", True)
    assert _ids(both) == _ids(engine.search("acme"))
    assert both.coverage.why == "the image encoder failed (RuntimeError)"
    alone = engine.search(image=RED)
    assert _states(alone) == ("skipped", "skipped", "failed", True)
    assert _ids(alone) == _ids(engine.search())
    assert alone.coverage.why == "the image encoder failed (RuntimeError): answered with what is popular"
    engine.image_encoder.broken = False
    healed = engine.search("acme", image=RED)
    assert _states(healed) == ("ok", "ok", "ok", False)
    assert _refusal(engine.search, "acme", image=RED, cursor=both.cursor) == ("stale_cursor", "cursor")


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_without_the_text_encoder_words_and_the_photo_answer(tmp_path, items, mode):
    engine = build_engine(tmp_path, items, encoder=BrokenEncoder(), image_encoder=FakeImageEncoder())
    both = engine.search("acme", image=RED, mode=mode, explain=True)
    assert _states(both) == ("ok", "failed", "ok", True)
    assert {reason["part"] for reason in both.hits[0].reasons} == {"lexical", "image"}
    engine.encoder.broken = False
    assert _states(engine.search("acme", image=RED, mode=mode))[1:] == ("ok", "ok", False)


def test_without_both_encoders_words_answer(tmp_path, items):
    engine = build_engine(tmp_path, items, encoder=BrokenEncoder(), image_encoder=BrokenImageEncoder())
    both = engine.search("acme", image=RED)
    assert _states(both) == ("ok", "failed", "failed", True)
    assert _ids(both) == _ids(engine.search("acme", mode="lexical"))
    assert both.coverage.why == "the encoder failed (RuntimeError); the image encoder failed (RuntimeError)"
