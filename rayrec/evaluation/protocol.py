"""How recommenders are judged: the whole catalog is ranked, never a sample of it.

A wanted item stands behind every item that scores as high, so a scorer that cannot tell items apart finds nothing.

>>> judged = judge(test, score, n_items=12_101, learned=learned)       # doctest: +SKIP
>>> judged.figures()["ndcg@10"]                                        # doctest: +SKIP
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rayrec.data.histories import Cases, Histories
from rayrec.evaluation.metrics import bootstrap_ci

Score = Callable[[Histories], np.ndarray]
"""Histories -> (their number, items), higher is better; -inf and nan are never shown."""

CUTS = (5, 10, 20, 50)
COLD_EVENTS = 2
SHORT_EVENTS = 5
LONG_EVENTS = 20
_BLOCK = 256


@dataclass(frozen=True)
class Judged:
    """How each case went.

    values: metric -> float (C,); shown: cut -> int64 (N,), how often each item came among the first; slices: name ->
    bool (C,); shoppers: int64 (C,), whose case it is.
    """

    values: Mapping[str, np.ndarray]
    shown: Mapping[int, np.ndarray]
    slices: Mapping[str, np.ndarray]
    shoppers: np.ndarray

    def by_shopper(self, metric: str, where: str = "all") -> np.ndarray:
        """Float (H,): the mean of each shopper's cases in a slice. Cases of one shopper are alike, shoppers are not."""
        inside = self.slices[where]
        of_case = np.unique(self.shoppers[inside], return_inverse=True)[1]
        return np.bincount(of_case, self.values[metric][inside]) / np.maximum(np.bincount(of_case), 1)

    def figures(self, where: str = "all") -> dict[str, float]:
        """Means over the shoppers of a slice, and over all cases coverage and Gini of what was shown."""
        there = self.slices[where].any()
        found = {name: float(self.by_shopper(name, where).mean()) if there else float("nan") for name in self.values}
        if where == "all":
            for cut, counts in self.shown.items():
                found[f"coverage@{cut}"] = float((counts > 0).mean())
                found[f"gini@{cut}"] = gini(counts)
        return found

    def ci95(self, metric: str, where: str = "all") -> tuple[float, float]:
        """Of the mean, by bootstrap over the shoppers."""
        return bootstrap_ci(self.by_shopper(metric, where))

    def table(self, metrics: Sequence[str] = ("hr@10", "ndcg@10", "mrr", "recall@50")) -> list[dict[str, Any]]:
        """A row per slice that has cases."""
        return [
            {"slice": name, "cases": int(inside.sum()), **{m: self.figures(name)[m] for m in metrics}}
            for name, inside in self.slices.items()
            if inside.any()
        ]


def judge(
    cases: Cases,
    score: Score,
    *,
    n_items: int,
    learned: Histories | None = None,
    mask_seen: bool = True,
    cuts: Sequence[int] = CUTS,
) -> Judged:
    """Rank the whole catalog for each case.

    mask_seen: what a shopper has had already is not shown, unless it is wanted; of no use where people buy again.
    learned: what a model learned from; an item without an event in it is cold.
    """
    cuts = tuple(sorted({min(cut, n_items) for cut in cuts}))
    known = None if learned is None else np.bincount(learned.rows[learned.rows >= 0], minlength=n_items) > 0
    names = ["mrr", *(f"{metric}@{cut}" for cut in cuts for metric in ("hr", "recall", "ndcg"))]
    values = {name: np.zeros(len(cases)) for name in names}
    cold = np.zeros(len(cases), bool)
    shown = {cut: np.zeros(n_items, np.int64) for cut in cuts}
    lengths = cases.histories.lengths
    by_length = np.argsort(lengths, kind="stable")  # a model has less to pad
    for first in range(0, len(cases), _BLOCK):
        block = by_length[first : first + _BLOCK]
        part = cases.take(block)
        scores = np.array(score(part.histories), np.float32)
        if scores.shape != (len(block), n_items):
            raise ValueError(f"scores of {len(block)} histories have shape {scores.shape}, expected {n_items} each")
        np.nan_to_num(scores, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        of_case = np.repeat(np.arange(len(block)), np.diff(part.wanted_start))
        wanted_scores = scores[of_case, part.wanted]
        if mask_seen:
            seen = part.histories.rows >= 0
            scores[np.repeat(np.arange(len(block)), part.histories.lengths)[seen], part.histories.rows[seen]] = -np.inf
            scores[of_case, part.wanted] = wanted_scores
        _count_shown(scores, shown)
        for place, case in enumerate(block):
            wanted = part.wanted[part.wanted_start[place] : part.wanted_start[place + 1]]
            found = ranks(scores[place], wanted)
            cold[case] = known is not None and len(wanted) > 0 and not known[wanted].any()
            for name, value in measures(found, cuts).items():
                values[name][case] = value
    slices = {
        "all": np.ones(len(cases), bool),
        "cold users": lengths <= COLD_EVENTS,
        "short histories": (lengths > COLD_EVENTS) & (lengths <= SHORT_EVENTS),
        "long histories": lengths >= LONG_EVENTS,
        "cold items": cold,
    }
    return Judged(values, shown, slices, np.unique(cases.histories.users.astype(str), return_inverse=True)[1])


def ranks(scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of wanted rows among all, ascending, from 0: how many other items score as high or higher; wanted ones in order.

    scores float32 (N,). An item that is never shown (-inf) has rank N.
    """
    own = np.sort(scores[wanted])[::-1]
    others = np.delete(scores, wanted)
    behind = (others[None] >= own[:, None]).sum(1) if len(own) else np.empty(0, np.int64)
    return np.where(np.isneginf(own), len(scores), behind + np.arange(len(own)))


def measures(found: np.ndarray, cuts: Sequence[int]) -> dict[str, float]:
    """Of the ascending ranks of one case's wanted items. NDCG with gain 1; recall over all that is wanted."""
    values = {"mrr": 1.0 / (found[0] + 1) if len(found) else 0.0}
    for cut in cuts:
        inside = found[found < cut]
        ideal = (1 / np.log2(np.arange(min(len(found), cut)) + 2)).sum()
        values[f"hr@{cut}"] = float(len(inside) > 0)
        values[f"recall@{cut}"] = len(inside) / len(found) if len(found) else 0.0
        values[f"ndcg@{cut}"] = float((1 / np.log2(inside + 2)).sum() / ideal) if len(found) else 0.0
    return values


def _count_shown(scores: np.ndarray, shown: Mapping[int, np.ndarray]) -> None:
    most = max(shown)
    best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
    there = ~np.isneginf(np.take_along_axis(scores, best, 1))
    for cut, counts in shown.items():
        counts += np.bincount(best[:, :cut][there[:, :cut]], minlength=len(counts))


def gini(counts: np.ndarray) -> float:
    """How unequally items are shown: 0 all alike, towards 1 one alone. Of counts (N,)."""
    total = counts.sum()
    if not total:
        return 0.0
    n = len(counts)
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(counts) / (n * total))


def over_seeds(figures: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """(mean, 95 % interval by Student's t) of one figure over runs with different seeds; None of one run."""
    mean = float(np.mean(figures))
    if len(figures) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(figures) - 1) * np.std(figures, ddof=1) / np.sqrt(len(figures)))
    return mean, (mean - half, mean + half)
