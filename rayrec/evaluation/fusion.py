"""Fitting fusion weights on rated queries, and judging the fit on queries it has not seen.

With the few dozen queries a shop rates, the best point of a grid is mostly luck. So a point must beat
the default by more than one standard error of their paired difference, or the default stays.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from rayrec.config import FusionWeights
from rayrec.evaluation.metrics import ndcg
from rayrec.retrieval import hybrid
from rayrec.retrieval.base import Candidates, top_k

GRID = [
    FusionWeights(dense=dense, k=k)
    for dense, k in product((0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6), (10.0, 20.0, 60.0, 100.0))
]
_DEFAULT = GRID.index(FusionWeights())


def score_grid(candidates: Sequence[Candidates], ratings: Sequence[Mapping[int, float]], k: int = 10) -> np.ndarray:
    """nDCG@k, float64 (G, Q), of every grid point on every query. ratings: row -> rating, per query."""
    scores = np.zeros((len(GRID), len(candidates)))
    for q, (found, rated) in enumerate(zip(candidates, ratings, strict=True)):
        named = {str(row): rating for row, rating in rated.items()}
        for g, weights in enumerate(GRID):
            fused = np.sum(list(hybrid.fuse(found, weights).values()), axis=0)
            scores[g, q] = ndcg([str(row) for row in found.rows[top_k(fused, k)]], named, k)
    return scores


def fit(scores: np.ndarray) -> int:
    """The grid point to use, given nDCG (G, Q) on the queries to fit."""
    gains = scores - scores[_DEFAULT]
    lower = gains.mean(1) - gains.std(1) / np.sqrt(scores.shape[1])
    best = int(lower.argmax())
    return best if lower[best] > 0 else _DEFAULT


def out_of_fold(scores: np.ndarray, seed: int, folds: int = 5) -> np.ndarray:
    """nDCG (Q,) of each query under weights fitted without its fold."""
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    out = np.empty(scores.shape[1])
    for fold in np.array_split(order, folds):
        rest = np.setdiff1d(order, fold)
        out[fold] = scores[fit(scores[:, rest])][fold]
    return out
