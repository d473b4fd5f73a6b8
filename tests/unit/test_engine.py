"""Search: what holds for every query, filter and page, on one shard and on three."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.errors import IncompatibleArtifact, InvalidRequest
from rayrec.request import MODES
from rayrec.retrieval.filters import SORTS
from tests.fakes import (
    BRANDS,
    COLORS,
    BrokenEncoder,
    FakeEncoder,
    build_engine,
    make_catalog,
    make_items,
    make_shoppers,
)

some = settings(max_examples=40, deadline=None)
FACETS = ["brand", "category", "attributes.color", "attributes.size", "available"]
QUERIES = st.sampled_from(
    ["", "pizza", "acme usb cable", "organic nuts red", "headphone", "compact wireless", "zzz", "?!"]
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "brand": st.lists(st.sampled_from(BRANDS), min_size=1, max_size=2),
        "category": st.sampled_from([["Grocery"], ["Grocery > Snacks", "Electronics > Audio"]]),
        "attributes.color": st.lists(st.sampled_from(COLORS), min_size=1, max_size=2),
        "available": st.booleans(),
        "price_cents": st.fixed_dictionaries({"gte": st.integers(0, 1500)}),
    },
)
REQUESTS = {"query": QUERIES, "filters": FILTERS, "mode": st.sampled_from(MODES)}


@pytest.fixture(scope="module")
def items():
    return make_catalog()


@pytest.fixture(scope="module")
def engines(items, tmp_path_factory):
    events, _ = make_shoppers(items)
    return {n: build_engine(tmp_path_factory.mktemp(f"shards{n}"), items, events, shards=n) for n in (1, 3)}


@pytest.fixture(params=[1, 3], scope="module")
def engine(engines, request):
    return engines[request.param]


def _ids(answer):
    return [hit.item_id for hit in answer.hits]


def _refusal(call, *args, **kwargs):
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **kwargs)
    return caught.value.code, caught.value.field


# -- properties of search -------------------------------------------------------------------------


@some
@given(**REQUESTS)
def test_every_facet_count_is_the_total_of_choosing_that_value(engine, query, filters, mode):
    for field, counts in engine.search(query, filters=filters, mode=mode, facets=FACETS).facets.items():
        for entry in counts:
            value = entry["value"] if field == "available" else [entry["value"]]
            chosen = engine.search(query, filters={**filters, field: value}, mode=mode)
            assert entry["count"] == chosen.total, (field, value)
        others = {name: wanted for name, wanted in filters.items() if name != field}
        assert counts == engine.search(query, filters=others, mode=mode, facets=[field]).facets[field]


@some
@given(**REQUESTS)
def test_every_price_range_counts_the_total_of_choosing_it(engine, query, filters, mode):
    found = engine.search(query, filters=filters, mode=mode, facets=["price_cents"]).facets["price_cents"]
    for span in found["ranges"]:
        chosen = {**filters, "price_cents": {"gte": span["gte"], "lt": span["lt"]}}
        assert span["count"] == engine.search(query, filters=chosen, mode=mode).total


@some
@given(sort=st.sampled_from(SORTS), **REQUESTS)
def test_a_filter_restricts_the_ranking_and_changes_nothing_else(engine, query, filters, mode, sort):
    everything = engine.search(query, mode=mode, sort=sort, page_size=1000)
    kept = engine.search(query, filters=filters, mode=mode, sort=sort, page_size=1000)
    passes = set(engine.columns.items.column("item_id").to_numpy()[_mask(engine, filters)])
    assert [(h.item_id, h.score) for h in kept.hits] == [
        (h.item_id, h.score) for h in everything.hits if h.item_id in passes
    ]
    assert kept.total == len(kept.hits)


def _mask(engine, filters):
    mask = engine.columns.mask(filters)
    return np.ones(engine.columns.n, bool) if mask is None else mask


@some
@given(sort=st.sampled_from(SORTS), page_size=st.integers(7, 60), **REQUESTS)
def test_pages_by_cursor_make_up_the_whole_and_agree_on_the_total(engine, query, filters, mode, sort, page_size):
    request = {"filters": filters, "mode": mode, "sort": sort}
    whole = engine.search(query, **request, page_size=1000)
    ids, cursor, page = [], None, 1
    while True:
        answer = engine.search(query, **request, page_size=page_size, cursor=cursor)
        assert (answer.total, answer.page) == (whole.total, page)
        assert _ids(answer) == _ids(engine.search(query, **request, page_size=page_size, page=page))
        ids += _ids(answer)
        cursor, page = answer.cursor, page + 1
        if cursor is None:
            break
    assert ids == _ids(whole)
    assert len(set(ids)) == whole.total
    assert engine.search(query, **request, page=page + 5, page_size=page_size).hits == []


@some
@given(query=QUERIES, filters=FILTERS)
def test_reasons_share_out_the_score_and_name_words_of_the_item(engine, query, filters):
    for hit in engine.search(query, filters=filters, explain=True).hits:
        assert sum(reason["weight"] for reason in hit.reasons) <= 1 + 1e-3  # each rounded to 4 digits
        for said in (reason["text"] for reason in hit.reasons if reason["part"] == "lexical"):
            words = said.removeprefix("says ").replace("'", "").split(", ")
            assert all(word in query.split() and word in str(hit.item).lower() for word in words)
    assert all(hit.reasons is None for hit in engine.search(query, filters=filters).hits)


@some
@given(query=QUERIES, filters=FILTERS)
def test_shards_do_not_change_what_vectors_find(engines, query, filters):
    one, three = (engines[n].search(query, filters=filters, mode="dense", page_size=1000) for n in (1, 3))
    assert [(h.item_id, h.score) for h in one.hits] == [(h.item_id, h.score) for h in three.hits]
    assert set(_ids(engines[1].search(query, mode="lexical", page_size=1000))) == set(
        _ids(engines[3].search(query, mode="lexical", page_size=1000))
    )


@some
@given(rows=st.lists(st.integers(0, 239)))
def test_shards_do_not_change_which_vector_is_whose(engines, rows):
    one, three = (engines[n].shards.vectors(np.array(rows, np.int64)) for n in (1, 3))
    assert one.tolist() == three.tolist() == engines[1].shards.vectors(np.arange(240))[rows].tolist()


# -- search by hand -------------------------------------------------------------------------------


def test_no_query_browses_everything_by_popularity(engine):
    answer = engine.search("  ", page_size=1000)
    popularity = engine.shards.behavior.popularity
    ids = engine.columns.items.column("item_id").to_pylist()
    assert _ids(answer) == [ids[row] for row in np.lexsort((np.arange(len(ids)), -popularity))]
    assert answer.total == 240


def test_the_last_page_has_no_cursor_even_if_it_is_full(engine):
    assert [engine.search(page_size=120, page=page).cursor is None for page in (1, 2, 3)] == [False, True, True]


def test_modes_use_the_lists_they_name(engine):
    words, vectors, both = (engine.search("red pizza", mode=m, page_size=1000) for m in ("lexical", "dense", "hybrid"))
    assert set(_ids(both)) == set(_ids(words)) | set(_ids(vectors))
    assert [(a.coverage.lexical, a.coverage.dense) for a in (words, vectors, both)] == [
        ("ok", "skipped"),
        ("skipped", "ok"),
        ("ok", "ok"),
    ]
    assert not any(a.coverage.degraded for a in (words, vectors, both))


def test_the_item_that_says_the_query_is_first(engine, items):
    title = items.column("title")[17].as_py()
    for mode in MODES:
        assert engine.search(title, mode=mode).hits[0].item["title"] == title


def test_an_item_with_null_values_can_be_explained(tmp_path):
    items = make_items(
        [{"item_id": "a", "title": "red shoe", "attributes": [("color", None)], "category": ["Toys", None]}]
    )
    hit = build_engine(tmp_path, items).search("shoes", explain=True, mode="lexical").hits[0]
    assert hit.reasons == [{"part": "lexical", "weight": 1.0, "text": "says 'shoes'"}]


def test_more_shards_than_items_answer(tmp_path):
    engine = build_engine(tmp_path, make_items([{"item_id": "a", "title": "shoe"}, {"item_id": "b"}]), shards=3)
    assert _ids(engine.search("shoe", mode="lexical")) == ["a"]
    assert _ids(engine.similar("a")) == ["b"]


@pytest.mark.parametrize(
    ("request_", "refusal"),
    [
        ({"page": 0}, ("invalid_page", "page")),
        ({"page_size": 0}, ("invalid_page_size", "page_size")),
        ({"page_size": 1001}, ("invalid_page_size", "page_size")),
        ({"sort": "cheapest"}, ("invalid_sort", "sort")),
        ({"mode": "magic"}, ("invalid_mode", "mode")),
        ({"query": "a" * 1001}, ("query_too_long", "query")),
        ({"facets": ["colour"]}, ("unknown_field", "facets.colour")),
        ({"filters": {"colour": ["red"]}}, ("unknown_field", "filters.colour")),
        ({"cursor": "garbage"}, ("invalid_cursor", "cursor")),
    ],
)
def test_an_invalid_search_is_refused_by_field(engine, request_, refusal):
    assert _refusal(engine.search, **request_) == refusal


def test_a_cursor_answers_only_the_request_it_was_made_for(engine):
    cursor = engine.search("pizza", page_size=5).cursor
    assert _refusal(engine.search, "pizza", page_size=6, cursor=cursor) == ("invalid_cursor", "cursor")
    assert _refusal(engine.search, "cable", page_size=5, cursor=cursor) == ("invalid_cursor", "cursor")


def test_an_encoder_of_another_dimension_is_refused(engine):
    with pytest.raises(IncompatibleArtifact, match="8 dimensions"):
        type(engine)(engine.shards, FakeEncoder(8), index="v1", weights=engine.weights)


# -- a failing encoder ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_words_answer_while_the_encoder_fails_and_the_failure_is_not_kept(tmp_path, items, mode):
    engine = build_engine(tmp_path, items, encoder=BrokenEncoder())
    degraded = engine.search("pizza", mode=mode)
    words = engine.search("pizza", mode="lexical")
    assert (degraded.coverage.lexical, degraded.coverage.dense, degraded.coverage.degraded) == ("ok", "failed", True)
    assert "RuntimeError" in degraded.coverage.why
    assert degraded.total > 0
    assert [(h.item_id, h.score) for h in degraded.hits] == [(h.item_id, h.score) for h in words.hits]
    assert not words.coverage.degraded
    engine.encoder.broken = False
    healed = engine.search("pizza", mode=mode)
    assert (healed.coverage.dense, healed.coverage.degraded, healed.coverage.why) == ("ok", False, None)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("dense", ["flat", "hnsw", "ivfpq"])
def test_the_smallest_catalogs_are_found_by_meaning(tmp_path, n, dense):
    engine = build_engine(
        tmp_path, make_items({"item_id": f"i{i}", "title": f"lamp {i}"} for i in range(n)), dense=dense
    )
    assert engine.search(f"lamp {n - 1}", mode="dense").hits[0].item_id == f"i{n - 1}"


def test_a_query_that_is_no_text_is_refused(tmp_path):
    engine = build_engine(tmp_path, make_items([{"item_id": "a"}]))
    with pytest.raises(InvalidRequest, match="Unicode") as refused:
        engine.search("caf\udcff")
    assert refused.value.field == "query"


def test_what_was_asked_is_not_in_the_log_of_a_failure(tmp_path, items, caplog):
    class Talkative(BrokenEncoder):
        def encode(self, texts, role="passage"):
            raise RuntimeError(f"cannot encode {texts}")

    engine = build_engine(tmp_path, items, encoder=Talkative())
    assert engine.search("secret words").coverage.dense == "failed"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
