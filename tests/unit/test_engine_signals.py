"""A search whose ranking was fitted: signals move items, a shopper's taste too, and what is found stays the same."""

from dataclasses import replace

import numpy as np
import pytest

from rayrec.config import FusionWeights
from rayrec.engine import Engine
from rayrec.errors import InvalidRequest
from rayrec.ranking import signals
from rayrec.scorer import Scorer
from tests.fakes import build_engine, make_catalog, make_events, make_items

LIKES = {"repeat": 0.5, "taste": 0.5}


def with_signals(engine: Engine, weights: dict, **options) -> Engine:
    fusion = FusionWeights(signals=weights)
    return Engine(engine.shards, engine.encoder, index="v1", weights=fusion, model="m1", **options)


def ids(answer) -> list[str]:
    return [hit.item_id for hit in answer.hits]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Engine:
    items = make_catalog()
    pizzas = [
        row["item_id"]
        for row in items.select(["item_id", "title"]).to_pylist()
        if row["title"].endswith("frozen pizza")
    ]
    bought = [{"user_id": "ann", "item_id": pizzas[-1], "session_id": f"s{i}"} for i in range(3)]
    often = [{"user_id": f"u{i}", "item_id": pizzas[-2], "session_id": f"t{i}"} for i in range(9)]
    return build_engine(tmp_path_factory.mktemp("shop"), items, make_events(bought + often))


@pytest.fixture(scope="module")
def own(plain: Engine) -> str:
    history = plain.scorer.behavior.history("ann")
    return plain.columns.records(history.rows[:1])[0]["item_id"]


def test_without_weights_nothing_changes(plain: Engine) -> None:
    neutral = with_signals(plain, {})

    assert ids(neutral.search("frozen pizza", user_id="ann")) == ids(plain.search("frozen pizza"))
    assert neutral.search("frozen pizza", user_id="ann").coverage.rerank == "skipped"


def test_what_a_shopper_has_comes_first_for_them_alone(plain: Engine, own: str) -> None:
    engine = with_signals(plain, LIKES)
    hers, anyones = (engine.search("frozen pizza", user_id=user, explain=True) for user in ("ann", "stranger"))

    assert ids(hers)[0] == own
    assert ids(anyones) == ids(plain.search("frozen pizza"))
    assert ids(anyones)[0] != own
    assert hers.total == anyones.total
    assert (hers.coverage.behavior, hers.coverage.rerank) == ("ok", "ok")
    assert (anyones.coverage.behavior, anyones.coverage.rerank) == ("skipped", "ok")
    reason = next(reason for reason in hers.hits[0].reasons if reason["part"] == "repeat")
    assert reason["text"] == "you have it, and its buyers buy it again"


def test_popular_items_rise_where_popularity_counts(plain: Engine) -> None:
    engine = with_signals(plain, {"popularity": 1.0})
    best = engine.search("frozen pizza", explain=True).hits[0]

    assert plain.scorer.behavior.popularity[plain.columns.rows[best.item_id]] == 1
    assert "popular" in {reason["part"] for reason in best.reasons}


@pytest.mark.parametrize("mode", ["lexical", "dense"])
def test_the_modes_of_words_or_vectors_alone_stay_pure(plain: Engine, mode: str) -> None:
    engine = with_signals(plain, {"popularity": 1.0, **LIKES})
    hybrid = engine.search("frozen pizza", user_id="ann")

    pure = engine.search("frozen pizza", mode=mode, user_id="ann")

    assert ids(pure) == ids(plain.search("frozen pizza", mode=mode)) != ids(hybrid)
    assert pure.coverage.rerank == "skipped"


def test_other_orders_than_relevance_and_an_empty_query_are_nobodys_own(plain: Engine) -> None:
    engine = with_signals(plain, LIKES)

    for asked in ({"query": "frozen pizza", "sort": "price_asc"}, {"query": ""}):
        assert ids(engine.search(**asked, user_id="ann")) == ids(plain.search(**asked))


