import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.errors import InvalidRequest
from rayrec.retrieval.filters import SORTS, ItemColumns
from tests.fakes import BRANDS, CATEGORIES, COLORS, DAY_US, NOW_US, make_catalog, make_items

PATHS = sorted({" > ".join(path[:depth]) for path in CATEGORIES for depth in range(1, len(path) + 1)})
PRICES = st.integers(0, 2100)
BOUNDS = {"gte": int.__ge__, "gt": int.__gt__, "lte": int.__le__, "lt": int.__lt__}
VALUES = {
    "brand": BRANDS,
    "category": PATHS,
    "attributes.color": COLORS,
    "attributes.size": ["1", "2", "3"],
    "available": [True, False],
}
some = settings(max_examples=40, deadline=None)


def _some_of(values):
    return st.lists(st.sampled_from([*values, "Nonesuch"]), max_size=3)


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "brand": _some_of(BRANDS),
        "category": _some_of(PATHS),
        "attributes.color": _some_of(COLORS),
        "attributes.size": _some_of(["1", "2"]),
        "available": st.booleans(),
        "price_cents": st.dictionaries(st.sampled_from(list(BOUNDS)), PRICES, min_size=1),
        "updated_us": st.fixed_dictionaries({"gte": st.integers(0, 30).map(lambda days: NOW_US - days * DAY_US)}),
    },
)


@pytest.fixture(scope="module")
def columns():
    return ItemColumns(make_catalog(300, seed=1))


@pytest.fixture(scope="module")
def records(columns):
    return columns.records(range(columns.n))


def _passes(item, field, wanted):
    """What README.md says of filters, one item at a time."""
    if field == "available":
        return (item["available"] is not False) == wanted
    if field == "brand":
        return item["brand"] in wanted
    if field == "category":
        path = item["category"] or []
        return any(" > ".join(path[:depth]) in wanted for depth in range(1, len(path) + 1))
    if field.startswith("attributes."):
        return item["attributes"].get(field.partition(".")[2]) in wanted
    return item[field] is not None and all(BOUNDS[bound](item[field], limit) for bound, limit in wanted.items())


def _oracle(records, filters):
    return [i for i, item in enumerate(records) if all(_passes(item, f, wanted) for f, wanted in filters.items())]


def _rows(columns, filters):
    mask = columns.mask(filters)
    return np.arange(columns.n) if mask is None else np.flatnonzero(mask)


@some
@given(filters=FILTERS)
def test_a_mask_keeps_exactly_what_the_filters_say(columns, records, filters):
    assert _rows(columns, filters).tolist() == _oracle(records, filters)


@some
@given(filters=FILTERS, field=st.sampled_from(list(VALUES)))
def test_a_facet_counts_what_choosing_the_value_keeps(columns, records, filters, field):
    kept = [records[i] for i in _oracle(records, filters)]
    chosen = {value: value if field == "available" else [value] for value in VALUES[field]}
    expected = {value: sum(_passes(item, field, wanted) for item in kept) for value, wanted in chosen.items()}
    found = columns.facet(field, _rows(columns, filters))
    assert {entry["value"]: entry["count"] for entry in found} == {v: count for v, count in expected.items() if count}
    assert found == sorted(found, key=lambda entry: (-entry["count"], entry["value"]))


@some
@given(filters=FILTERS)
def test_price_ranges_add_up_and_each_counts_what_choosing_it_keeps(columns, records, filters):
    rows = _rows(columns, filters)
    prices = [records[i]["price_cents"] for i in rows if records[i]["price_cents"] is not None]
    spans = columns.facet("price_cents", rows)
    assert (spans["min"], spans["max"]) == (min(prices, default=None), max(prices, default=None))
    assert sum(span["count"] for span in spans["ranges"]) == len(prices)
    for span in spans["ranges"]:
        assert span["count"] == sum(span["gte"] <= price < span["lt"] for price in prices)
        chosen = columns.mask({"price_cents": {"gte": span["gte"], "lt": span["lt"]}})
        assert span["count"] == chosen[rows].sum()
    assert [span["gte"] for span in spans["ranges"][1:]] == [span["lt"] for span in spans["ranges"][:-1]]


