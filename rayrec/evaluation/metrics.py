"""Measures of ranked answers, and the interval of a paired difference."""

from collections.abc import Mapping, Sequence

import numpy as np

_PICKS = 20_000_000


def ndcg(ranked: Sequence[str], ratings: Mapping[str, float], k: int = 10) -> float:
    """nDCG@k with gain 2^rating - 1 and unrated items 0. Jarvelin and Kekalainen, TOIS 2002; Burges et al. 2005.

    ranked: item ids, best first. ratings: item id -> 0, 1, 2, ... of one query. 0 if nothing is relevant.
    """
    best = sorted(ratings.values(), reverse=True)[:k]
    ideal = _dcg(best)
    return _dcg([ratings.get(item, 0) for item in ranked[:k]]) / ideal if ideal else 0.0


def _dcg(ratings: Sequence[float]) -> float:
    return sum((2.0**rating - 1) / np.log2(place + 2) for place, rating in enumerate(ratings))


def judged(ranked: Sequence[str], ratings: Mapping[str, float], k: int = 10) -> float:
    """The share of the top k that anybody rated: where it is low, nDCG with unrated = 0 says little."""
    top = ranked[:k]
    return sum(item in ratings for item in top) / len(top) if top else 0.0


def bootstrap_ci(differences: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the mean of paired differences: percentile bootstrap over the pairs.

    Of very many pairs fewer draws are made, at least 1,000.
    """
    n = len(differences)
    draws = max(min(draws, 1_000), min(draws, _PICKS // n))
    low, high = np.percentile(_means(differences, np.random.default_rng(seed), draws), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_ci_of_parts(parts: Sequence[np.ndarray], seed: int = 0, draws: int = 2_000) -> tuple[float, float]:
    """The same of the mean of several parts' means, each part drawn from by itself."""
    rng = np.random.default_rng(seed)
    low, high = np.percentile(np.mean([_means(part, rng, draws) for part in parts], axis=0), [2.5, 97.5])
    return float(low), float(high)


def _means(values: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    n = len(values)
    at_once = max(1, _PICKS // 10 // n)
    return np.concatenate(
        [values[rng.integers(0, n, (min(at_once, draws - done), n))].mean(1) for done in range(0, draws, at_once)]
    )