def test_pages_of_a_shopper_are_disjoint_and_their_cursor_is_theirs(plain: Engine) -> None:
    engine = with_signals(plain, LIKES)
    whole = ids(engine.search("frozen pizza", user_id="ann", page_size=1000))
    first = engine.search("frozen pizza", user_id="ann", page_size=10)
    second = engine.search("frozen pizza", user_id="ann", page_size=10, cursor=first.cursor)

    assert ids(first) + ids(second) == whole[:20]
    with pytest.raises(InvalidRequest) as caught:
        engine.search("frozen pizza", user_id="bob", page_size=10, cursor=first.cursor)
    assert caught.value.code == "invalid_cursor"
    other = Engine(plain.shards, plain.encoder, index="v1", weights=engine.weights, model="m2")
    with pytest.raises(InvalidRequest) as caught:
        other.search("frozen pizza", user_id="ann", page_size=10, cursor=first.cursor)
    assert caught.value.code == "stale_cursor"


def test_a_filter_restricts_a_shoppers_ranking_and_changes_nothing_else(plain: Engine) -> None:
    engine = with_signals(plain, LIKES)
    whole = engine.search("frozen", user_id="ann", page_size=1000)
    kept = engine.search("frozen", user_id="ann", page_size=1000, filters={"brand": ["Acme"]})

    assert kept.hits == [hit for hit in whole.hits if hit.item["brand"] == "Acme"]
    assert 0 < len(kept.hits) < len(whole.hits)


def test_a_taste_that_cannot_be_weighed_is_left_out_and_said(
    plain: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = with_signals(plain, LIKES)

    def broken(*_: object) -> None:
        raise RuntimeError("no room for " + "-".join(("secret", "user")))

    monkeypatch.setattr(signals, "of_shopper", broken)
    answer = engine.search("frozen pizza", user_id="ann")

    assert ids(answer) == ids(plain.search("frozen pizza"))
    assert answer.coverage.rerank == "failed"
    assert answer.coverage.degraded
    assert answer.coverage.why == "not ranked for the shopper (RuntimeError)"
    assert "RuntimeError" in caplog.text
    assert "secret-user" not in caplog.text


def test_a_trained_model_counts_where_it_has_weight(plain: Engine) -> None:
    wanted = ids(plain.search("frozen pizza"))[4]

    class Expects:
        without_had = False

        def expects(self, events, asked):
            scores = np.zeros(plain.columns.n, np.float32)
            scores[plain.columns.rows[wanted]] = 7
            return signals.Learned(scores, 1.0)

    engine = with_signals(plain, {"learned": 1.0}, trained=Expects())

    assert ids(engine.search("frozen pizza", user_id="ann"))[0] == wanted
    assert ids(engine.search("frozen pizza"))[0] != wanted


def test_pictures_count_where_an_index_has_them(tmp_path) -> None:
    items = make_items([{"item_id": i, "title": "red shoe"} for i in "abc"])
    plain = build_engine(tmp_path, items)
    looks = plain.encoder.encode(["blue", "shoe", "green"])
    plain.shards.contents = lambda: (looks, looks)
    scorer = Scorer(plain.shards, weights=FusionWeights(signals={"image": 1.0}), versions=plain.versions)
    engine = with_signals(plain, {"image": 1.0})
    engine.scorer = scorer

    assert ids(engine.search("shoe"))[0] == "b"
    assert ids(plain.search("shoe"))[0] == "a"


def test_only_the_best_by_the_query_are_moved(plain: Engine, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = ids(plain.search("frozen pizza", page_size=1000))
    monkeypatch.setattr("rayrec.scorer.PERSONAL", order.index(own))
    engine = with_signals(plain, {"repeat": 5.0})

    assert ids(engine.search("frozen pizza", user_id="ann", page_size=1000)) == order
    monkeypatch.setattr("rayrec.scorer.PERSONAL", order.index(own) + 1)
    assert ids(engine.search("frozen pizza", user_id="ann"))[0] == own
    assert replace(engine.search("frozen pizza"), took_ms=0).coverage.behavior == "skipped"
