"""Scores as sums of named parts, so that every hit can say what put it there.

`parts` maps a part's name to its weighted contribution, float64 (C,), one per candidate row. `vectors` maps
rows to float32 (len(rows), D).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rayrec.retrieval.base import top_k
from rayrec.retrieval.behavior import BehaviorIndex

# Recall@10 of the next basket, Complete Journey: own most bought .209; these weights .22, and they serve shoppers
# without repeats too. Of `together` at 1 and more it falls below .21 (benchmarks/LOG.md).
REPEAT, TOGETHER, CONTENT, POPULAR = 3.0, 0.3, 0.2, 0.1
NEAREST = 200
LEARNED = 500  # candidates of a trained model
_SIMILAR_TOGETHER = 0.3
_HISTORY_HALF_LIFE_DAYS = 80.0
_POPULAR_CANDIDATES = 200

Parts = dict[str, np.ndarray]
Vectors = Callable[[np.ndarray], np.ndarray]


def total(parts: Parts) -> np.ndarray:
    return np.sum(list(parts.values()), axis=0)


def similar(
    row: int,
    vector: np.ndarray,
    near: np.ndarray,
    behavior: BehaviorIndex,
    vectors: Vectors,
    allowed: np.ndarray | None,
) -> tuple[np.ndarray, Parts]:
    """(rows, parts) for items like `row`: the rows `near` its vector, or bought with it."""
    together = behavior.neighbours[row]
    rows = _candidates([near, together.indices], allowed, without=np.array([row]))
    return rows, {
        "content": vectors(rows) @ vector.astype(np.float64),
        "together": _SIMILAR_TOGETHER * relative(_at(together.indices, together.data, rows)),
    }


@dataclass(frozen=True)
class Taste:
    """What a shopper has: distinct rows, how much each weighs, and their weighted mean, a unit vector float32 (D,)."""

    own: np.ndarray
    mass: np.ndarray
    vector: np.ndarray

    @classmethod
    def of(cls, history: np.ndarray, ages_days: np.ndarray, vectors: Vectors) -> "Taste | None":
        """Of a history (rows, oldest first, and their ages); None of a stranger."""
        if not len(history):
            return None
        own, mass = _mass(history, ages_days)
        vector = mass @ vectors(own)
        vector /= max(float(np.linalg.norm(vector)), 1e-9)
        return cls(own, mass, vector.astype(np.float32))


@dataclass(frozen=True)
class Learned:
    """What a trained model expects of a shopper: scores float32 (N,) of all items, and what it weighs."""

    scores: np.ndarray
    weight: float


def recommend(
    taste: Taste | None,
    near: np.ndarray,
    behavior: BehaviorIndex,
    cosine: Callable[[np.ndarray], np.ndarray],
    allowed: np.ndarray | None,
    learned: Learned | None = None,
) -> tuple[np.ndarray, Parts]:
    """(rows, parts) for a shopper of this taste, given the rows `near` its vector; popular items for a stranger.

    taste is None of who touched no item; a model may know what they searched for. cosine: of rows to the taste.
    """
    popular = top_k(np.where(True if allowed is None else allowed, behavior.popularity, -1), _POPULAR_CANDIDATES)
    lists = [popular]
    if learned is not None:
        lists.append(top_k(learned.scores if allowed is None else np.where(allowed, learned.scores, -np.inf), LEARNED))
    if taste is not None:
        own, mass = taste.own, taste.mass
        together = behavior.neighbours[own].T @ mass
        lists += [near, np.flatnonzero(together), own[behavior.repeat[own] > 0]]
    rows = _candidates(lists, allowed)
    parts: Parts = {"popular": behavior.popularity[rows].astype(np.float64)}
    if taste is not None or learned is not None:
        parts["popular"] *= POPULAR
    if taste is not None:
        parts["repeat"] = REPEAT * relative(again(taste, behavior, rows))
        parts["together"] = TOGETHER * relative(together[rows])
        # what they have is nearest to itself: `repeat` alone says whether it is wanted again
        parts["content"] = CONTENT * np.clip(cosine(rows).astype(np.float64), 0, 1) * ~np.isin(rows, own)
    if learned is not None:
        parts["learned"] = learned.weight * span(learned.scores[rows].astype(np.float64))
    return rows, parts


def again(taste: Taste, behavior: BehaviorIndex, rows: np.ndarray) -> np.ndarray:
    """How much a shopper has each of `rows`, and how often its buyers buy it again; float64 (C,)."""
    repeat = behavior.repeat[taste.own]
    return _at(taste.own, taste.mass * (repeat + repeat.mean()), rows)


def span(values: np.ndarray) -> np.ndarray:
    """Scaled to between 0 and 1."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(len(values))


def _mass(history: np.ndarray, ages_days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct items of a history and how much each weighs: recent and frequent ones more; once a day."""
    days = np.floor(ages_days).astype(np.int64)
    days -= days.min()
    rows, days = np.divmod(np.unique(history * (days.max() + 1) + days), days.max() + 1)
    decay = 0.5 ** (days / _HISTORY_HALF_LIFE_DAYS)
    own, at = np.unique(rows, return_inverse=True)
    return own, np.bincount(at, decay)


def _candidates(
    lists: Sequence[np.ndarray], allowed: np.ndarray | None, without: np.ndarray | None = None
) -> np.ndarray:
    rows = np.unique(np.concatenate(lists)).astype(np.int64)
    if allowed is not None:
        rows = rows[allowed[rows]]
    return rows if without is None else np.setdiff1d(rows, without)


def _at(keys: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The value of each row in a sparse vector (keys, values); 0 where it has none."""
    out = np.zeros(len(rows))
    if len(keys) and len(rows):
        order = np.argsort(keys)
        place = np.minimum(np.searchsorted(keys, rows, sorter=order), len(keys) - 1)
        hit = keys[order[place]] == rows
        out[hit] = values[order[place[hit]]]
    return out


def relative(values: np.ndarray) -> np.ndarray:
    """Scaled so that the highest is 1."""
    best = values.max(initial=0.0)
    return values / best if best > 0 else np.zeros(len(values))


def companions(behavior: BehaviorIndex, row: int, history: np.ndarray) -> int | None:
    """The row of `history` that `row` is most often bought with; None if with none."""
    own = np.unique(history)
    strength = np.asarray(behavior.neighbours[own, row].todense()).ravel() if len(own) else np.empty(0)
    return int(own[strength.argmax()]) if strength.max(initial=0.0) > 0 else None
