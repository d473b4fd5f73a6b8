import numpy as np
import pytest

from rayrec.config import FusionWeights
from rayrec.retrieval.base import Candidates, Found
from rayrec.retrieval.hybrid import dense_floor, fuse, join

WEIGHTS = FusionWeights(dense=0.3, k=60)


def _found(words=(), bm25=(), near=(), cosine=(), all_words=True, all_near=True):
    return Found(
        np.array(words, np.int64),
        np.array(bm25, np.float32),
        all_words,
        np.array(near, np.int64),
        np.array(cosine, np.float32),
        all_near,
        max(cosine, default=-1.0),
    )


def test_fusion_of_four_items_by_hand():
    # by words: row 7 first, row 2 second; by vectors: row 2 first, row 9 second, row 7 third; row 5 in neither
    candidates = Candidates(
        rows=np.array([2, 5, 7, 9]),
        lexical=np.array([1.5, 0.0, 4.0, 0.0], np.float32),
        dense=np.array([0.9, 0.1, 0.5, 0.6], np.float32),
        in_dense=np.array([True, False, True, True]),
    )
    parts = fuse(candidates, WEIGHTS)
    assert parts["lexical"] == pytest.approx([0.7 * 61 / 62, 0, 0.7, 0])
    assert parts["dense"] == pytest.approx([0.3, 0, 0.3 * 61 / 63, 0.3 * 61 / 62])


def test_first_in_both_lists_scores_one():
    parts = fuse(Candidates(np.array([3]), np.array([2.0]), np.array([0.4]), np.array([True])), WEIGHTS)
    assert sum(parts.values()) == pytest.approx([1.0])


def test_k_is_the_rank_that_halves_a_contribution():
    candidates = Candidates(np.arange(3), np.array([3.0, 2.0, 1.0]), np.zeros(3), np.zeros(3, bool))
    parts = fuse(candidates, FusionWeights(dense=0.0, k=1))
    assert parts["lexical"] == pytest.approx([1, 2 / 3, 1 / 2])


def test_equal_scores_share_a_rank_so_that_the_other_list_decides():
    words, cosine = np.array([2.0, 3.0, 2.0, 1.0]), np.array([0.5, 0.2, 0.9, 0.5])
    candidates = Candidates(np.array([4, 6, 8, 9]), words, cosine, np.ones(4, bool))
    parts = fuse(candidates, WEIGHTS)
    assert parts["lexical"] == pytest.approx([0.7 * 61 / 62, 0.7, 0.7 * 61 / 62, 0.7 * 61 / 64])
    assert parts["dense"] == pytest.approx([0.3 * 61 / 62, 0.3 * 61 / 64, 0.3, 0.3 * 61 / 62])


def test_no_candidates_fuse_to_nothing():
    parts = fuse(join([_found()], 0.0, 10), WEIGHTS)
    assert [len(part) for part in parts.values()] == [0, 0]


def test_join_keeps_every_match_of_either_list_once_by_row():
    joined = join([_found([8, 3, 5], [9.0, 4.0, 1.0], [5, 1], [0.8, 0.7])], 0.0, 10)
    assert joined.rows.tolist() == [1, 3, 5, 8]
    assert joined.lexical.tolist() == [0, 4, 1, 9]
    assert joined.dense == pytest.approx([0.7, 0, 0.8, 0])
    assert joined.in_dense.tolist() == [True, False, True, False]
    assert joined.exact


def test_join_without_vectors_or_without_words():
    words = join([_found([2, 1], [3.0, 1.0])], 0.0, 3)
    assert (words.rows.tolist(), words.lexical.tolist(), words.in_dense.any()) == ([1, 2], [1, 3], False)
    vectors = join([_found(near=[2, 1], cosine=[0.75, 0.5])], 0.0, 3)
    assert (vectors.rows.tolist(), vectors.dense.tolist(), vectors.lexical.any()) == ([1, 2], [0.5, 0.75], False)


def test_the_best_match_of_all_shards_sets_the_floor():
    # alone, the second shard's .4 would count (half of its best); beside a best of .9 the floor is .45
    shards = [_found(near=[0], cosine=[0.9]), _found([3], [2.0], near=[1, 3], cosine=[0.5, 0.4])]
    joined = join(shards, 0.0, 4)
    assert joined.rows.tolist() == [0, 1, 3]
    assert joined.in_dense.tolist() == [True, True, False]
    assert joined.dense == pytest.approx([0.9, 0.5, 0])


def test_a_cut_list_makes_the_join_inexact():
    assert not join([_found([1], [1.0], all_words=False), _found()], 0.0, 2).exact
    assert not join([_found(near=[1], cosine=[1.0], all_near=False)], 0.0, 2).exact


@pytest.mark.parametrize(("best", "background", "floor"), [(0.9, 0.1, 0.5), (0.3, 0.1, 0.2), (0.4, -0.2, 0.1)])
def test_dense_floor_is_half_way_up_to_the_best(best, background, floor):
    assert dense_floor(best, background) == pytest.approx(floor, abs=1e-5)


def test_the_best_match_counts_even_where_all_are_alike():
    assert dense_floor(0.7, 0.7) < 0.7
