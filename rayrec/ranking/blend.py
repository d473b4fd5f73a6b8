"""How much a trained model weighs in what the service recommends, chosen on held-out shoppers.

The same scoring as the service's, over arrays: what is counted (bought again, together, popular, like what they buy)
plus the model's part.
"""

from collections.abc import Callable

import numpy as np

from rayrec.data.histories import DAY_US, Histories
from rayrec.ranking import scoring
from rayrec.retrieval.base import top_k
from rayrec.retrieval.behavior import BehaviorIndex

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
"""Of the model's part; the others keep theirs, which add up to at most 1.6."""
Score = Callable[[Histories], np.ndarray]
Case = tuple[str, int, int]
Prepared = tuple[np.ndarray, np.ndarray, np.ndarray]
"""rows int32, and float32 of each: what is counted, what the model adds at weight 1"""


class Blend:
    """behavior: of what was learned from; vectors: float32 (N, D) of the items; model: scores of all items.

    without_had: items that a shopper had are not shown. keep: for other weights on the same cases, told apart by their
    shopper's id, newest event and length; some 100 KiB each.
    """

    def __init__(
        self, behavior: BehaviorIndex, vectors: np.ndarray, model: Score | None, *, without_had: bool, keep: bool = True
    ):
        self._behavior, self._vectors, self._model = behavior, vectors, model
        self._without_had, self._keep = without_had, keep
        self._known: dict[Case, Prepared] = {}

    def score(self, weight: float) -> Score:
        """As the service ranks, with this weight of the model; -inf for what is no candidate."""

        def scores(histories: Histories) -> np.ndarray:
            out = np.full((len(histories), len(self._vectors)), -np.inf, np.float32)
            cases = _cases(histories)
            lacking = np.array([h for h, case in enumerate(cases) if case not in self._known], np.int64)
            made = self._prepare(histories.take(lacking)) if len(lacking) else {}
            if self._keep:
                self._known.update(made)
            for h, case in enumerate(cases):
                rows, counted, learned = made[case] if case in made else self._known[case]
                out[h, rows] = counted + weight * learned
            return out

        return scores

    def _prepare(self, histories: Histories) -> "dict[Case, Prepared]":
        made = {}
        expected = None if self._model is None else self._model(histories)
        for h, case in enumerate(_cases(histories)):
            part = slice(histories.start[h], histories.start[h + 1])
            there = histories.rows[part] >= 0
            rows, ts = histories.rows[part][there], histories.ts_us[part][there]
            ages = np.maximum(0, self._behavior.now_us - ts) / DAY_US
            taste = scoring.Taste.of(rows, ages, lambda wanted: self._vectors[wanted])
            cosines = np.empty(0, np.float32)
            allowed = None
            if self._without_had:
                allowed = np.ones(len(self._vectors), bool)
                allowed[rows] = False
            near = np.empty(0, np.int64)
            if taste is not None:
                cosines = self._vectors @ taste.vector
                near = top_k(cosines if allowed is None else np.where(allowed, cosines, -np.inf), scoring.NEAREST)
            learned = None
            if expected is not None and histories.lengths[h]:
                learned = scoring.Learned(expected[h], 1.0)
            found, parts = scoring.recommend(taste, near, self._behavior, cosines.__getitem__, allowed, learned)
            own = parts.pop("learned", np.zeros(len(found)))
            made[case] = (found.astype(np.int32), scoring.total(parts).astype(np.float32), own.astype(np.float32))
        return made


def _cases(histories: Histories) -> list[Case]:
    """What tells histories apart: whose, until when, and how long."""
    last = np.maximum(histories.start[1:] - 1, 0)
    ends = np.where(histories.lengths > 0, histories.ts_us[last] if len(histories.ts_us) else 0, -1)
    return list(zip(histories.users.tolist(), ends.tolist(), histories.lengths.tolist(), strict=True))