@some
@given(sort=st.sampled_from(SORTS), rows=st.sets(st.integers(0, 299)).map(sorted), seed=st.integers(0, 99))
def test_every_order_has_nulls_last_and_ties_by_item_id(columns, records, sort, rows, seed):
    rng = np.random.default_rng(seed)
    scores, popularity = (rng.integers(0, 4, len(rows)) / 4 for _ in range(2))

    def key(place):
        item = records[rows[place]]
        value = {
            "relevance": -scores[place],
            "popular": -popularity[place],
            "price_asc": item["price_cents"],
            "price_desc": item["price_cents"] and -item["price_cents"],
            "newest": item["updated_us"] and -item["updated_us"],
        }[sort]
        return value is None, value or 0, item["item_id"]

    for k in (len(rows), len(rows) // 3, len(rows) + 9):
        found = columns.order(np.array(rows, np.int64), sort, scores, popularity, k)
        assert found.tolist() == sorted(range(len(rows)), key=key)[:k]


@pytest.mark.parametrize(
    ("filters", "code", "field"),
    [
        ({"colour": ["red"]}, "unknown_field", "filters.colour"),
        ({"attributes.": ["red"]}, "unknown_field", "filters.attributes."),
        ({"title": ["x"]}, "unknown_field", "filters.title"),
        ({"brand": [1]}, "invalid_filter", "filters.brand"),
        ({"brand": None}, "invalid_filter", "filters.brand"),
        ({"category": {"gte": 1}}, "invalid_filter", "filters.category"),
        ({"available": "yes"}, "invalid_filter", "filters.available"),
        ({"available": 1}, "invalid_filter", "filters.available"),
        ({"price_cents": 100}, "invalid_filter", "filters.price_cents"),
        ({"price_cents": {}}, "invalid_filter", "filters.price_cents"),
        ({"price_cents": {"min": 1}}, "invalid_filter", "filters.price_cents"),
        ({"price_cents": {"gte": "1"}}, "invalid_filter", "filters.price_cents.gte"),
        ({"price_cents": {"lt": True}}, "invalid_filter", "filters.price_cents.lt"),
        ({"price_cents": {"lt": None}}, "invalid_filter", "filters.price_cents.lt"),
        ({"updated_us": {"gt": float("nan")}}, "invalid_filter", "filters.updated_us.gt"),
        ({"brand": ["Acme"], "price_cents": {"gte": [1]}}, "invalid_filter", "filters.price_cents.gte"),
    ],
)
def test_an_invalid_filter_names_its_field(columns, filters, code, field):
    with pytest.raises(InvalidRequest) as caught:
        columns.mask(filters)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_an_unknown_facet_or_sort_names_its_field(columns):
    with pytest.raises(InvalidRequest) as caught:
        columns.facet("colour", np.arange(3))
    assert (caught.value.code, caught.value.field) == ("unknown_field", "facets.colour")
    with pytest.raises(InvalidRequest) as caught:
        columns.order(np.arange(3), "cheapest", np.zeros(3), np.zeros(3), 3)
    assert (caught.value.code, caught.value.field) == ("invalid_sort", "sort")


def test_a_single_word_is_a_list_of_one(columns):
    assert columns.mask({"brand": "Acme"}).tolist() == columns.mask({"brand": ["Acme"]}).tolist()


def test_an_empty_choice_keeps_nothing_and_no_filters_keep_all(columns):
    assert not columns.mask({"brand": []}).any()
    assert columns.mask({}) is columns.mask(None) is None


def test_a_category_is_a_whole_path_and_not_a_prefix_of_letters():
    columns = ItemColumns(make_items([{"item_id": "a", "category": ["Toy"]}, {"item_id": "b", "category": ["Toys"]}]))
    assert columns.mask({"category": ["Toy"]}).tolist() == [True, False]


@pytest.mark.parametrize("limit", [10**30, -(10**30), float("inf"), 1e300, 2.5])
def test_any_finite_or_infinite_bound_is_compared_as_a_number(columns, records, limit):
    expected = [i["price_cents"] is not None and i["price_cents"] >= limit for i in records]
    assert columns.mask({"price_cents": {"gte": limit}}).tolist() == expected


def test_a_facet_shows_at_most_the_limit_of_values(columns):
    assert len(columns.facet("item_id", np.arange(columns.n))) == 100
    assert columns.facet("brand", np.arange(columns.n), limit=2) == columns.facet("brand", np.arange(columns.n))[:2]


def test_a_catalog_of_one_bare_item_filters_counts_and_sorts():
    columns = ItemColumns(make_items([{"item_id": "a"}]))
    rows = np.array([0])
    assert columns.mask({"available": True, "attributes.color": ["red"]}).tolist() == [False]
    assert [columns.facet(f, rows) for f in ("brand", "category", "attributes.color")] == [[], [], []]
    assert columns.facet("price_cents", rows) == {"min": None, "max": None, "ranges": []}
    assert columns.facet("available", rows) == [{"value": True, "count": 1}]
    assert [columns.order(rows, sort, rows, rows, 1).tolist() for sort in SORTS] == [[0]] * 5
    assert columns.records(rows)[0]["attributes"] == {}
