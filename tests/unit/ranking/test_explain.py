import numpy as np
import pytest

from rayrec.ranking.explain import reasons


def _texts(*names):
    return {name: lambda name=name: f"by {name}" for name in names}


def test_reasons_are_shares_largest_first():
    parts = {"dense": np.array([0.0, 0.1]), "lexical": np.array([0.0, 0.3])}
    assert reasons(parts, 1, _texts("dense", "lexical")) == [
        {"part": "lexical", "weight": 0.75, "text": "by lexical"},
        {"part": "dense", "weight": 0.25, "text": "by dense"},
    ]


def test_equal_shares_are_in_order_of_name():
    parts = {name: np.array([0.2]) for name in ("c", "a", "b")}
    found = reasons(parts, 0, _texts("a", "b", "c"))
    assert [reason["part"] for reason in found] == ["a", "b", "c"]
    assert [reason["weight"] for reason in found] == [0.3333] * 3


def test_a_part_under_five_hundredths_is_neither_shown_nor_worded():
    parts = {"much": np.array([0.96]), "little": np.array([0.04])}
    texts = {**_texts("much"), "little": lambda: pytest.fail("worded")}
    assert [(reason["part"], reason["weight"]) for reason in reasons(parts, 0, texts)] == [("much", 0.96)]


def test_a_part_that_speaks_against_takes_no_share():
    parts = {"content": np.array([-0.5]), "together": np.array([0.25])}
    assert [(r["part"], r["weight"]) for r in reasons(parts, 0, _texts("content", "together"))] == [("together", 1.0)]


def test_an_item_without_score_has_no_reasons():
    assert reasons({"popular": np.array([0.0])}, 0, _texts("popular")) == []
