"""Shoppers who look down a list with known eyes, so that what is learned from their clicks can be checked."""

import numpy as np

from rayrec.fitting.clicks import Impressions


def simulate(
    x: list[np.ndarray],
    attractive: list[np.ndarray],
    bought: list[np.ndarray],
    seen: np.ndarray,
    answers: int,
    rng: np.random.Generator,
    *,
    shuffle: float = 0.0,
) -> Impressions:
    """Clicks on `answers` requests, spread over the queries.

    Per query, of its candidates: x (C, 1 + S), the fused score and signals; attractive (C,), the chance that one who
    sees the item clicks it; bought (C,), that one who clicked buys. seen (P,): the chance that place p is looked at.
    Each answer shows the P best by the fused score plus `shuffle` times Gumbel noise, as filters, stock and other
    tastes move items about; without it places and scores are one and the same, and nothing tells them apart.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for answer in range(answers):
        query = int(rng.integers(len(x)))
        noise = shuffle * rng.gumbel(size=len(x[query]))
        shown = np.argsort(-(x[query][:, 0] + noise), kind="stable")[: len(seen)]
        clicked = rng.random(len(shown)) < seen[: len(shown)] * attractive[query][shown]
        buys = clicked & (rng.random(len(shown)) < bought[query][shown])
        size = len(shown)
        parts.append(
            (x[query][shown], np.arange(1, size + 1), clicked, buys, np.full(size, answer), np.full(size, query))
        )
    return Impressions(*(np.concatenate(each) for each in zip(*parts, strict=True)))
