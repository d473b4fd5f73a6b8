"""How faithful a cheaper encoder is to the one it stands for: the same directions, the same ranking, as good a ranking.

>>> report = fidelity(reference, cheaper, items, answers)      # doctest: +SKIP
>>> report.faithful()                                          # doctest: +SKIP
True
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rayrec.evaluation.metrics import ndcg

MIN_COSINE = 0.95
MIN_OVERLAP = 0.9
MAX_NDCG_LOSS = 0.02


@dataclass(frozen=True)
class Fidelity:
    """cosine: of the same query by both, mean and least; top10_overlap: share of the reference's ten nearest items
    that the cheaper one has too; ndcg10: of each, over queries whose answers are known."""

    queries: int
    items: int
    cosine_mean: float
    cosine_min: float
    top10_overlap: float
    ndcg10_reference: float
    ndcg10: float

    def faithful(self) -> bool:
        return (
            self.cosine_mean >= MIN_COSINE
            and self.top10_overlap >= MIN_OVERLAP
            and self.ndcg10 >= self.ndcg10_reference - MAX_NDCG_LOSS
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "faithful": self.faithful()}


def fidelity(
    reference: np.ndarray,
    found: np.ndarray,
    items: np.ndarray,
    answers: Sequence[set[int]],
    found_items: np.ndarray | None = None,
) -> Fidelity:
    """Compare query vectors float32 (Q, D) of two encoders over items float32 (N, D).

    answers: rows of items that each query should find. found_items: those of the cheaper encoder, if it encodes
    items too; its queries then search these.
    """
    own = items if found_items is None else found_items
    pairs = [(reference, found)] if found_items is None else [(reference, found), (items, found_items)]
    cosine = np.concatenate([(a * b).sum(1) for a, b in pairs])
    wanted, got = _nearest(reference, items), _nearest(found, own)
    return Fidelity(
        queries=len(reference),
        items=len(items),
        cosine_mean=round(float(cosine.mean()), 4),
        cosine_min=round(float(cosine.min()), 4),
        top10_overlap=round(float(_shares(wanted, got).mean()), 4),
        ndcg10_reference=_ndcg(wanted, answers),
        ndcg10=_ndcg(got, answers),
    )


def top10_shares(reference: np.ndarray, found: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Of each query (Q,), the share of the reference's ten nearest items that the other encoder finds."""
    return _shares(_nearest(reference, items), _nearest(found, items))


def _shares(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    pairs = zip(wanted.tolist(), got.tolist(), strict=True)
    return np.array([len(set(a) & set(b)) / len(a) for a, b in pairs])


def _nearest(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.argsort(-(queries @ items.T), axis=1, kind="stable")[:, :10]


def _ndcg(ranked: np.ndarray, answers: Sequence[set[int]]) -> float:
    scores = [
        ndcg([str(row) for row in rows], {str(row): 1.0 for row in right})
        for rows, right in zip(ranked.tolist(), answers, strict=True)
    ]
    return round(float(np.mean(scores)), 4)
