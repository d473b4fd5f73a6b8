"""The split service, its parts in this process behind stand-in handles: equal answers, and what a lost part costs."""

import asyncio
import json
import pickle
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayrec.config import ServeConfig
from rayrec.errors import IncompatibleArtifact, InvalidRequest, NotFound, Unavailable, VersionNotLoaded
from rayrec.photo import Photo
from rayrec.ranking.scoring import Learned
from rayrec.request import RecommendRequest, SearchRequest, SimilarRequest
from rayrec.serving.backends import FusedBackend, SplitBackend, between_answers
from rayrec.serving.catalog import Catalog
from rayrec.serving.gateway import Gateway
from rayrec.serving.parts import QueryEncoder, Retriever, ScorerPart
from rayrec.serving.remote import RemoteRetrievers, RemoteScorer, retried
from rayrec.serving.telemetry import Telemetry
from rayrec.serving.versions import Pair
from rayrec.store import CatalogLog, open_catalog_log
from tests.fakes import make_catalog, make_photo, publish_model


class Handle:
    """What Ray Serve's handle is to a caller: arguments and answers travel pickled. `dead`: raise so often first."""

    def __init__(self, part: Any):
        self._part = part
        self.dead = 0
        self.travelled: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            if self.dead:
                self.dead -= 1
                raise ConnectionError("the replica died")
            self.travelled.append(pickle.dumps(args))
            answer = getattr(self._part, name)(*pickle.loads(self.travelled[-1]))
            return pickle.loads(pickle.dumps(await answer if asyncio.iscoroutine(answer) else answer))

        return type("Method", (), {"remote": staticmethod(call)})


class EncoderSide:
    def __init__(self, part: QueryEncoder):
        self.part = part

    def encode(self, pair: Pair, query: str) -> np.ndarray:
        return self.part.encode(pair, [query])[0]

    def encode_items(self, pair: Pair, texts: list[str]) -> tuple[str, np.ndarray]:
        return self.part.encode_items(pair, texts)

    def encode_image(self, pair: Pair, picture: np.ndarray) -> np.ndarray:
        return self.part.encode_images(pair, [picture])[0]


class RetrieverSide:
    def __init__(self, part: Retriever):
        self.part = part

    async def find(self, pair: Pair, probe: Any) -> Any:
        await self.part.reach(pair, probe.min_offset)
        return self.part.find(pair, [probe])[0]

    def nearest(self, *args: Any) -> Any:
        return self.part.nearest(*args)


@pytest.fixture
def split(ws) -> tuple[SplitBackend, dict[str, Handle]]:
    return _split(ws)


def _split(ws: Any, log: CatalogLog | None = None) -> tuple[SplitBackend, dict[str, Handle]]:
    config = ServeConfig(workspace=ws.uri, topology="split", shards=2, poll_s=0.02)
    telemetry = Telemetry()
    retrievers = [Handle(RetrieverSide(Retriever(config, shard, telemetry, log))) for shard in range(2)]
    thread = ThreadPoolExecutor(1)
    part = ScorerPart(config, telemetry, log, between_answers(thread))
    scorer = Handle(RemoteScorer(part, RemoteRetrievers(retrievers), thread))
    encoder = Handle(EncoderSide(QueryEncoder(config, telemetry)))
    handles = {"encoder": encoder, "scorer": scorer, "retriever": retrievers[0]}
    return SplitBackend(config, telemetry, encoder, scorer), handles


def _ask(backend: Any, ws: Any, ask: Callable[[Gateway], Awaitable[Any]]) -> Any:
    gateway = Gateway(ServeConfig(workspace=ws.uri), backend, Telemetry(), "r1")
    answer = asyncio.run(ask(gateway))
    return (
        {k: v for k, v in answer.items() if k not in ("took_ms", "request_id")} if isinstance(answer, dict) else answer
    )


