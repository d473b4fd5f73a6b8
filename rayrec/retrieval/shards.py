"""One index version, loaded: its shards, alone or seen as one.

Row r of the catalog is position r // S of shard r % S, so no map between them is kept, and hashing
by place spreads words evenly: BM25 statistics are each shard's own, as in most search engines.
"""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval import hybrid
from rayrec.retrieval.analyzers import Analyzer
from rayrec.retrieval.base import Column, Found, Hits, Probe, Update, merge_top_k
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.retrieval.dense import DenseIndex
from rayrec.retrieval.filters import ItemColumns
from rayrec.retrieval.lexical import LexicalIndex
from rayrec.retrieval.live import LiveCatalog, Pictures, taken_back

_SAMPLE = 512
_PARTS = "parts.npz"


def shard_name(shard: int) -> str:
    return f"shard-{shard:04d}"


def shard_rows(n: int, shard: int, shards: int) -> np.ndarray:
    """The catalog rows of a shard, in the order of its positions."""
    return np.arange(shard, n, shards)


def build_shard(
    directory: Path,
    vectors: np.ndarray,
    texts: Sequence[str],
    attributes: Sequence[str],
    *,
    dense: str,
    language: str,
    parts: tuple[np.ndarray, np.ndarray] | None = None,
) -> str:
    """Write one shard's two indexes; return the kind of dense index that was chosen.

    parts: (text, image) vectors that the item vectors were fused from, kept for models that fuse them otherwise.
    """
    index = DenseIndex.build(vectors, dense)
    index.save(directory / "dense")
    LexicalIndex.build(directory / "lexical", texts, attributes, language)
    if parts is not None:
        text, image = (part.astype(np.float16) for part in parts)
        np.savez(directory / _PARTS, text=text, image=image)
    (directory / "shard.json").write_text(json.dumps({"n": len(texts), "language": language}))
    return index.kind


