"""One index version, loaded: its shards seen as one.

Row r of the catalog is position r // S of shard r % S, so no map between them is kept, and hashing
by place spreads words evenly: BM25 statistics are each shard's own, as in most search engines.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.base import Hits, merge_top_k
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.dense import DenseIndex
from rayrec.retrieval.filters import ItemColumns
from rayrec.retrieval.lexical import LexicalIndex

_SAMPLE = 512


def shard_name(shard: int) -> str:
    return f"shard-{shard:04d}"


def shard_rows(n: int, shard: int, shards: int) -> np.ndarray:
    """The catalog rows of a shard, in the order of its positions."""
    return np.arange(shard, n, shards)


def build_shard(
    directory: Path, vectors: np.ndarray, texts: Sequence[str], attributes: Sequence[str], *, dense: str, language: str
) -> str:
    """Write one shard's two indexes; return the kind of dense index that was chosen."""
    index = DenseIndex.build(vectors, dense)
    index.save(directory / "dense")
    LexicalIndex.build(directory / "lexical", texts, attributes, language)
    (directory / "shard.json").write_text(json.dumps({"n": len(texts), "language": language}))
    return index.kind


class Shards:
    """All of an index version in memory: vectors, words, items and behaviour."""

    def __init__(
        self, dense: list[DenseIndex], lexical: list[LexicalIndex], columns: ItemColumns, behavior: BehaviorIndex
    ):
        self._dense = dense
        self._lexical = lexical
        self.columns = columns
        self.behavior = behavior
        self.count = len(dense)
        self.dim = dense[0].dim
        self._sample = self.vectors(np.linspace(0, columns.n - 1, min(_SAMPLE, columns.n)).astype(np.int64))

    @classmethod
    def load(cls, directory: Path, shards: int) -> "Shards":
        """Raises IncompatibleArtifact that names what does not fit."""
        items = pq.read_table(directory / "items.parquet")
        dense, lexical = [], []
        for shard in range(shards):
            base = directory / shard_name(shard)
            said = json.loads((base / "shard.json").read_text())
            expected = len(shard_rows(items.num_rows, shard, shards))
            dense.append(DenseIndex.load(base / "dense"))
            lexical.append(LexicalIndex.load(base / "lexical", said["language"]))
            for part, found in (("dense", dense[-1].n), ("lexical", lexical[-1].n)):
                if found != expected:
                    raise IncompatibleArtifact(f"{base}/{part}: {found} items, items.parquet gives it {expected}")
        behavior = BehaviorIndex.load(directory / "behavior")
        if len(behavior.popularity) != items.num_rows:
            raise IncompatibleArtifact(
                f"{directory}/behavior: {len(behavior.popularity)} items, items.parquet has {items.num_rows}"
            )
        return cls(dense, lexical, ItemColumns(items), behavior)

    def match(self, query: str, limit: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """(rows, BM25, complete) of the items that share a word with `query`, at most `limit`, best first."""
        parts = [index.match(query, limit) for index in self._lexical]
        rows = np.concatenate([p * self.count + s for s, (p, _, _) in enumerate(parts)])
        scores = np.concatenate([bm25 for _, bm25, _ in parts])
        order = np.lexsort((rows, -scores))[:limit]
        return rows[order], scores[order], all(whole for _, _, whole in parts) and len(order) == len(rows)

    def terms(self, text: str) -> list[str]:
        """The stems the word index keeps of `text`."""
        return self._lexical[0].terms(text)

    def nearest(self, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cosine) of the k items nearest to one query vector (D,), best first."""
        parts = []
        for shard, index in enumerate(self._dense):
            mask = None if allowed is None else allowed[shard :: self.count]
            found = index.search(query[None], k, mask)
            parts.append(Hits(np.where(found.rows < 0, -1, found.rows * self.count + shard), found.scores))
        best = merge_top_k(parts, k)
        valid = best.rows[0] >= 0
        return best.rows[0][valid], best.scores[0][valid]

    def at_least(self, query: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """(rows, cosine, complete) of the items whose cosine to one query vector (D,) is `floor` or more."""
        parts = [index.at_least(query, floor) for index in self._dense]
        rows = np.concatenate([p * self.count + s for s, (p, _, _) in enumerate(parts)])
        return rows, np.concatenate([scores for _, scores, _ in parts]), all(whole for _, _, whole in parts)

    def background(self, query: np.ndarray) -> float:
        """The mean cosine of a query to items in general: what `unrelated` looks like."""
        return float((self._sample @ query).mean())

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 (len(rows), D)."""
        rows = np.asarray(rows, np.int64)
        if self.count == 1:
            return self._dense[0].vectors(rows)
        out = np.empty((len(rows), self.dim), np.float32)
        for shard, index in enumerate(self._dense):
            mine = rows % self.count == shard
            out[mine] = index.vectors(rows[mine] // self.count)
        return out


def attribute_words(attributes: pa.ChunkedArray) -> list[str]:
    """The values of each item's attributes as one text for the word index."""
    return [" ".join(value for _, value in pairs or () if value) for pairs in attributes.to_pylist()]
