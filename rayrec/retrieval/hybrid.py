"""Joining words and vectors: the candidate set M(q), and one score for each item of it.

M(q) = all lexical matches, and all items above a dense floor. It depends on nothing but the query and
the index, so filters, facets and pages agree by construction.
"""

import numpy as np

from rayrec.config import FusionWeights
from rayrec.retrieval.base import Candidates, top_k

LEXICAL_CANDIDATES = 100_000
# Half-way from what the query has in common with items in general up to its best match: nDCG@10 on
# chorus_icecat is unchanged by it, and by any fixed cosine up to .4 (benchmarks/LOG.md).
_FLOOR_SHARE = 0.5


def dense_floor(best: float, background: float) -> float:
    """The least cosine that counts as a match, given the query's best one and its mean over items in general."""
    return background + _FLOOR_SHARE * (best - background) - 1e-6  # so that the best one always counts


def join(
    lexical: tuple[np.ndarray, np.ndarray, bool] | None, dense: tuple[np.ndarray, np.ndarray, bool] | None
) -> Candidates:
    """M(q) of (rows, BM25, complete) and (rows, cosine, complete) of the items above the floor."""
    words, bm25, all_words = lexical or (np.empty(0, np.int64), np.empty(0, np.float32), True)
    near, cosine, all_near = dense or (np.empty(0, np.int64), np.empty(0, np.float32), True)
    rows = np.union1d(words, near)
    lexical_of = np.zeros(len(rows), np.float32)
    lexical_of[np.searchsorted(rows, words)] = bm25
    dense_of = np.zeros(len(rows), np.float32)
    in_dense = np.zeros(len(rows), bool)
    at = np.searchsorted(rows, near)
    dense_of[at], in_dense[at] = cosine, True
    return Candidates(rows, lexical_of, dense_of, in_dense, all_words and all_near)


def fuse(candidates: Candidates, weights: FusionWeights) -> dict[str, np.ndarray]:
    """The parts `lexical` and `dense` of weighted reciprocal rank fusion, float64 (M,).

    Their sum is in [0, 1]: 1 for an item first in both lists; one missing from a list gets nothing from it.
    """
    lexical = _reciprocal_ranks(candidates.lexical, candidates.lexical > 0, weights.k)
    dense = _reciprocal_ranks(candidates.dense, candidates.in_dense, weights.k)
    scale = weights.k + 1
    return {"lexical": scale * (1 - weights.dense) * lexical, "dense": scale * weights.dense * dense}


def _reciprocal_ranks(scores: np.ndarray, member: np.ndarray, k: float) -> np.ndarray:
    """1 / (k + rank) of the members, rank 1 the highest score, ties by place; 0 for the others."""
    out = np.zeros(len(scores))
    order = top_k(np.where(member, scores, -np.inf), int(member.sum()))
    out[order] = 1.0 / (k + 1 + np.arange(len(order)))
    return out
