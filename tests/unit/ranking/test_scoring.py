"""The parts of a score, worked by hand on four items whose vectors and baskets are given."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from rayrec.ranking import scoring
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.dense import DenseIndex
from rayrec.retrieval.filters import ItemColumns
from rayrec.retrieval.lexical import LexicalIndex
from rayrec.retrieval.shards import Shard, Shards
from tests.fakes import make_items

# 0 and 1 are alike, 2 is at a right angle to both, 3 is opposite to 0.
# 0 is bought with 2, and half as often with 3.
VECTORS = np.array([[1, 0, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0]], np.float32)
TOGETHER = np.array([[0, 0, 0.4, 0.2], [0, 0, 0, 0], [0.4, 0, 0, 0], [0.2, 0, 0, 0]], np.float32)
POPULARITY = np.array([0.2, 0.4, 0.0, 1.0], np.float32)
REPEAT = np.array([0.5, 0.0, 0.0, 0.25], np.float32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lexical")
    LexicalIndex.build(directory, [""] * 4, [""] * 4)
    behavior = replace(BehaviorIndex.empty(4), popularity=POPULARITY, repeat=REPEAT, neighbours=sp.csr_matrix(TOGETHER))
    columns = ItemColumns(make_items([{"item_id": i} for i in "abcd"]))
    return Shards([Shard(DenseIndex.build(VECTORS, "flat"), LexicalIndex.load(directory))], columns, behavior)


def _recommend(shards, history, ages=None, allowed=None):
    ages = np.zeros(len(history)) if ages is None else np.array(ages, float)
    taste = scoring.Taste.of(np.array(history, np.int64), ages, shards.vectors)
    near = [] if taste is None else shards.nearest(taste.vector.astype(np.float32), scoring.NEAREST, allowed)
    return scoring.recommend(taste, np.array(near, np.int64), shards.behavior, _cosine(shards, taste), allowed)


def _cosine(shards, taste):
    return lambda rows: shards.vectors(rows) @ taste.vector


def _similar(shards, row, allowed=None):
    near = shards.nearest(VECTORS[row], scoring.NEAREST, allowed)
    return scoring.similar(row, VECTORS[row], near, shards.behavior, shards.vectors, allowed)


def test_total_adds_the_parts():
    parts = {"a": np.array([1.0, 2.0]), "b": np.array([0.5, -1.0])}
    assert scoring.total(parts).tolist() == [1.5, 1.0]


def test_similar_is_cosine_and_being_bought_together(shards):
    rows, parts = _similar(shards, 0)
    assert rows.tolist() == [1, 2, 3]
    assert parts["content"] == pytest.approx([0.8, 0, -1])
    assert parts["together"] == pytest.approx([0, 0.3, 0.15])  # relative to the strongest companion


def test_similar_of_an_item_bought_alone_is_content_only(shards):
    _, parts = _similar(shards, 1)
    assert parts["together"].tolist() == [0, 0, 0]


def test_similar_returns_only_what_is_allowed(shards):
    rows, parts = _similar(shards, 0, np.array([True, False, False, True]))
    assert rows.tolist() == [3]
    assert parts["together"] == pytest.approx([0.3])


def test_a_stranger_gets_what_is_popular(shards):
    rows, parts = _recommend(shards, [])
    assert rows.tolist() == [0, 1, 2, 3]
    assert {name: part.tolist() for name, part in parts.items()} == {"popular": POPULARITY.tolist()}


def test_recommend_weighs_each_part_by_hand(shards):
    rows, parts = _recommend(shards, [0])
    assert rows.tolist() == [0, 1, 2, 3]
    assert parts["repeat"] == pytest.approx([3, 0, 0, 0])  # 3 is not one of theirs
    assert parts["together"] == pytest.approx([0, 0, 0.3, 0.15])
    assert parts["content"] == pytest.approx([0, 0.2 * 0.8, 0, 0])  # what they own is no news
    assert parts["popular"] == pytest.approx([0.02, 0.04, 0, 0.1])


def test_older_events_weigh_half_every_eighty_days_from_the_latest(shards):
    _, parts = _recommend(shards, [0, 3, 3, 3], ages=[120, 40.2, 40.1, 41])
    # 0 with mass 1/2 is bought again by .5, 3 with some 2 (once a day) by .25, both by .375 on average
    three = 1 + 0.5 ** (1 / 80)
    assert parts["repeat"] == pytest.approx([3 * 0.5 * (0.5 + 0.375) / (three * (0.25 + 0.375)), 0, 0, 3])
    # 0 with mass 1/2 brings .2 to 2 and .1 to 3; 3 brings .2 of its mass to 0
    assert parts["together"] == pytest.approx([0.3, 0, 0.3 * 0.2 / (0.2 * three), 0.3 * 0.1 / (0.2 * three)])


def test_a_trained_model_adds_its_candidates_and_its_part(shards):
    expected = scoring.Learned(np.array([0.1, 0.9, 0.5, -0.1], np.float32), 2.0)
    taste = scoring.Taste.of(np.array([0]), np.zeros(1), shards.vectors)
    rows, parts = scoring.recommend(
        taste, np.empty(0, np.int64), shards.behavior, _cosine(shards, taste), None, expected
    )
    assert rows.tolist() == [0, 1, 2, 3]
    assert parts["learned"] == pytest.approx([2 * 0.2, 2, 2 * 0.6, 0])


def test_a_shopper_who_only_searched_gets_what_the_model_expects(shards):
    expected = scoring.Learned(np.array([0.0, 1.0, 0.5, 0.0], np.float32), 1.0)
    nothing = np.empty(0, np.int64)
    rows, parts = scoring.recommend(None, nothing, shards.behavior, _cosine(shards, None), None, expected)
    assert rows.tolist() == [0, 1, 2, 3]
    assert set(parts) == {"popular", "learned"}
    assert parts["learned"].tolist() == [0, 1, 0.5, 0]
    assert scoring.total(parts).argmax() == 1


def test_recommend_returns_only_what_is_allowed(shards):
    rows, parts = _recommend(shards, [0], allowed=np.array([False, True, False, True]))
    assert rows.tolist() == [1, 3]
    assert parts["together"] == pytest.approx([0, 0.3])


@pytest.mark.parametrize("history", [[], [0, 2]])
def test_nothing_allowed_recommends_nothing(shards, history):
    rows, parts = _recommend(shards, history, allowed=np.zeros(4, bool))
    assert len(rows) == len(scoring.total(parts)) == 0


def test_the_companion_is_the_item_of_the_history_bought_with_it_most(shards):
    assert scoring.companions(shards.behavior, 0, np.array([3, 2, 3])) == 2
    assert scoring.companions(shards.behavior, 1, np.array([0, 2])) is None
    assert scoring.companions(shards.behavior, 1, np.empty(0, np.int64)) is None
