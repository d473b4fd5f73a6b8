"""Pairs mined from a small catalog and its events."""

import numpy as np
import pytest

from rayrec.errors import SchemaError
from rayrec.fitting.pairs import Pair, Pairs, words
from tests.fakes import NOW_US, make_events, make_items

KINDS = ["wireless mouse", "usb cable", "usb hub", "frozen pizza", "rice noodles", "floor lamp", "oak desk",
         "wall clock", "tea pot", "hand soap", "bath towel", "dog leash"]  # fmt: skip


def shop():
    """120 items: ten of each kind, in twelve categories, in fifteen colours; their numbers are their own."""
    return make_items(
        {
            "item_id": f"i{n:03d}",
            "title": f"Acme {KINDS[n % 12]} {n}x",
            "category": ["Shop", f"Aisle of {KINDS[n % 12]}"],
            "attributes": [("color", f"shade{chr(97 + n % 15)}"), ("fits", "yes"), ("serial", f"only {n}")],
        }
        for n in range(120)
    )


@pytest.fixture(scope="module")
def pairs():
    return Pairs(shop())


def drawn(pairs, n=2_000, rows=None):
    rng = np.random.default_rng(0)
    draws = pairs.among(np.arange(pairs.n) if rows is None else rows)
    return [draws.draw(rng) for _ in range(n)]


def test_queries_recur_in_the_catalog_and_fit_their_item(pairs):
    queries = {source: {p.query for p in drawn(pairs) if p.source == source} for source in pairs.weights}
    assert set(queries) == {"title", "category", "attribute"}  # nothing is described, nobody came
    assert queries["title"] >= {"wireless", "mouse", "wireless mouse", "acme wireless", "acme wireless mouse"}
    assert "acme" not in queries["title"]  # all of them say it
    assert not any(c.isdigit() for q in queries["title"] for c in q)  # one of them says it
    assert queries["category"] == {f"aisle of {kind}" for kind in KINDS}
    assert queries["attribute"] == {f"shade{chr(97 + n)}" for n in range(15)}
    assert all(pairs.answers(pair.query, pair.row) for pair in drawn(pairs))


def test_rows_outside_of_those_allowed_are_never_drawn(pairs):
    rows = np.arange(0, 120, 7)
    assert {p.row for p in drawn(pairs, rows=rows)} <= set(rows.tolist())


def test_all_items_that_say_every_word_answer_a_query(pairs):
    assert pairs.answering("Wireless  MOUSE") == set(range(0, 120, 12))
    assert pairs.answering("usb cables") == set(range(1, 120, 12))
    assert pairs.answering("usb") == set(range(1, 120, 12)) | set(range(2, 120, 12))
    assert pairs.answering("usb mouse") == set()
    assert pairs.answering("shadea") == set(range(0, 120, 15))  # its attribute says it, its text does not
    assert pairs.answers("usb cable", 1)
    assert not pairs.answers("usb cable", 2)


def test_a_hard_negative_shares_a_word_and_does_not_answer(pairs):
    rng = np.random.default_rng(0)
    asked = Pair("usb cable", 1, "title")
    everything = pairs.among(np.arange(120))
    found = [everything.hard(asked, rng) for _ in range(200)]
    assert set(range(2, 120, 12)) <= set(found)  # the hubs
    assert sum(row % 12 == 2 for row in found) > 180
    few = pairs.among(np.array([13, 0, 1, 3]))  # no hub among them
    assert {few.hard(asked, rng) for _ in range(50)} == {0, 3}


def test_searches_and_baskets_are_asked_for_too():
    items = shop()
    searched = [
        {"session_id": "s", "type": "search", "query": "computer mouse", "ts_us": NOW_US},
        {"session_id": "s", "type": "view", "item_id": "i000", "ts_us": NOW_US + 60_000_000},
        {"session_id": "t", "type": "purchase", "item_id": "i001", "ts_us": NOW_US + 1},  # of another shopper
        {"session_id": "s", "type": "purchase", "item_id": "i002", "ts_us": NOW_US + 7_200_000_000},  # too late
    ]
    baskets = [
        {"session_id": f"b{n}", "type": "purchase", "item_id": item, "ts_us": NOW_US}
        for n in range(5)
        for item in ("i003", "i004")
    ]
    events = make_events([*searched, *baskets])
    found = {(p.query, p.row) for p in drawn(Pairs(items, events, {"searched": 1}), 50)}
    assert found == {("computer mouse", 0)}
    titles = items.column("title").to_pylist()
    together = {(p.query, p.row) for p in drawn(Pairs(items, events, {"together": 1}), 50)}
    assert together == {(titles[3], 4), (titles[4], 3)}
    assert Pairs(items, events, {"searched": 1}).answering("computer mouse") == {0}


def test_a_catalog_without_anything_to_ask_for_is_refused():
    with pytest.raises(SchemaError, match="no pairs can be mined"):
        Pairs(make_items([{"item_id": "a", "title": "one"}, {"item_id": "b", "title": "two"}]), sources={"title": 1})
    with pytest.raises(SchemaError, match=r"\['titel'\] are not known"):
        Pairs(shop(), sources={"titel": 1})


def test_words_fold_case_and_plurals_and_keep_joined_ones():
    assert words("USB-C Cables & Glass, 12.5 in") == ["usb-c", "cable", "glass", "12.5", "in"]