ASKS = [
    lambda g: g.search(SearchRequest("acme usb cable", explain=True, facets=("brand", "category", "price_cents"))),
    lambda g: g.search(SearchRequest("organic nuts", filters={"available": True, "brand": ["Acme"]}, sort="price_asc")),
    lambda g: g.search(SearchRequest("pizza", mode="lexical", page=2, page_size=3)),
    lambda g: g.search(SearchRequest("headphones", mode="dense")),
    lambda g: g.search(SearchRequest()),
    lambda g: g.similar(SimilarRequest("i0003", 9, explain=True)),
    lambda g: g.recommend(RecommendRequest("u01", ["i0003"], 9, {"available": True}, True)),
    lambda g: g.recommend(RecommendRequest()),
    lambda g: g.item("i0003"),
]


@pytest.mark.parametrize("ask", ASKS)
def test_split_answers_as_fused_does(ws, split, ask):
    fused = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry())
    assert _ask(split[0], ws, ask) == _ask(fused, ws, ask)


CHANGED_ASKS = [
    lambda g, n: g.search(SearchRequest("quokka usb cable", facets=("brand", "category"), min_offset=n, page_size=99)),
    lambda g, n: g.search(SearchRequest("quokka", mode="dense", min_offset=n, page_size=99)),
    lambda g, n: g.search(SearchRequest("", filters={"brand": ["Zenith"]}, sort="price_asc", min_offset=n)),
    lambda g, n: g.similar(SimilarRequest("mug0", 9)),
    lambda g, n: g.recommend(RecommendRequest("u01", ["mug0"], 9)),
    lambda g, n: g.item("mug1"),
    lambda g, n: g.suggest("quokka", 8),
]


@pytest.mark.parametrize("pictures", [False, True])
def test_both_take_up_changes_alike(ws, ws_with_pictures, pictures, tmp_path):
    """Written through the split service, from whose replicas its gateway knows items and their vectors."""
    ws = ws_with_pictures if pictures else ws
    log = open_catalog_log(f"sqlite:///{tmp_path}/live.db")
    config = ServeConfig(workspace=ws.uri)
    fused, backend = FusedBackend(config, Telemetry(), log), _split(ws, log)[0]

    async def change() -> int:
        catalog = Catalog(config, log, backend, Telemetry())
        mugs = [
            {"item_id": f"mug{n}", "title": f"Quokka mug {n}", "brand": "Zenith", "price_cents": n} for n in range(9)
        ]
        await catalog.put(mugs)
        old = await backend.item((await backend.versions(None))[0], "i0003")
        await catalog.put([{k: v for k, v in old.items() if v is not None} | {"title": "Quokka again"}])
        for n in range(2, 5):
            await catalog.patch(f"mug{n}", {"price_cents": 100 - n})
        await catalog.patch("i0005", {"title": "Another quokka"})
        await catalog.delete("i0004")
        return (await catalog.delete("mug8"))["offset"]

    offset = asyncio.run(change())
    assert offset == 16
    for ask in CHANGED_ASKS:
        answers = [_ask(each, ws, lambda g, ask=ask: ask(g, offset)) for each in (backend, fused)]
        if "versions" in answers[0]:
            assert answers[0]["versions"]["log_offset"] == offset
        assert answers[0] == answers[1]
    found = _ask(backend, ws, lambda g: CHANGED_ASKS[0](g, offset))
    assert {"mug0", "mug7", "i0003", "i0005"} <= {hit["item_id"] for hit in found["hits"]}
    assert not {"mug8", "i0004"} & {hit["item_id"] for hit in found["hits"]}
    log.close()


