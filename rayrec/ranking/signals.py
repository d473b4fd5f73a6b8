"""What a search may weigh beside the fused ranks of words and vectors: what the query says, and what the shopper does.

A signal is float64 (C,), one value per candidate; a shop's weights of them are fitted to its clicks (fitting/clicks.py)
and are 0 until then. A weight of 1 moves an item as far as from the first place of both lists to nowhere.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rayrec.ranking.scoring import Learned, Parts, Taste, Vectors, again, relative, span
from rayrec.retrieval.base import Candidates
from rayrec.retrieval.behavior import BehaviorIndex

OF_SHOPPER = ("repeat", "taste", "learned")
PART = {
    "bm25": "lexical",
    "cosine": "dense",
    "image": "image",
    "popularity": "popular",
    "price": "price",
    "repeat": "repeat",
    "taste": "content",
    "learned": "learned",
}
"""signal -> the part of the score that it counts to"""
_PRICES_APART = 3.0  # deviations beyond which a price is as odd as any


def of_query(
    candidates: Candidates, prices: np.ndarray, popularity: np.ndarray, pictures: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Signals of all candidates C, whoever asks.

    prices: int64 (C,), negative where there is none; popularity float (C,) in [0, 1]; pictures float (C,): cosines of
    the query to the items' pictures, None without any. bm25, cosine: as a share of the best match's; price: of dear and
    cheap among the candidates, by its logarithm in deviations, in [-1, 1].
    """
    found = {
        "bm25": relative(candidates.lexical.astype(np.float64)),
        "cosine": relative(np.maximum(candidates.dense, 0).astype(np.float64)),
        "popularity": popularity.astype(np.float64),
        "price": _by_price(prices),
    }
    return found if pictures is None else {**found, "image": pictures.astype(np.float64)}


def _by_price(prices: np.ndarray) -> np.ndarray:
    out = np.zeros(len(prices))
    there = prices >= 0
    logs = np.log1p(prices[there])
    if len(logs) and logs.std() > 0:
        out[there] = np.clip((logs - logs.mean()) / logs.std(), -_PRICES_APART, _PRICES_APART) / _PRICES_APART
    return out


def of_shopper(
    rows: np.ndarray, taste: Taste | None, learned: Learned | None, behavior: BehaviorIndex, vectors: Vectors
) -> dict[str, np.ndarray]:
    """Signals of candidates `rows` for one shopper; none of a stranger.

    repeat: how much they have it and it is bought again; taste: cosine of the item to what they have; learned: what a
    trained model expects, from 0, the least among these rows, to 1.
    """
    found = {}
    if taste is not None:
        found["repeat"] = relative(again(taste, behavior, rows))
        found["taste"] = np.clip(vectors(rows) @ taste.vector, 0, 1).astype(np.float64)
    if learned is not None:
        found["learned"] = span(learned.scores[rows].astype(np.float64))
    return found


def weigh(signals: Mapping[str, np.ndarray], weights: Mapping[Any, float]) -> Parts:
    """The parts of a score that weighed signals make up."""
    parts: Parts = {}
    for name, weight in weights.items():
        if weight and name in signals:
            part = PART[name]
            parts[part] = parts.get(part, 0.0) + weight * signals[name]
    return parts
