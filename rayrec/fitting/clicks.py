"""Learning what a search should weigh from what shoppers clicked and bought, whatever place it stood at.

Position-based model (Richardson et al., WWW 2007): P(click) = P(seen | place) * P(attractive | item). Both factors are
fitted together, so that an item is not called good because it stood first (the same likelihood as regression EM, Wang
et al., WSDM 2018). Attractive, and bought once clicked, are two logistic regressions over the same signals that share
their weights but for a penalised difference (Evgeniou and Pontil, KDD 2004): few purchases borrow from many clicks.
Their sum orders a search: the logarithm of P(bought) as far as both are small.

The fused score keeps weight 1 and the signals are drawn towards 0, so that few labels leave the order as it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
LEAST_SEEN = 0.05
"""a place seen less often than this counts as if it were seen so often, or one click there would outweigh all"""
_APART = 1e-3  # penalty of the tasks' difference, and of the seen shares of neighbouring places
_LEAST_FUSED = 1.0
FOLDS = 5


@dataclass(frozen=True)
class Impressions:
    """n items as they were shown.

    x: float64 (n, 1 + S), the fused score and S signals; place: int64 (n,) from 1, or 0 where the place had no
    influence; clicked, bought: bool (n,), and what is bought is clicked; answer: int64 (n,), of one request; query:
    int64 (n,), what was asked: answers to the same question are never both learned from and judged by.
    """

    x: np.ndarray
    place: np.ndarray
    clicked: np.ndarray
    bought: np.ndarray
    answer: np.ndarray
    query: np.ndarray

    def take(self, chosen: np.ndarray) -> "Impressions":
        return Impressions(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Ranking:
    """weights float64 (S,) of the signals beside the fused score, whose weight is 1; seen float64 (P,): by place."""

    weights: np.ndarray
    seen: np.ndarray

    def score(self, x: np.ndarray) -> np.ndarray:
        return x[:, 0] + x[:, 1:] @ self.weights


def fit(shown: Impressions, ridge: float, *, by_place: bool = True) -> Ranking:
    """ridge: penalty of each signal's squared weight. by_place=False takes every place to be seen alike."""
    n, width = shown.x.shape
    places = int(shown.place.max(initial=1)) if by_place else 1
    place = np.minimum(shown.place, places)
    free = place > 1  # the first place is always seen
    bought = shown.bought[shown.clicked].astype(float)
    clicked = shown.clicked.astype(float)
    x, x_bought = shown.x, shown.x[shown.clicked]
    penalty = np.full(width, ridge)
    penalty[0] = 0.0
    cut = np.cumsum([width, width, 2])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        shared, apart, bias, depth = np.split(parameters, cut)
        seen = np.ones(n)
        seen[free] = expit(depth[place[free] - 2])
        attractive = expit(x @ (shared + apart) + bias[0])
        # (1 - seen * attractive), kept from 0
        missed = np.maximum(1 - seen * attractive, 1e-9)
        told = clicked * np.log(np.maximum(seen * attractive, 1e-12)) + (1 - clicked) * np.log(missed)
        odds = (1 - clicked) * seen * attractive / missed
        by_click = clicked * (1 - attractive) - odds * (1 - attractive)
        by_depth = np.bincount(place[free] - 2, ((clicked - odds) * (1 - seen))[free], places - 1)
        chance = expit(x_bought @ (shared - apart) + bias[1])
        told_bought = bought * np.log(np.maximum(chance, 1e-12)) + (1 - bought) * np.log(np.maximum(1 - chance, 1e-12))
        by_buy = bought - chance
        steps = np.diff(depth)
        value = -(told.sum() + told_bought.sum()) / n + penalty @ shared**2 + _APART * (apart @ apart + steps @ steps)
        click_gradient, buy_gradient = x.T @ by_click, x_bought.T @ by_buy
        smooth = np.zeros(len(depth))
        if len(steps):
            smooth[1:] += steps
            smooth[:-1] -= steps
        gradient = np.concatenate(
            [
                -(click_gradient + buy_gradient) / n + 2 * penalty * shared,
                -(click_gradient - buy_gradient) / n + 2 * _APART * apart,
                [-by_click.sum() / n, -by_buy.sum() / n],
                -by_depth / n + 2 * _APART * smooth,
            ]
        )
        return float(value), gradient

    start = np.zeros(cut[-1] + places - 1)
    start[0] = 10.0
    bounds = [(_LEAST_FUSED, None)] + [(None, None)] * (len(start) - 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    shared, _, _, depth = np.split(found, cut)
    return Ranking(shared[1:] / shared[0], np.concatenate([[1.0], expit(depth)]))


def gains(shown: Impressions, scores: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(queries (Q,), nDCG (Q,) of each): what was clicked (1) and bought (1 more), if it is ordered by `scores`.

    Each counts by the inverse of how often its place was seen (Joachims et al., WSDM 2017), or the order that was shown
    would win. Answers without a click tell nothing; a query's answers are averaged.
    """
    wanted = shown.clicked.astype(float) + shown.bought
    at = np.minimum(shown.place, len(seen))
    wanted /= np.where(at > 0, np.maximum(seen[at - 1], LEAST_SEEN), 1.0)
    dcg, ideal = (_by_answer(shown.answer, order, wanted) for order in (scores, wanted))
    first = np.unique(shown.answer, return_index=True)[1]
    told = ideal > 0
    queries, of_answer = np.unique(shown.query[first[told]], return_inverse=True)
    each = dcg[told] / ideal[told]
    return queries, np.bincount(of_answer, each) / np.maximum(np.bincount(of_answer), 1)


def _by_answer(answer: np.ndarray, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """DCG of each answer (A,), in the order of their numbers."""
    order = np.lexsort((-scores, answer))
    names, first, count = np.unique(answer[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    return np.bincount(np.repeat(np.arange(len(names)), count), wanted[order] / np.log2(rank + 2), len(names))


@dataclass(frozen=True)
class Fitted:
    """ranking: None where no weights did better than none. nDCG (Q,) of queries that were not learned from: after, as
    the fitted weights would order them, and rivals, as each of those does.
    """

    ranking: Ranking | None
    queries: np.ndarray
    after: np.ndarray
    rivals: dict[str, np.ndarray]


def choose(shown: Impressions, rivals: Mapping[str, np.ndarray], seed: int = 0) -> Fitted:
    """Fit with the penalty that does best on held-out queries, and judge that on others again.

    rivals: scores (n,) of other orders.
    """
    after: list[np.ndarray] = []
    queries: list[np.ndarray] = []
    others: dict[str, list[np.ndarray]] = {name: [] for name in rivals}
    for fold in _folds(shown.query, seed):
        inside = np.isin(shown.query, fold)
        rest, held = shown.take(~inside), shown.take(inside)
        ranking = fit_best(rest, seed + 1)
        seen = fit(rest, RIDGES[-1]).seen if ranking is None else ranking.seen
        asked, ndcg = gains(held, held.x[:, 0] if ranking is None else ranking.score(held.x), seen)
        queries.append(asked)
        after.append(ndcg)
        for name, scores in rivals.items():
            others[name].append(gains(held, scores[inside], seen)[1])
    return Fitted(
        fit_best(shown, seed + 1),
        np.concatenate(queries),
        np.concatenate(after),
        {name: np.concatenate(parts) for name, parts in others.items()},
    )


def _folds(query: np.ndarray, seed: int) -> Sequence[np.ndarray]:
    return np.array_split(np.random.default_rng(seed).permutation(np.unique(query)), FOLDS)


def fit_best(shown: Impressions, seed: int = 0) -> Ranking | None:
    """Fit with the penalty that does best on held-out queries.

    None if none beats no weights at all by more than a standard error.
    """
    seen = fit(shown, RIDGES[-1]).seen
    by_ridge: dict[float, list[np.ndarray]] = {ridge: [] for ridge in RIDGES}
    for fold in _folds(shown.query, seed):
        inside = np.isin(shown.query, fold)
        rest, held = shown.take(~inside), shown.take(inside)
        before = gains(held, held.x[:, 0], seen)[1]
        for ridge in RIDGES:
            by_ridge[ridge].append(gains(held, fit(rest, ridge).score(held.x), seen)[1] - before)
    lower = {}
    for ridge, parts in by_ridge.items():
        gained = np.concatenate(parts)
        lower[ridge] = gained.mean() - gained.std() / np.sqrt(max(len(gained), 1)) if len(gained) else -1.0
    best = max(lower, key=lambda ridge: (lower[ridge], ridge))
    return fit(shown, best) if lower[best] > 0 else None
