"""nDCG by hand, and intervals that hold what they should."""

import math

import numpy as np
import pytest

from rayrec.evaluation.metrics import bootstrap_ci, bootstrap_ci_of_parts, judged, ndcg

RATINGS = {"a": 3, "b": 0, "c": 1, "d": 2}


def test_ndcg_equals_the_hand_worked_fraction():
    # gains 1 (c), 7 (a), 0 (unrated); ideal 7, 3, 1
    found = 1 / math.log2(2) + 7 / math.log2(3) + 0
    ideal = 7 / math.log2(2) + 3 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(["c", "a", "x"], RATINGS) == pytest.approx(found / ideal)


def test_ndcg_is_one_for_the_ideal_order_and_zero_without_relevant_items():
    assert ndcg(["a", "d", "c"], RATINGS) == pytest.approx(1)
    assert ndcg(["b", "x"], RATINGS) == 0
    assert ndcg(["b"], {"b": 0}) == 0
    assert ndcg([], RATINGS) == 0


def test_only_the_top_k_count():
    assert ndcg(["x", "y", "a"], RATINGS, k=2) == 0
    assert ndcg(["a", "x"], RATINGS, k=1) == pytest.approx(1)


def test_judged_is_the_rated_share_of_the_top():
    assert judged(["a", "b", "x", "y"], RATINGS) == 0.5
    assert judged([], RATINGS) == 0


def test_the_interval_covers_the_mean_at_about_its_level():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        low, high = bootstrap_ci(rng.normal(0.3, 1, 60), seed=trial, draws=500)
        inside += low <= 0.3 <= high
    assert 88 <= inside <= 100


def test_equal_pairs_have_an_empty_interval():
    assert bootstrap_ci(np.zeros(20)) == (0, 0)


def test_an_interval_of_parts_counts_each_part_alike():
    rng = np.random.default_rng(0)
    large, small = rng.normal(0.0, 1.0, 10_000), rng.normal(1.0, 0.1, 100)
    low, high = bootstrap_ci_of_parts([large, small])
    middle = (large.mean() + small.mean()) / 2
    # standard errors .01 of each, so .01 / sqrt(2) of the mean of both
    assert (low, high) == pytest.approx((middle - 1.96 * 0.00707, middle + 1.96 * 0.00707), abs=2e-3)
    assert bootstrap_ci_of_parts([large]) == pytest.approx(bootstrap_ci(large), abs=2e-3)
