"""What shoppers do, as an index: popularity, bought together, bought again, and recent histories.

Everything is weighted by the kind of event and fades with age: an event `half_life_days` old counts half.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from rayrec.data.histories import DAY_US, Histories, group_baskets
from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.base import top_k
from rayrec.schema import EVENT_TYPES

EVENT_WEIGHTS = {"view": 0.1, "click": 0.2, "add_to_cart": 0.5, "purchase": 1.0}
NEIGHBOURS = 50
HISTORY = 1_000
"""Events of a shopper that are kept; few have as many."""
_MAX_BASKET = 200
_WEIGHTS = np.array([EVENT_WEIGHTS.get(kind, 0.0) for kind in EVENT_TYPES])
_NOTHING_ASKED = np.empty((0, 0), np.float32)
# Pairs seen once or twice say little: their similarity shrinks towards 0 by this many baskets.
_SHRINK = 10.0


@dataclass(frozen=True)
class BehaviorIndex:
    """Arrays over the N rows of the catalog.

    popularity float32 (N,) in [0, 1]; repeat float32 (N,): chance that a buyer buys it again;
    neighbours csr (N, N): cosine of baskets, at most NEIGHBOURS a row; histories: each shopper's last HISTORY events,
    searches too; asked float32 (Q, D): vectors of histories.texts, or (0, 0). now_us: the newest event's time, from
    which ages are counted.
    """

    popularity: np.ndarray
    repeat: np.ndarray
    neighbours: sp.csr_matrix
    histories: Histories
    now_us: int
    half_life_days: float
    events: int
    asked: np.ndarray

    @classmethod
    def empty(cls, n: int) -> "BehaviorIndex":
        return cls(
            np.zeros(n, np.float32),
            np.zeros(n, np.float32),
            sp.csr_matrix((n, n), dtype=np.float32),
            Histories.of_rows([]),
            0,
            1.0,
            0,
            _NOTHING_ASKED,
        )

    @classmethod
    def build(cls, events: pa.Table, item_ids: pa.Array, half_life_days: float) -> "BehaviorIndex":
        """events: EVENTS in time order; item_ids: of the catalog's rows. Unknown items are passed over."""
        n = len(item_ids)
        histories = replace(
            Histories.of(events, item_ids).last(HISTORY).compact(), places=None
        )  # the table is not kept
        row = pc.index_in(events.column("item_id"), value_set=item_ids)
        known = pc.and_(pc.is_valid(row), pc.is_in(events.column("type"), pa.array(list(EVENT_WEIGHTS))))
        events, rows = events.filter(known), row.filter(known).to_numpy().astype(np.int64)
        kinds = pc.index_in(events.column("type"), value_set=pa.array(EVENT_TYPES)).to_numpy()
        user = pc.dictionary_encode(events.column("user_id")).combine_chunks()
        codes = pc.fill_null(user.indices, -1).to_numpy()
        baskets = group_baskets(events, codes)
        ts = events.column("ts_us").to_numpy()
        return cls._of(n, rows, ts, _WEIGHTS[kinds], codes, baskets, half_life_days, histories)

    @classmethod
    def of_histories(cls, histories: Histories, n: int, half_life_days: float) -> "BehaviorIndex":
        """What some shoppers did; searches are passed over."""
        weight = _WEIGHTS[histories.kinds]
        there = np.flatnonzero((histories.rows >= 0) & (weight > 0))
        there = there[np.argsort(histories.ts_us[there], kind="stable")]
        codes = np.repeat(np.arange(len(histories)), histories.lengths)[there]
        rows, ts, baskets = histories.rows[there], histories.ts_us[there], histories.baskets[there]
        return cls._of(n, rows, ts, weight[there], codes, baskets, half_life_days, histories.last(HISTORY))

    @classmethod
    def _of(
        cls,
        n: int,
        rows: np.ndarray,
        ts: np.ndarray,
        weight: np.ndarray,
        user_codes: np.ndarray,
        baskets: np.ndarray,
        half_life_days: float,
        histories: Histories,
    ) -> "BehaviorIndex":
        """Of events in time order; user_codes: a number per shopper, -1 for none."""
        if not len(rows):
            return replace(cls.empty(n), histories=histories)
        now = int(ts.max())
        decay = 0.5 ** ((now - ts) / (half_life_days * DAY_US))
        popularity = np.bincount(rows, weight * decay, n)
        return cls(
            (np.log1p(popularity) / max(np.log1p(popularity).max(), 1e-9)).astype(np.float32),
            _repeat(rows, user_codes, baskets, weight, n).astype(np.float32),
            _neighbours(rows, baskets, weight * decay, n),
            histories,
            now,
            half_life_days,
            len(rows),
            _NOTHING_ASKED,
        )

    def history(self, user_id: str) -> Histories:
        """A shopper's last events, oldest first; without events for a stranger."""
        return self.histories.of_user(user_id)

    def padded(self, n: int) -> "BehaviorIndex":
        """Over a catalog to which items were added, of which nothing is known."""
        more = n - len(self.popularity)
        if not more:
            return self
        at = self.neighbours
        start = np.pad(at.indptr, (0, more), mode="edge")
        neighbours = sp.csr_matrix((at.data, at.indices, start), shape=(n, n))
        popularity, repeat = (np.pad(values, (0, more)) for values in (self.popularity, self.repeat))
        return replace(self, popularity=popularity, repeat=repeat, neighbours=neighbours)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(
            directory / "behavior.npz",
            popularity=self.popularity,
            repeat=self.repeat,
            indptr=self.neighbours.indptr,
            indices=self.neighbours.indices,
            data=self.neighbours.data,
            scalars=np.array([self.now_us, self.events], np.int64),
            half_life_days=np.array(self.half_life_days),
        )
        np.save(directory / "asked.npy", self.asked)
        self.histories.save(directory)

    @classmethod
    def load(cls, directory: Path) -> "BehaviorIndex":
        try:
            with open(directory / "behavior.npz", "rb") as stream, np.load(stream, allow_pickle=False) as z:
                n = len(z["popularity"])
                now_us, events = z["scalars"].tolist()
                return cls(
                    z["popularity"],
                    z["repeat"],
                    sp.csr_matrix((z["data"], z["indices"], z["indptr"]), shape=(n, n)),
                    Histories.load(directory),
                    now_us,
                    float(z["half_life_days"]),
                    events,
                    np.load(directory / "asked.npy", allow_pickle=False),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise IncompatibleArtifact(f"{directory}/behavior.npz: not readable ({error})") from error


def _repeat(rows: np.ndarray, users: np.ndarray, baskets: np.ndarray, weight: np.ndarray, n: int) -> np.ndarray:
    """Of an item's buyers, the share that bought it in two baskets or more; smoothed by 5 who did not."""
    bought = (weight >= EVENT_WEIGHTS["purchase"]) & (users >= 0)
    trips = np.unique(np.stack([rows[bought], users[bought], baskets[bought]]), axis=1)
    buyers, times = np.unique(trips[:2], axis=1, return_counts=True)
    again = np.bincount(buyers[0][times > 1], minlength=n)
    return again / (np.bincount(buyers[0], minlength=n) + 5.0)


def _neighbours(rows: np.ndarray, baskets: np.ndarray, weight: np.ndarray, n: int) -> sp.csr_matrix:
    """Cosine of two items' baskets, shrunk: c_ij / (sqrt(c_ii c_jj) + _SHRINK)."""
    matrix = sp.coo_matrix((weight, (baskets, rows)), shape=(int(baskets.max()) + 1, n)).tocsr()
    matrix.sum_duplicates()
    size = np.diff(matrix.indptr)
    matrix = matrix[(size > 1) & (size <= _MAX_BASKET)]  # a reseller's basket of everything says nothing
    matrix.data = np.sqrt(np.minimum(matrix.data, 1.0))
    counts = (matrix.T @ matrix).tocsr()
    norm = np.sqrt(counts.diagonal())
    counts.setdiag(0)
    counts.eliminate_zeros()
    of_row = np.repeat(np.arange(n), np.diff(counts.indptr))
    counts.data = (counts.data / (norm[of_row] * norm[counts.indices] + _SHRINK)).astype(np.float32)
    keep = np.zeros(counts.nnz, bool)
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        if end - start > NEIGHBOURS:
            keep[start + top_k(counts.data[start:end], NEIGHBOURS)] = True
        else:
            keep[start:end] = True
    kept = sp.csr_matrix((counts.data[keep], (of_row[keep], counts.indices[keep])), shape=(n, n))
    return kept.astype(np.float32)