class Shard:
    """One shard's vectors and words. Its rows are those of the whole catalog, `number` of `count` shards."""

    def __init__(
        self, dense: DenseIndex, lexical: LexicalIndex, number: int = 0, count: int = 1, parts: Path | None = None
    ):
        self.dense = dense
        self.lexical = lexical
        self.number = number
        self.count = count
        self._parts = parts
        self._there = Column(np.ones(dense.n, bool))
        self._lacks_any = False

    def update(self, updates: Iterable[Update]) -> None:
        """Take up what became of items; those of other shards are passed over."""
        for update in updates:
            position, number = divmod(update.row, self.count)
            if number != self.number:
                continue
            if update.as_built:
                self.lexical.restore(position)
            elif update.words is not None:
                self.lexical.put(position, *update.words)
            if update.vector is not None:
                self.dense.put(position, update.vector)
            self._there.put(position, update.record is not None)
            self._lacks_any = self._lacks_any or update.record is None

    def before(self, row: int) -> tuple[bool, np.ndarray | None]:
        """(whether an item says what it said when the index was built, its vector if it is one of this shard)."""
        position, number = divmod(row, self.count)
        if number != self.number or position >= self.dense.n:
            return False, None
        return self.lexical.holds(position), self.dense.vectors(np.array([position]))[0]

    @property
    def there(self) -> np.ndarray | None:
        """bool (positions,), whether an item is there; None if all are."""
        return self._there.values if self._lacks_any else None

    def parts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(text, image) vectors of an index with pictures, float32; None of one without."""
        if self._parts is None:
            return None
        with np.load(self._parts, allow_pickle=False) as z:
            return z["text"].astype(np.float32), z["image"].astype(np.float32)

    @classmethod
    def load(cls, directory: Path, number: int, count: int, *, mapped: bool = False) -> "Shard":
        """Shard `number` of the index version at `directory`. Raises IncompatibleArtifact."""
        base = directory / shard_name(number)
        try:
            said = json.loads((base / "shard.json").read_text())
        except (OSError, ValueError) as error:
            raise IncompatibleArtifact(f"{base}/shard.json: not readable ({error})") from error
        dense = DenseIndex.load(base / "dense", mapped=mapped)
        lexical = LexicalIndex.load(base / "lexical", said["language"])
        for part, found in (("dense", dense.n), ("lexical", lexical.n)):
            if found != said["n"]:
                raise IncompatibleArtifact(f"{base}/{part}: {found} items, shard.json gives it {said['n']}")
        return cls(dense, lexical, number, count, base / _PARTS if (base / _PARTS).exists() else None)

    def find(self, probes: Sequence[Probe]) -> list[Found]:
        """What the shard has for each probe."""
        with_vector = [i for i, probe in enumerate(probes) if probe.vector is not None]
        above = {}
        if with_vector:
            queries = np.stack([probes[i].vector for i in with_vector])  # type: ignore[misc]
            floors = [partial(hybrid.dense_floor, background=probes[i].background) for i in with_vector]
            above = dict(zip(with_vector, self.dense.above(queries, floors, self.there), strict=True))
        nothing = (np.empty(0, np.int64), np.empty(0, np.float32), True)
        answers = []
        for i, probe in enumerate(probes):
            limit = hybrid.LEXICAL_CANDIDATES // self.count
            words, bm25, all_words = (
                nothing if probe.query is None else self.lexical.match(probe.query, limit, self.there)
            )
            near, cosine, all_near, best = above.get(i, (*nothing, -1.0))
            answers.append(Found(self._rows(words), bm25, all_words, self._rows(near), cosine, all_near, best))
        return answers

    def nearest(self, query: np.ndarray, k: int, allowed: np.ndarray | None) -> Hits:
        """The k items nearest to one vector (D,), as Hits of one row. allowed: bool (positions of this shard,)."""
        if allowed is None:
            allowed = self.there
        found = self.dense.search(query[None], k, allowed)
        return Hits(np.where(found.rows < 0, -1, self._rows(found.rows)), found.scores)

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        return positions * self.count + self.number


class Shards:
    """All of an index version in memory: vectors, words, items and behaviour."""

    def __init__(self, shards: Sequence[Shard], columns: ItemColumns, behavior: BehaviorIndex):
        self._shards = shards
        self.columns = columns
        self.behavior = behavior
        self.count = len(shards)
        self.dim = shards[0].dense.dim
        sample = np.linspace(0, columns.n - 1, min(_SAMPLE, columns.n)).astype(np.int64)
        self._mean = self.vectors(sample).mean(0)

    @classmethod
    def load(cls, directory: Path, shards: int, *, mapped: bool = False) -> "Shards":
        """Raises IncompatibleArtifact that names what does not fit."""
        columns = load_columns(directory)
        loaded = [Shard.load(directory, number, shards, mapped=mapped) for number in range(shards)]
        for shard in loaded:
            expected = len(shard_rows(columns.n, shard.number, shards))
            if shard.dense.n != expected:
                raise IncompatibleArtifact(
                    f"{directory / shard_name(shard.number)}: {shard.dense.n} items, items.parquet gives it {expected}"
                )
        behavior = BehaviorIndex.load(directory / "behavior")
        if len(behavior.popularity) != columns.n:
            raise IncompatibleArtifact(
                f"{directory}/behavior: {len(behavior.popularity)} items, items.parquet has {columns.n}"
            )
        return cls(loaded, columns, behavior)

    def with_behavior(self, behavior: BehaviorIndex) -> "Shards":
        """The same items, and what shoppers did by another account."""
        return Shards(self._shards, self.columns, behavior)

    def live(self, offset: int, image_weight: float | None) -> LiveCatalog:
        """What works out changes after `offset`. image_weight: of pictures beside texts, None without any."""

        return LiveCatalog(self.columns, self.dim, offset, lambda: self.pictures(image_weight))

    def pictures(self, weight: float | None) -> Pictures | None:
        """Those of the base's rows, with what they weigh beside texts; None of an index without."""
        found = None if weight is None else self.contents()[1]
        return None if found is None or weight is None else Pictures(found.astype(np.float16), weight)

    def update(self, updates: Sequence[Update]) -> None:
        """Take up what became of items. Not to be called beside anything else of these shards."""
        for shard in self._shards:
            shard.update(updates)
        self.columns.update(updates)
        self.behavior = self.behavior.padded(self.columns.n)

    def taken_back(self, updates: Sequence[Update]) -> list[Update]:
        """As of `live.taken_back`."""
        return taken_back(updates, self.columns, lambda row: self._shards[row % self.count].before(row))

    def find(self, probe: Probe) -> list[Found]:
        """What each shard has for a probe."""
        return [shard.find([probe])[0] for shard in self._shards]

    @property
    def analyzer(self) -> Analyzer:
        """How the word index reads a text."""
        return self._shards[0].lexical.analyzer

    def nearest(self, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows of the k items nearest to one query vector (D,), best first. allowed: bool (N,)."""
        return best_rows([s.nearest(query, k, own_part(allowed, s.number, self.count)) for s in self._shards], k)

    def background(self, query: np.ndarray) -> float:
        """The mean cosine of a query to items in general: what `unrelated` looks like."""
        return float(self._mean @ query)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 (len(rows), D)."""
        rows = np.asarray(rows, np.int64)
        if self.count == 1:
            return self._shards[0].dense.vectors(rows)
        out = np.empty((len(rows), self.dim), np.float32)
        for shard in self._shards:
            mine = rows % self.count == shard.number
            out[mine] = shard.dense.vectors(rows[mine] // self.count)
        return out

    def contents(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(text vectors float32 (N, D), image vectors or None): what the item vectors of the base's rows are made of.

        An index without pictures has its item vectors, which are the texts'.
        """
        text, image = (np.empty((self.columns.items.num_rows, self.dim), np.float32) for _ in range(2))
        for shard in self._shards:
            parts = shard.parts()
            if parts is None:
                return self.vectors(np.arange(self.columns.n)), None
            text[shard.number :: self.count], image[shard.number :: self.count] = parts
        return text, image


def load_columns(directory: Path) -> ItemColumns:
    """The items of the index version at `directory`."""
    return ItemColumns(pq.read_table(directory / "items.parquet"))


def own_part(allowed: np.ndarray | None, number: int, count: int) -> np.ndarray | None:
    """Of a mask over the catalog, the part of one shard."""
    return None if allowed is None else allowed[number::count]


def best_rows(shards: list[Hits], k: int) -> np.ndarray:
    """The k best rows over shards that each searched for one vector, best first."""
    rows = merge_top_k(shards, k).rows[0]
    return rows[rows >= 0]


def attribute_words(attributes: pa.ChunkedArray) -> list[str]:
    """The values of each item's attributes as one text for the word index."""
    return [" ".join(value for _, value in pairs or () if value) for pairs in attributes.to_pylist()]
