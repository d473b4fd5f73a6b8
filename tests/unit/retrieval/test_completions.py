import numpy as np

from rayrec.retrieval.analyzers import analyzer
from rayrec.retrieval.completions import Completions
from rayrec.retrieval.filters import ItemColumns
from tests.fakes import make_items


def _texts(completions, prefix, k=10):
    return [found.text for found in completions.complete(prefix, k)]


def test_a_phrase_is_found_from_the_start_of_any_word_weightiest_first():
    completions = Completions({"frozen pizza": 2.0, "pizza sauce": 3.0, "apple": 9.0})
    assert _texts(completions, "piz") == ["pizza sauce", "frozen pizza"]
    assert _texts(completions, "frozen  PI") == ["frozen pizza"]
    assert _texts(completions, "piz", k=1) == ["pizza sauce"]
    assert _texts(completions, "izza") == _texts(completions, " ") == _texts(completions, "pizzas") == []


def test_a_phrase_that_repeats_a_word_is_offered_once():
    assert _texts(Completions({"mac and mac": 1.0}), "mac") == ["mac and mac"]


def test_titles_brands_and_last_categories_weigh_what_their_items_do():
    items = make_items(
        [
            {"item_id": "a", "title": "Thin Pizza, 12 oz", "brand": "Acme", "category": ["Food", "Pizza"]},
            {"item_id": "b", "title": "Thick Pizza", "brand": None, "category": ["Food", None]},
            {"item_id": "c", "title": "Pizza", "brand": "Acme", "category": []},
        ]
    )
    completions = Completions.build(ItemColumns(items), np.array([0.5, 0.25, 0.0], np.float32))
    assert _texts(completions, "pi") == ["pizza", "thin pizza 12 oz", "thick pizza"]
    assert _texts(completions, "acm") == ["acme"]
    assert _texts(completions, "fo") == ["food"]


def test_chinese_is_completed_from_any_word_in_any_width():
    weights = {"磁吸手机壳 iphone15": 2.0, "手机支架": 1.0, "耳机": 3.0}
    completions = Completions(weights, analyzer("zh").starts)
    assert _texts(completions, "手机") == ["磁吸手机壳 iphone15", "手机支架"]
    assert _texts(completions, "手机壳") == _texts(completions, "ｉＰｈｏｎｅ") == ["磁吸手机壳 iphone15"]
    assert _texts(completions, "机") == []


def test_phrases_that_nobody_says_any_more_leave_nothing(monkeypatch):
    monkeypatch.setattr("rayrec.retrieval.completions._MAX_PHRASES", 20)
    first = {"title": "Red pizza", "brand": "Acme", "category": ["Food"]}
    completions = Completions.build(ItemColumns(make_items([{"item_id": "a", **first}])), np.array([0.5], np.float32))
    before = first
    for n in range(100):
        now = {**first, "title": f"Pizza no {n}, red"}
        completions.change(before, now, 0.5)
        assert _texts(completions, "piz") == _texts(completions, "red") == [f"pizza no {n} red"]
        before = now
    assert len(completions._phrases) == len(completions._starts) - 3 == 3
    completions.change(before, None, 0.5)
    assert [_texts(completions, prefix) for prefix in ("piz", "acme", "food")] == [[], [], []]
    completions.change(None, first, 0.5)
    assert _texts(completions, "piz") == ["red pizza"]


def test_equally_wanted_phrases_come_by_name_whenever_they_came():
    completions = Completions({"pizza b": 1.0, "pizza d": 1.0})
    completions.change(None, {"title": "Pizza C", "brand": "Pizza A", "category": None}, 1.0 - 1e-3)
    assert _texts(completions, "pizza", 3) == ["pizza a", "pizza b", "pizza c"]
