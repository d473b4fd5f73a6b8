"""Items by id, items like one, and items for a shopper."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.errors import InvalidRequest, NotFound
from tests.fakes import BRANDS, build_engine, make_catalog, make_events, make_shoppers

FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "brand": st.lists(st.sampled_from(BRANDS), max_size=2),
        "category": st.just(["Grocery > Snacks"]),
        "available": st.booleans(),
    },
)


@pytest.fixture(scope="module")
def items():
    return make_catalog()


@pytest.fixture(scope="module")
def shoppers(items):
    return make_shoppers(items)


@pytest.fixture(scope="module", params=[1, 3])
def engine(request, items, shoppers, tmp_path_factory):
    return build_engine(tmp_path_factory.mktemp("index"), items, shoppers[0], shards=request.param)


def _ids(answer):
    return [hit.item_id for hit in answer.hits]


def test_item_is_the_record_or_not_found(engine, items):
    expected = items.select(engine.columns.items.column_names).slice(3, 1).to_pylist()[0]
    assert engine.item("i0003") == {**expected, "attributes": dict(expected["attributes"] or [])}
    for call in (engine.item, engine.similar):
        with pytest.raises(NotFound, match="'nope'"):
            call("nope")


@settings(max_examples=40, deadline=None)
@given(item=st.integers(0, 239), filters=FILTERS)
def test_suggestions_are_available_pass_the_filters_and_leave_out_the_item(engine, item, filters):
    item_id = f"i{item:04d}"
    ids = engine.columns.items.column("item_id").to_numpy()
    mask = engine.columns.mask(filters)
    shown = set(ids[engine.columns.available & (np.ones(len(ids), bool) if mask is None else mask)])
    similar = engine.similar(item_id, filters=filters, k=50)
    assert set(_ids(similar)) <= shown - {item_id}
    for answer in (engine.recommend(user_id="u01", filters=filters), engine.recommend(filters=filters)):
        assert set(_ids(answer)) <= shown
        assert bool(answer.hits) == bool(shown)
    assert [h.score for h in similar.hits] == sorted((h.score for h in similar.hits), reverse=True)


def test_a_stranger_gets_what_is_popular(engine):
    popular = engine.search(filters={"available": True}, k=24)
    assert _ids(engine.recommend()) == _ids(engine.recommend(user_id="nobody")) == _ids(popular)


def test_a_companion_is_recommended_above_what_is_popular(engine, shoppers):
    for item_id, companion in shoppers[1].items():
        answer = engine.recommend(recent_item_ids=[item_id], explain=True)
        best = next(hit for hit in answer.hits if hit.item_id != item_id)
        assert best.item_id == companion
        texts = {reason["part"]: reason["text"] for reason in best.reasons}
        assert texts["together"] == f"bought together with {engine.item(item_id)['title']}"
        twin = next(hit for hit in engine.similar(item_id, k=200, explain=True).hits if hit.item_id == companion)
        assert texts["together"] in [reason["text"] for reason in twin.reasons]


def test_a_history_counts_like_recent_items(tmp_path, items, shoppers):
    events, companions = shoppers
    item_id, companion = next(iter(companions.items()))
    history = make_events([{"event_id": "new", "user_id": "fresh", "session_id": "fresh", "item_id": item_id}])
    engine = build_engine(tmp_path, items, make_events([*events.to_pylist(), *history.to_pylist()]))
    assert companion in _ids(engine.recommend(user_id="fresh"))[:2]


def test_unknown_recent_items_are_passed_over(engine):
    known = engine.recommend(recent_item_ids=["i0003"])
    assert _ids(engine.recommend(recent_item_ids=["gone", "i0003", ""])) == _ids(known)
    assert _ids(engine.recommend(recent_item_ids=["gone"])) == _ids(engine.recommend())


@pytest.mark.parametrize("k", [0, 1001])
def test_an_invalid_k_is_refused_by_field(engine, k):
    for ask in (lambda: engine.recommend(k=k), lambda: engine.similar("i0003", k=k)):
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert (caught.value.code, caught.value.field) == ("invalid_k", "k")
