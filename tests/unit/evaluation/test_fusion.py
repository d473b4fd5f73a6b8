"""Fitting keeps the default unless something is clearly better, and never sees the fold it is judged on."""

import numpy as np

from rayrec.config import FusionWeights
from rayrec.evaluation import fusion
from rayrec.retrieval.base import Candidates

DEFAULT = fusion.GRID.index(FusionWeights())


def test_noise_does_not_move_the_weights():
    scores = np.full((len(fusion.GRID), 40), 0.5)
    scores[3] += np.random.default_rng(0).normal(0.001, 0.3, 40)
    assert fusion.fit(scores) == DEFAULT


def test_a_clear_gain_moves_them():
    scores = np.full((len(fusion.GRID), 40), 0.5)
    scores[3] += 0.1
    assert fusion.fit(scores) == 3


def test_out_of_fold_never_fits_on_the_query_it_scores():
    # point 3 wins everywhere but on query 0, where it is ruinous: fitted without query 0, it is chosen for it
    scores = np.full((len(fusion.GRID), 20), 0.5)
    scores[3] = 0.7
    scores[3, 0] = 0.0
    judged = fusion.out_of_fold(scores, seed=1)
    assert judged[0] == 0.0
    assert (judged[1:] == 0.7).all()


def test_grid_scores_follow_the_lists_each_point_trusts():
    # row 0 wins by words, row 1 by vectors; only row 1 is relevant
    found = Candidates(
        rows=np.array([0, 1]),
        lexical=np.array([2.0, 1.0], np.float32),
        dense=np.array([0.4, 0.9], np.float32),
        in_dense=np.array([True, True]),
    )
    scores = fusion.score_grid([found], [{1: 1.0}])
    assert scores[fusion.GRID.index(FusionWeights(dense=0.6, k=60.0)), 0] == 1.0
    assert scores[fusion.GRID.index(FusionWeights(dense=0.0, k=60.0)), 0] < 1.0
