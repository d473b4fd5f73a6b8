"""Signals by hand: of the query, of the shopper, and how they become parts of a score."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from rayrec.config import FusionWeights, Signal
from rayrec.ranking import signals
from rayrec.ranking.scoring import Learned, Taste
from rayrec.retrieval.base import Candidates
from rayrec.retrieval.behavior import BehaviorIndex

VECTORS = np.array([[1, 0], [0.6, 0.8], [-1, 0], [0, 1]], np.float32)


def candidates(bm25: list[float], cosine: list[float]) -> Candidates:
    n = len(bm25)
    return Candidates(np.arange(n), np.array(bm25, np.float32), np.array(cosine, np.float32), np.array(cosine) > 0)


def shopper(taste: Taste | None, learned: Learned | None, rows: list[int]) -> dict[str, np.ndarray]:
    behavior = replace(BehaviorIndex.empty(4), repeat=np.array([0.5, 0.0, 0.0, 0.25], np.float32))
    return signals.of_shopper(np.array(rows), taste, learned, behavior, lambda wanted: VECTORS[wanted])


def test_words_and_vectors_are_shares_of_the_best_match() -> None:
    found = signals.of_query(candidates([8, 2, 0], [0.3, 0.6, 0]), np.full(3, -1), np.array([0.1, 0.2, 0.3]), None)

    assert found["bm25"].tolist() == [1, 0.25, 0]
    assert found["cosine"].tolist() == pytest.approx([0.5, 1, 0])
    assert found["popularity"].tolist() == [0.1, 0.2, 0.3]
    assert "image" not in found


def test_a_price_is_dear_or_cheap_among_the_candidates_and_unknown_is_in_the_middle() -> None:
    prices = np.array([99, 999, np.iinfo(np.int64).min, 99])
    found = signals.of_query(candidates([1] * 4, [0] * 4), prices, np.zeros(4), None)["price"]

    # logarithms log 100, log 1000, log 100: deviations from their mean -1, 2, -1 over sqrt 2; of three
    assert found == pytest.approx(np.array([-1, 2, 0, -1]) / np.sqrt(2) / 3)


def test_one_price_for_all_says_nothing() -> None:
    found = signals.of_query(candidates([1, 1], [0, 0]), np.array([500, 500]), np.zeros(2), None)

    assert found["price"].tolist() == [0, 0]


def test_pictures_are_a_signal_of_their_own() -> None:
    found = signals.of_query(candidates([1, 1], [0, 0]), np.full(2, -1), np.zeros(2), np.array([0.2, 0.9]))

    assert found["image"].tolist() == [0.2, 0.9]


def test_a_shopper_is_what_they_have_and_what_a_model_expects() -> None:
    taste = Taste.of(np.array([0, 0, 3]), np.array([0.0, 1.0, 0.0]), lambda wanted: VECTORS[wanted])
    learned = Learned(np.array([5, 9, 7, 0], np.float32), 4.0)

    found = shopper(taste, learned, [0, 1, 2])

    assert found["repeat"].tolist() == [1, 0, 0]
    assert found["taste"][2] == 0
    assert found["taste"][0] > 0
    assert found["learned"].tolist() == [0, 1, 0.5]


def test_of_a_stranger_nothing_is_known() -> None:
    assert shopper(None, None, [0, 1]) == {}


def test_weighed_signals_add_up_in_their_part_and_what_is_not_known_counts_nothing() -> None:
    told = {"bm25": np.array([1.0, 0.5]), "price": np.array([0.0, 1.0])}

    parts = signals.weigh(told, {"bm25": 0.5, "price": -0.1, "taste": 3.0, "popularity": 0.0})

    assert {name: values.tolist() for name, values in parts.items()} == {"lexical": [0.5, 0.25], "price": [0, -0.1]}


def test_every_signal_that_a_config_may_weigh_has_its_part() -> None:
    assert set(signals.PART) == set(get_args(Signal))
    assert set(signals.OF_SHOPPER) < set(signals.PART)
    with pytest.raises(ValueError, match="colour"):
        FusionWeights.model_validate({"signals": {"colour": 1.0}})