def test_changes_are_taken_while_a_swap_has_not_reached_every_part(ws, tmp_path):
    """The gateway has the new pair at once, the scorer and the encoder not yet."""
    log = open_catalog_log(f"sqlite:///{tmp_path}/live.db")
    backend = _split(ws, log)[0]
    backend._live.close()
    old = backend._live.current
    backend._live._previous, backend._live.current = (old, float("inf")), type(old)(Pair("newer"), None)
    catalog = Catalog(ServeConfig(workspace=ws.uri), log, backend, Telemetry())

    async def change():
        put = await catalog.put([{"item_id": "mug", "title": "Quokka mug"}])
        patched = await catalog.patch("mug", {"title": "Another quokka mug"})
        return put["offset"], patched["offset"], (await catalog.delete("i0003"))["offset"]

    assert asyncio.run(change()) == (1, 2, 3)
    backend._live._previous = None
    with pytest.raises(Unavailable, match="newer"):
        asyncio.run(catalog.put([{"item_id": "mug2", "title": "Quokka mug"}]))
    log.close()


def test_without_a_log_later_pages_are_answered_and_unknown_changes_refused(ws):
    """Of an index that was made of a log, served where no store is."""
    asked = SearchRequest("usb", page_size=3)
    fused, split = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry()), _split(ws)[0]
    pair = split._live.current.pair
    scorers = (fused._live.current.value.scorer, split._scorer._part._part.scorer(pair))
    for backend, scorer in zip((fused, split), scorers, strict=True):
        scorer.versions["log_offset"] = 5
        first = _ask(backend, ws, lambda g: g.search(asked))
        later = replace(asked, cursor=first["cursor"])
        second = _ask(backend, ws, lambda g, later=later: g.search(later))
        assert second["page"] == 2
        with pytest.raises(InvalidRequest, match="no change has the offset 6"):
            _ask(backend, ws, lambda g: g.search(SearchRequest("usb", min_offset=6)))


def test_changes_between_a_plan_and_its_answer_break_nothing(ws, tmp_path):
    """A new item makes everything one row longer, a deleted one may not be shown any more."""
    log = open_catalog_log(f"sqlite:///{tmp_path}/live.db")
    backend = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry(), log)
    engine = backend._live.current.value
    scorer = engine.scorer
    request = RecommendRequest("u01", ["i0003"], 50)
    plan, like = scorer.plan_recommend(request), scorer.plan_similar(SimilarRequest("i0003", 50))
    near = engine.shards.nearest(plan.near.vector, plan.near.k, plan.near.allowed)
    shown = [hit.item_id for hit in scorer.recommend(request, plan, near).hits]
    model = Learned(np.ones(engine.columns.n, np.float32), 0.5)
    ahead = np.append(near, engine.columns.n + 5)  # of a shard that knows what the scorer does not

    catalog = Catalog(ServeConfig(workspace=ws.uri), log, backend, Telemetry())
    asyncio.run(catalog.put([{"item_id": "mug", "title": "Quokka mug"}]))
    offset = asyncio.run(catalog.delete(shown[0]))["offset"]
    asyncio.run(backend.tail.reach(engine, offset))

    for planned in (plan, replace(plan, learned=model), replace(plan, allowed=None, learned=model)):
        now = [hit.item_id for hit in scorer.recommend(request, planned, ahead).hits]
        assert now[:5]
        assert shown[0] not in now
    assert shown[0] not in [hit.item_id for hit in scorer.similar(SimilarRequest("i0003", 50), like, ahead).hits]
    log.close()


PHOTO = Photo.of(make_photo("red", (600, 400), "JPEG"))
PHOTO_ASKS = [
    lambda g: g.search(SearchRequest(image=PHOTO, explain=True, facets=("brand",))),
    lambda g: g.search(SearchRequest("acme", image=PHOTO, explain=True, filters={"available": True})),
    lambda g: g.search(SearchRequest("acme", image=PHOTO, mode="dense", sort="price_asc")),
    lambda g: g.search(SearchRequest("acme", image=PHOTO, mode="lexical")),
]


