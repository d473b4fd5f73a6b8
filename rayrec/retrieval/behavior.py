"""What shoppers do, as an index: popularity, bought together, bought again, and recent histories.

Everything is weighted by the kind of event and fades with age: an event `half_life_days` old counts half.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from rayrec.data.histories import DAY_US, Histories, group_baskets
from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.base import top_k
from rayrec.schema import EVENT_TYPES

EVENT_WEIGHTS = {"view": 0.1, "click": 0.2, "add_to_cart": 0.5, "purchase": 1.0}
NEIGHBOURS = 50
HISTORY = 100
_MAX_BASKET = 200
# Pairs seen once or twice say little: their similarity shrinks towards 0 by this many baskets.
_SHRINK = 10.0


@dataclass(frozen=True)
class BehaviorIndex:
    """Arrays over the N rows of the catalog.

    popularity float32 (N,) in [0, 1]; repeat float32 (N,): chance that a buyer buys it again;
    neighbours csr (N, N): cosine of baskets, at most NEIGHBOURS a row; users (U,) sorted ids;
    history_start int64 (U + 1,), history_rows and history_ts_us: each user's last HISTORY items, oldest first.
    now_us: the newest event's time, from which ages are counted.
    """

    popularity: np.ndarray
    repeat: np.ndarray
    neighbours: sp.csr_matrix
    users: np.ndarray
    history_start: np.ndarray
    history_rows: np.ndarray
    history_ts_us: np.ndarray
    now_us: int
    half_life_days: float
    events: int

    @classmethod
    def empty(cls, n: int) -> "BehaviorIndex":
        return cls(
            np.zeros(n, np.float32),
            np.zeros(n, np.float32),
            sp.csr_matrix((n, n), dtype=np.float32),
            np.empty(0, np.str_),
            np.zeros(1, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.int64),
            0,
            1.0,
            0,
        )

    @classmethod
    def build(cls, events: pa.Table, item_ids: pa.Array, half_life_days: float) -> "BehaviorIndex":
        """events: EVENTS in time order; item_ids: of the catalog's rows. Unknown items are passed over."""
        n = len(item_ids)
        row = pc.index_in(events.column("item_id"), value_set=item_ids)
        known = pc.and_(pc.is_valid(row), pc.is_in(events.column("type"), pa.array(list(EVENT_WEIGHTS))))
        events, rows = events.filter(known), row.filter(known).to_numpy().astype(np.int64)
        if not len(rows):
            return cls.empty(n)
        kinds = pc.dictionary_encode(events.column("type")).combine_chunks()
        weight = np.array([EVENT_WEIGHTS[k] for k in kinds.dictionary.to_pylist()])[kinds.indices.to_numpy()]
        user = pc.dictionary_encode(events.column("user_id")).combine_chunks()
        codes = pc.fill_null(user.indices, -1).to_numpy()
        ts = events.column("ts_us").to_numpy()
        return cls._of(
            n, rows, ts, weight, user.dictionary.to_pylist(), codes, group_baskets(events, codes), half_life_days
        )

    @classmethod
    def of_histories(cls, histories: Histories, n: int, half_life_days: float) -> "BehaviorIndex":
        """What some shoppers did; searches are passed over."""
        weight = np.array([EVENT_WEIGHTS.get(kind, 0.0) for kind in EVENT_TYPES])[histories.kinds]
        there = np.flatnonzero((histories.rows >= 0) & (weight > 0))
        if not len(there):
            return cls.empty(n)
        there = there[np.argsort(histories.ts_us[there], kind="stable")]
        codes = np.repeat(np.arange(len(histories)), histories.lengths)[there]
        return cls._of(
            n,
            histories.rows[there],
            histories.ts_us[there],
            weight[there],
            histories.users.tolist(),
            codes,
            histories.baskets[there],
            half_life_days,
        )

    @classmethod
    def _of(
        cls,
        n: int,
        rows: np.ndarray,
        ts: np.ndarray,
        weight: np.ndarray,
        users: list[str],
        user_codes: np.ndarray,
        baskets: np.ndarray,
        half_life_days: float,
    ) -> "BehaviorIndex":
        """Of events in time order; user_codes: places in `users`, -1 for none."""
        now = int(ts.max())
        decay = 0.5 ** ((now - ts) / (half_life_days * DAY_US))
        popularity = np.bincount(rows, weight * decay, n)
        repeat = _repeat(rows, user_codes, baskets, weight, n)
        neighbours = _neighbours(rows, baskets, weight * decay, n)
        names, start, order = _histories(users, user_codes)
        return cls(
            (np.log1p(popularity) / max(np.log1p(popularity).max(), 1e-9)).astype(np.float32),
            repeat.astype(np.float32),
            neighbours,
            names,
            start,
            rows[order],
            ts[order],
            now,
            half_life_days,
            len(rows),
        )

    def history(self, user_id: str) -> tuple[np.ndarray, np.ndarray]:
        """(rows, ages in days) of a user's last items, oldest first; empty for a stranger."""
        at = int(np.searchsorted(self.users, user_id))
        if at == len(self.users) or self.users[at] != user_id:
            return np.empty(0, np.int64), np.empty(0)
        part = slice(self.history_start[at], self.history_start[at + 1])
        return self.history_rows[part], (self.now_us - self.history_ts_us[part]) / DAY_US

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(
            directory / "behavior.npz",
            popularity=self.popularity,
            repeat=self.repeat,
            indptr=self.neighbours.indptr,
            indices=self.neighbours.indices,
            data=self.neighbours.data,
            history_start=self.history_start,
            history_rows=self.history_rows,
            history_ts_us=self.history_ts_us,
            scalars=np.array([self.now_us, self.events], np.int64),
            half_life_days=np.array(self.half_life_days),
        )
        pq.write_table(pa.table({"user_id": pa.array(self.users.tolist(), pa.string())}), directory / "users.parquet")

    @classmethod
    def load(cls, directory: Path) -> "BehaviorIndex":
        try:
            with open(directory / "behavior.npz", "rb") as stream, np.load(stream, allow_pickle=False) as z:
                n = len(z["popularity"])
                now_us, events = z["scalars"].tolist()
                users = pq.read_table(directory / "users.parquet").column("user_id").to_pylist()
                return cls(
                    z["popularity"],
                    z["repeat"],
                    sp.csr_matrix((z["data"], z["indices"], z["indptr"]), shape=(n, n)),
                    np.array(users, np.str_),
                    z["history_start"],
                    z["history_rows"],
                    z["history_ts_us"],
                    now_us,
                    float(z["half_life_days"]),
                    events,
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


def _histories(users: list[str], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sorted ids, start of each, places of their last HISTORY events in time order)."""
    names = np.array(users, np.str_)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(names)] = np.arange(len(names))
    known = np.flatnonzero(codes >= 0)
    of_event = rank[codes[known]]
    order = known[np.argsort(of_event, kind="stable")]
    counts = np.bincount(of_event, minlength=len(names))
    ends = np.cumsum(counts)
    from_end = np.repeat(ends, counts) - np.arange(len(order))
    order = order[from_end <= HISTORY]
    start = np.concatenate([[0], np.cumsum(np.minimum(counts, HISTORY))])
    return np.sort(names), start, order
