"""What retrieval hands around: rows (an item's place in the catalog sorted by item_id) and scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Hits:
    """rows int64 and scores float32, both (B, k), scores descending, ties by row; -1 where fewer exist."""

    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Candidates:
    """M(q): what one query can ever return, whatever the filters, the page or the shopper.

    rows int64 (M,) ascending. lexical float32 (M,): BM25, 0 where no word matches. dense float32 (M,):
    cosine, 0 below the dense floor. in_dense bool (M,): at or above it. exact: no list was cut short.
    """

    rows: np.ndarray
    lexical: np.ndarray
    dense: np.ndarray
    in_dense: np.ndarray
    exact: bool = True


@dataclass(frozen=True)
class Probe:
    """What one query asks of every shard.

    query: words to match; None asks for none. vector: float32 (D,), L2-normalised; None asks for no vectors.
    background: the query's mean cosine to items in general, from which the dense floor is reckoned. min_offset: of the
    change of the catalog that whoever looks has to know; as_of: of the last one that counts, None for all.
    """

    query: str | None
    vector: np.ndarray | None = None
    background: float = 0.0
    min_offset: int = 0
    as_of: int | None = None


@dataclass(frozen=True)
class Found:
    """What one shard has for one probe; rows int64 are of the whole catalog, in no order.

    words and bm25: the items that share a word, all_words: none was cut. near and cosine: the items above the
    floor that the shard's own best match sets, all_near: none was cut. best: that match; -1 without vectors. offset: up
    to which it knows the changes of the catalog.
    """

    words: np.ndarray
    bm25: np.ndarray
    all_words: bool
    near: np.ndarray
    cosine: np.ndarray
    all_near: bool
    best: float
    offset: int | None = None


@dataclass(frozen=True)
class Update:
    """What became of one item of an index that answers.

    offset: of the change. record: a value for each column of ITEMS; None: it is deleted. words: (text, attributes) for
    the word index, and vector float32 (D,), None where they are as before; text and picture: of what a vector is made.
    as_built: the words are those that the index was built with.
    """

    offset: int
    row: int
    item_id: str
    record: dict[str, Any] | None
    words: tuple[str, str] | None = None
    vector: np.ndarray | None = None
    text: np.ndarray | None = None
    picture: np.ndarray | None = None
    as_built: bool = False


class Column:
    """Values of rows that are set one at a time, and grow at their end without being copied each time.

    What was given is copied at the first change, never changed itself.
    """

    def __init__(self, values: np.ndarray):
        """values: (N, ...)."""
        self.values = values
        self._room: np.ndarray | None = None

    def put(self, row: int, value: Any) -> None:
        """Rows between the last one and a later `row` become 0."""
        n = max(len(self.values), row + 1)
        if self._room is None or n > len(self._room):
            room = np.zeros((n + n // 4 + 16, *self.values.shape[1:]), self.values.dtype)
            room[: len(self.values)] = self.values
            self._room = room
        self.values = self._room[:n]
        self.values[row] = value


def top_k(scores: np.ndarray, k: int, order: np.ndarray | None = None) -> np.ndarray:
    """Positions of the k highest of a 1-d array, descending, ties by position, or by their values in `order`."""
    k = min(k, len(scores))
    if k <= 0:
        return np.empty(0, np.int64)
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= threshold)  # may exceed k on a tie; the sort below settles it
    else:
        chosen = np.arange(len(scores))
    return chosen[np.lexsort((chosen if order is None else order[chosen], -scores[chosen]))][:k]


def merge_top_k(parts: list[Hits], k: int) -> Hits:
    """The k best over shards, each (B, ki) -> (B, k)."""
    rows = np.concatenate([p.rows for p in parts], axis=1)
    scores = np.concatenate([np.where(p.rows < 0, -np.inf, p.scores) for p in parts], axis=1)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return Hits(np.where(np.isfinite(scores), rows, -1), scores.astype(np.float32))
