"""Joining words and vectors: the candidate set M(q), and one score for each item of it.

M(q) = all lexical matches, and all items above a dense floor. It depends on nothing but the query and
the index, so filters, facets and pages agree by construction.
"""

from collections.abc import Sequence

import numpy as np

from rayrec.config import FusionWeights
from rayrec.retrieval.base import Candidates, Found

LEXICAL_CANDIDATES = 100_000
# Half-way from what the query has in common with items in general up to its best match: nDCG@10 on
# chorus_icecat is unchanged by it, and by any fixed cosine up to .4 (benchmarks/LOG.md).
_FLOOR_SHARE = 0.5


def dense_floor(best: float, background: float) -> float:
    """The least cosine that counts as a match, given the query's best one and its mean over items in general."""
    return background + _FLOOR_SHARE * (best - background) - 1e-6  # so that the best one always counts


def join(shards: Sequence[Found], background: float, n: int, there: np.ndarray | None = None) -> Candidates:
    """M(q) over all shards of a catalog of `n` items. there: bool (n,), which of them may be in it; None for all.

    A shard may be ahead, and find items of rows from n on: they are left out.
    The floor of the best match anywhere is at or above every shard's own, so no shard has left an item out.
    """
    floor = dense_floor(max((found.best for found in shards), default=-1.0), background)
    lexical = np.zeros(n, np.float32)
    dense = np.zeros(n, np.float32)
    in_dense = np.zeros(n, bool)
    for found in shards:
        known = found.words < n
        lexical[found.words[known]] = found.bm25[known]
        above = (found.cosine >= floor) & (found.near < n)
        dense[found.near[above]] = found.cosine[above]
        in_dense[found.near[above]] = True
    if there is not None:
        lexical[~there] = 0
        in_dense &= there
        dense[~there] = 0
    rows = np.flatnonzero((lexical > 0) | in_dense)
    exact = all(found.all_words and found.all_near for found in shards)
    return Candidates(rows, lexical[rows], dense[rows], in_dense[rows], exact)


def fuse(candidates: Candidates, weights: FusionWeights) -> dict[str, np.ndarray]:
    """The parts `lexical` and `dense` of weighted reciprocal rank fusion, float64 (M,).

    Their sum is in [0, 1]: 1 for an item first in both lists; one missing from a list gets nothing from it.
    """
    lexical = _reciprocal_ranks(candidates.lexical, candidates.lexical > 0, weights.k)
    dense = _reciprocal_ranks(candidates.dense, candidates.in_dense, weights.k)
    scale = weights.k + 1
    return {"lexical": scale * (1 - weights.dense) * lexical, "dense": scale * weights.dense * dense}


def _reciprocal_ranks(scores: np.ndarray, member: np.ndarray, k: float) -> np.ndarray:
    """1 / (k + rank) of the members, rank 1 the highest score; 0 for the others.

    Equal scores share the rank of their first, so that what one list cannot tell apart the other decides.
    """
    out = np.zeros(len(scores))
    members = np.flatnonzero(member)
    order = members[np.argsort(-scores[members], kind="stable")]
    descending = scores[order]
    first = np.ones(len(order), bool)
    first[1:] = descending[1:] != descending[:-1]
    ranks = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    out[order] = 1.0 / (k + 1 + ranks)
    return out