@pytest.mark.parametrize("ask", PHOTO_ASKS)
def test_split_answers_photos_as_fused_does(ws_with_pictures, ask):
    fused = FusedBackend(ServeConfig(workspace=ws_with_pictures.uri), Telemetry())
    backend, handles = _split(ws_with_pictures)
    assert _ask(backend, ws_with_pictures, ask) == _ask(fused, ws_with_pictures, ask)
    # what travels: the photo's name, and a picture as large as the encoder wants it
    assert not any(PHOTO.content in sent for handle in handles.values() for sent in handle.travelled)
    assert max(map(len, handles["encoder"].travelled), default=0) < 5_000


def test_without_an_encoder_a_photo_is_answered_by_words_and_then_by_what_is_popular(ws_with_pictures):
    backend, handles = _split(ws_with_pictures)
    handles["encoder"].dead = 99
    both, alone = (_ask(backend, ws_with_pictures, ask)["coverage"] for ask in (PHOTO_ASKS[1], PHOTO_ASKS[0]))
    assert (both["lexical"], both["dense"], both["image"]) == ("ok", "failed", "failed")
    assert (alone["lexical"], alone["dense"], alone["image"]) == ("skipped", "skipped", "failed")
    assert alone["why"].endswith("answered with what is popular")


def test_a_photo_of_an_index_without_pictures_is_refused(ws, split):
    with pytest.raises(InvalidRequest) as refused:
        _ask(split[0], ws, PHOTO_ASKS[0])
    assert refused.value.code == "no_pictures"
    part = QueryEncoder(ServeConfig(workspace=ws.uri), Telemetry())
    with pytest.raises(InvalidRequest, match="no pictures"):
        part.encode_images(split[0]._live.current.pair, [np.zeros((8, 8, 3), np.uint8)])


def test_suggestions_are_equal_too(ws, split):
    fused = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry())

    def ask(g):
        return g.suggest("usb", 5)

    assert _ask(split[0], ws, ask)["suggestions"] == _ask(fused, ws, ask)["suggestions"]


def test_errors_arrive_as_themselves(ws, split):
    with pytest.raises(NotFound, match="nope"):
        _ask(split[0], ws, lambda g: g.item("nope"))
    with pytest.raises(InvalidRequest) as refused:
        _ask(split[0], ws, lambda g: g.search(SearchRequest(filters={"colour": ["red"]})))
    assert (refused.value.code, refused.value.field) == ("unknown_field", "filters.colour")


@pytest.mark.parametrize("part", ["encoder", "scorer", "retriever"])
def test_a_call_whose_replica_died_is_asked_again(ws, split, part):
    backend, handles = split
    whole = _ask(backend, ws, ASKS[0])
    handles[part].dead = 2
    assert _ask(backend, ws, ASKS[0]) == whole


def test_without_an_encoder_words_answer_and_without_a_scorer_nothing_does(ws, split):
    backend, handles = split
    handles["encoder"].dead = 99
    degraded = _ask(backend, ws, ASKS[0])
    assert (degraded["coverage"]["dense"], degraded["coverage"]["degraded"]) == ("failed", True)
    assert degraded["total"] > 0
    handles["scorer"].dead = 99
    with pytest.raises(Unavailable):
        _ask(backend, ws, ASKS[0])


def test_our_own_errors_are_not_asked_again():
    calls = []

    async def call() -> None:
        calls.append(1)
        raise NotFound("x")

    with pytest.raises(NotFound):
        asyncio.run(retried(call))
    assert len(calls) == 1


def test_a_pair_that_a_part_has_not_loaded_is_answered_by_the_one_before(ws, split):
    backend, _ = split
    backend._live.close()
    old = backend._live.current
    new = type(old)(Pair("newer"), None)
    backend._live._previous = (old, float("inf"))
    backend._live.current = new
    answer = _ask(backend, ws, ASKS[0])
    assert answer["versions"]["index"] == old.pair.index
    assert not answer["coverage"]["degraded"]
    backend._live._previous = None
    for ask in (ASKS[0], ASKS[4], ASKS[5], ASKS[7], ASKS[8]):
        with pytest.raises(Unavailable, match="newer"):
            _ask(backend, ws, ask)


