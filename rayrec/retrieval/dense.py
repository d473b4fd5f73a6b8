"""Nearest vectors by inner product, on FAISS: flat, HNSW or IVF-PQ behind one class.

Flat is exact and the fastest up to some ten thousand vectors; HNSW costs memory and buys speed;
IVF-PQ (re-ranked on 8-bit vectors) is for catalogs that would not fit otherwise.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.base import Column, Hits, merge_top_k, top_k

FLAT_MAX = 50_000
HNSW_MAX = 2_000_000
_HNSW_M = 32
_EF_BUILD = 120
_EF_SEARCH = 96
_NPROBE = 64
_NEAREST = 1_000
# A graph walk under a filter visits about k / selectivity vectors; below this share a scan of the
# allowed ones is both exact and cheaper (benchmarks: bench_index, 200,000 vectors).
_SCAN_SHARE = 0.05
_IVFPQ_MIN = 39 * 16  # training points FAISS wants for the fewest centroids we ask for


def choose(n: int) -> str:
    """flat, hnsw or ivfpq for `n` vectors."""
    return "flat" if n <= FLAT_MAX else "hnsw" if n <= HNSW_MAX else "ivfpq"


class DenseIndex:
    """One shard's vectors. Positions are 0..n-1 in the order they were given.

    Of a flat index in memory, what changes is changed in place. A graph or lists cannot be: there changed vectors stand
    beside it, are all looked at, and hide what the index has at their positions.
    """

    def __init__(self, index: Any, kind: str, *, mapped: bool = False):
        self._index = index
        self.kind = kind
        self.n = int(index.ntotal)
        self.dim = int(index.d)
        self._base = self.n
        self._in_place = kind == "flat" and not mapped
        self._beside = Column(np.empty((0, self.dim), np.float32))
        self._place: dict[int, int] = {}  # position -> row of `_beside`
        self._positions = Column(np.empty(0, np.int64))  # of the rows of `_beside`

    @classmethod
    def build(cls, vectors: np.ndarray, kind: str = "auto", *, seed: int = 0, threads: int = 1) -> "DenseIndex":
        """vectors: float32 (N, D), L2-normalised. kind: auto, flat, hnsw or ivfpq.

        Too few vectors to train IVF-PQ on become flat.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        n, dim = vectors.shape
        kind = choose(n) if kind == "auto" else kind
        if kind == "ivfpq" and n < _IVFPQ_MIN:
            kind = "flat"
        faiss.omp_set_num_threads(threads)
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, _HNSW_M, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = _EF_BUILD
            index.hnsw.efSearch = _EF_SEARCH
        elif kind == "ivfpq":
            index = _ivfpq(vectors, seed)
        else:
            raise ValueError(f"kind must be auto, flat, hnsw or ivfpq, got {kind!r}")
        if n:
            index.add(vectors)
        return cls(index, kind)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self._index, os.fspath(directory / "dense.faiss"))
        said = {"kind": self.kind, "n": self.n, "dim": self.dim}
        (directory / "dense.json").write_text(json.dumps(said))

    @classmethod
    def load(cls, directory: Path, *, mapped: bool = False) -> "DenseIndex":
        """mapped: leave flat vectors in the file, for whoever reads a few rows only.

        Raises IncompatibleArtifact that names the file if it cannot be read or is not what it says."""
        file = directory / "dense.faiss"
        try:
            said = json.loads((directory / "dense.json").read_text())
            index = faiss.read_index(os.fspath(file), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except (RuntimeError, OSError, ValueError) as error:
            raise IncompatibleArtifact(f"{file}: not a readable FAISS index ({error})") from error
        if (index.ntotal, index.d) != (said.get("n"), said.get("dim")):
            raise IncompatibleArtifact(
                f"{file}: {index.ntotal} vectors of {index.d}, dense.json says {said.get('n')} of {said.get('dim')}"
            )
        return cls(index, said["kind"], mapped=mapped)

    def put(self, position: int, vector: np.ndarray) -> None:
        """Change the vector float32 (D,) at a position, or add the next one: `position` is then n."""
        if position > self.n:
            raise IndexError(f"position {position} of {self.n}: vectors are added one after another")
        if not self._in_place:
            place = self._place.setdefault(position, len(self._place))
            self._beside.put(place, vector)
            self._positions.put(place, position)
        elif position == self.n:
            self._index.add(np.ascontiguousarray(vector[None], np.float32))
        else:
            faiss.rev_swig_ptr(self._index.get_xb(), self.n * self.dim)[position * self.dim :][: self.dim] = vector
        self.n = max(self.n, position + 1)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Top-k positions by inner product.

        queries: float32 (B, D), L2-normalised. allowed: bool (N,), the positions that may be returned.
        Returns rows int64 (B, k), -1 where fewer exist; scores descend, ties by position.
        Raises IncompatibleArtifact if D differs from the index's.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise IncompatibleArtifact(f"query vectors {queries.shape}, the index holds (*, {self.dim})")
        if self._place:
            changed = self._positions.values
            unchanged = np.ones(self._base, bool) if allowed is None else allowed[: self._base].copy()
            unchanged[changed[changed < self._base]] = False
            products = queries @ self._beside.values.T
            if allowed is not None:
                products[:, ~allowed[changed]] = -np.inf
            return merge_top_k([self._search(queries, k, unchanged), _best(products, changed, k)], k)
        return self._search(queries, k, allowed)

    def _search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> Hits:
        """As `search`, of what the index has."""
        n = int(self._index.ntotal)
        positions = None if allowed is None else np.flatnonzero(allowed)
        if positions is not None and len(positions) <= _SCAN_SHARE * n:
            return self._scan(queries, k, positions)
        k_found = min(k, n)
        if k_found == 0:
            return Hits(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32))
        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self.kind == "flat":
            scores, rows = self._exhaustive(queries, k_found, selector)
        else:
            share = 1.0 if positions is None else len(positions) / n
            parameters = self._parameters(k_found, selector, share)
            scores, rows = self._index.search(queries, k_found, params=parameters)
        return _tidy(rows, scores, k)

    def above(
        self, queries: np.ndarray, floors: Sequence[Callable[[float], float]], allowed: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray, bool, float]]:
        """(positions, scores, complete, best) per query: the vectors whose product reaches its floor.

        queries: float32 (B, D). floors: best product -> least product that counts. allowed: bool (N,), the
        positions that may be found. Flat finds all; the others look
        among the _NEAREST ones, and `complete` tells if that cut any.
        """
        if not self.n:
            return [(np.empty(0, np.int64), np.empty(0, np.float32), True, -1.0) for _ in floors]
        if not self._in_place:
            found = self.search(queries, min(_NEAREST, self.n), allowed)
            return [self._above(*each) for each in zip(found.rows, found.scores, floors, strict=True)]
        answers = []
        for query, floor_of in zip(np.ascontiguousarray(queries, np.float32), floors, strict=True):
            scores = np.empty(self.n, np.float32)
            # half the time of numpy's product on one thread, and the same for one query as for many at once
            faiss.fvec_inner_products_ny(
                faiss.swig_ptr(scores), faiss.swig_ptr(query), self._index.get_xb(), self.dim, self.n
            )
            if allowed is not None:
                scores[~allowed] = -1.0
            best = float(scores.max())
            positions = np.flatnonzero(scores >= floor_of(best))
            answers.append((positions, scores[positions], True, best))
        return answers

    def _above(
        self, rows: np.ndarray, scores: np.ndarray, floor_of: Callable[[float], float]
    ) -> tuple[np.ndarray, np.ndarray, bool, float]:
        scores = np.where(rows < 0, -1.0, scores)  # fewer may be allowed
        best = float(scores[0])
        above = (scores >= floor_of(best)) & (rows >= 0)
        return rows[above], scores[above], not above.all() or self.n <= _NEAREST, best

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """float32 (len(positions), D); IVF-PQ returns its 8-bit copies."""
        if not len(positions):
            return np.empty((0, self.dim), np.float32)
        if not self._place:
            return self._stored(positions)
        beside = np.array([self._place.get(int(position), -1) for position in positions])
        out = np.empty((len(positions), self.dim), np.float32)
        out[beside >= 0] = self._beside.values[beside[beside >= 0]]
        out[beside < 0] = self._stored(np.asarray(positions)[beside < 0])
        return out

    def _stored(self, positions: np.ndarray) -> np.ndarray:
        storage = self._flat_view()
        if storage is not None:
            return storage[positions]
        return self._index.reconstruct_batch(np.asarray(positions, np.int64))

    def _flat_view(self) -> np.ndarray | None:
        """The stored float32 vectors without a copy, where the index keeps them."""
        n = int(self._index.ntotal)
        if self.kind == "ivfpq" or not n:
            return None
        flat = self._index if self.kind == "flat" else faiss.downcast_index(self._index.storage)
        return faiss.rev_swig_ptr(flat.get_xb(), n * self.dim).reshape(n, self.dim)

    def _exhaustive(self, queries: np.ndarray, k: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows) of the k best or more: of equal scores at the cut FAISS keeps any, so none is cut off."""
        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        n = int(self._index.ntotal)
        width = min(k + 1, n)
        while True:
            scores, rows = self._index.search(queries, width, params=parameters)
            tied = (scores[:, k - 1] == scores[:, -1]) & (rows[:, k - 1] >= 0)
            if width == n or not tied.any():
                return scores, rows
            width = min(4 * width, n)

    def _scan(self, queries: np.ndarray, k: int, positions: np.ndarray) -> Hits:
        return _best(queries @ self.vectors(positions).T, positions, k)

    def _parameters(self, k: int, selector: Any, share: float) -> Any:
        """How far to look: further, the fewer of the vectors on the way are allowed."""
        if self.kind == "hnsw":
            effort = min(max(_EF_SEARCH, 2 * k) / share, int(self._index.ntotal))
            return faiss.SearchParametersHNSW(sel=selector, efSearch=int(effort))
        base = faiss.downcast_index(self._index.base_index)
        inner = faiss.SearchParametersIVF(sel=selector, nprobe=int(min(_NPROBE / share, base.nlist)))
        return faiss.IndexRefineSearchParameters(k_factor=10, base_index_params=inner)


def _best(products: np.ndarray, positions: np.ndarray, k: int) -> Hits:
    """The k best of products (B, P) with vectors at `positions`; -inf ones are none."""
    rows = np.full((len(products), k), -1, np.int64)
    scores = np.full((len(products), k), -np.inf, np.float32)
    for i, row in enumerate(products):
        best = top_k(row, k, positions)
        best = best[row[best] > -np.inf]
        rows[i, : len(best)] = positions[best]
        scores[i, : len(best)] = row[best]
    return Hits(rows, scores)


def _tidy(rows: np.ndarray, scores: np.ndarray, k: int) -> Hits:
    """What FAISS found, as Hits of width k. It sorts by score already, so most calls touch nothing here."""
    if rows.min(initial=0) < 0:
        scores = np.where(rows < 0, -np.inf, scores)
    if (scores[:, 1:] >= scores[:, :-1]).any():  # a tie
        order = np.lexsort((rows, -scores), axis=1)
        rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    rows, scores = rows[:, :k], scores[:, :k]
    missing = ((0, 0), (0, k - rows.shape[1]))
    if missing[1][1]:
        rows = np.pad(rows, missing, constant_values=-1)
        scores = np.pad(scores, missing, constant_values=-np.inf)
    return Hits(rows, scores)


def _ivfpq(vectors: np.ndarray, seed: int) -> Any:
    """IVF of about 4 sqrt(N) lists with 4-dimension sub-quantisers, re-ranked on 8-bit vectors."""
    n, dim = vectors.shape
    lists = int(max(1, min(4 * n**0.5, n / 39)))
    parts = next(p for p in (dim // 4, dim // 8, dim // 2, 1) if p and dim % p == 0)
    bits = 8 if n >= 39 * 256 else 4  # FAISS wants 39 training points a centroid
    quantizer = faiss.IndexFlatIP(dim)
    base = faiss.IndexIVFPQ(quantizer, dim, lists, parts, bits, faiss.METRIC_INNER_PRODUCT)
    base.cp.seed = base.pq.cp.seed = seed + 1
    refine = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexRefine(base, refine)
    for part in (quantizer, base, refine):
        part.this.disown()
    index.own_fields = index.own_refine_index = True
    base.own_fields = True
    sample = vectors[np.random.default_rng(seed).permutation(n)[: max(100_000, lists * 39)]]
    index.train(sample)
    return index