def test_a_query_is_encoded_and_answered_by_the_same_pair(ws, split):
    """The encoder has the new pair already, the scorer not: the old pair's encoder is asked again."""
    backend, handles = split
    backend._live.close()
    old = backend._live.current
    backend._live._previous, backend._live.current = (old, float("inf")), type(old)(Pair("newer"), None)
    asked = []

    def encode(pair, query):
        asked.append(pair.index)
        return np.eye(48, dtype=np.float32)[0] if pair.index == "newer" else encoder.part.encode(pair, [query])[0]

    encoder = handles["encoder"]._part
    encoder.encode = encode
    answer = _ask(backend, ws, ASKS[0])
    assert asked == ["newer", old.pair.index]
    backend._live._previous, backend._live.current = None, old
    assert answer == _ask(backend, ws, ASKS[0])


def test_an_index_with_other_shards_is_refused_with_the_remedy(ws):
    config = ServeConfig(workspace=ws.uri, topology="split", shards=3)
    with pytest.raises(IncompatibleArtifact, match="deploy again with shards: 2"):
        Retriever(config, 0, Telemetry())
    with pytest.raises(IncompatibleArtifact, match="2 shards"):
        ScorerPart(config, Telemetry())
    part = QueryEncoder(config, Telemetry())
    with pytest.raises(VersionNotLoaded):
        part.encode(Pair("nope"), ["x"])


def test_a_trained_model_answers_alike_in_both_and_changes_what_a_shopper_gets(ws, split):
    before = _ask(split[0], ws, ASKS[6])
    stranger = _ask(split[0], ws, ASKS[7])
    model = publish_model(ws, make_catalog())
    ws.promote(model=model)
    fused = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry())
    trained, handles = _split(ws)
    assert handles
    after = _ask(trained, ws, ASKS[6])
    assert after == _ask(fused, ws, ASKS[6])
    assert after["versions"]["model"] == model
    assert [hit["item_id"] for hit in after["hits"]] != [hit["item_id"] for hit in before["hits"]]
    assert "learned" in {reason["part"] for hit in after["hits"] for reason in hit["reasons"]}
    assert "i0003" not in {hit["item_id"] for hit in after["hits"]}  # it was had a moment ago
    assert _ask(trained, ws, ASKS[7])["hits"] == stranger["hits"]  # of whom nothing is known


def test_a_model_of_another_space_cannot_be_promoted(ws):
    model = publish_model(ws, make_catalog())
    manifest = json.loads(ws.read_bytes("models", model, "manifest.json"))
    manifest["encoder"]["space"] = "elsewhere"
    ws.write_bytes(json.dumps(manifest).encode(), "models", model, "manifest.json")
    with pytest.raises(IncompatibleArtifact, match="elsewhere"):
        ws.promote(model=model)


@pytest.mark.parametrize("shopper", ["u01", "stranger", None])
def test_searches_that_weigh_signals_and_shoppers_are_equal_in_both(ws, shopper):
    signals = {"popularity": 0.3, "price": -0.2, "repeat": 0.4, "taste": 0.3, "learned": 0.5}
    plain = ws.current().index
    before = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry())
    asked = SearchRequest("acme usb cable", explain=True, user_id=shopper)
    unweighed = _ask(before, ws, lambda g: g.search(asked))
    ws.promote(index=plain, model=publish_model(ws, make_catalog(), signals=signals))
    fused = FusedBackend(ServeConfig(workspace=ws.uri), Telemetry())
    split, _ = _split(ws)

    answers = [_ask(backend, ws, lambda g: g.search(asked)) for backend in (fused, split)]

    assert answers[0] == answers[1]
    assert answers[0]["coverage"]["rerank"] == "ok"
    assert answers[0]["coverage"]["behavior"] == ("ok" if shopper == "u01" else "skipped")
    assert [hit["item_id"] for hit in answers[0]["hits"]] != [hit["item_id"] for hit in unweighed["hits"]]
    assert answers[0]["total"] == unweighed["total"]
