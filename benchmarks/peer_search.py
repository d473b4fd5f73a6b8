"""What the peer of bench_serve searches with: words, vectors, filters and facets of one catalog in memory.

Its directory holds items.parquet (ITEMS, and the columns `text` and `words` for the word index) and vectors.npy
(float32, unit length, in the same order).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import tantivy
from cachetools import LRUCache
from pydantic import BaseModel, ConfigDict, Field

_SAMPLE = 512
_DENSE, _RRF_K = 0.3, 60
_ATTRIBUTES_BOOST = 0.2
_FACET_VALUES = 100
_PRICE_RANGES = 5
_SEPARATOR = " > "


class Bounds(BaseModel):
    model_config = ConfigDict(extra="forbid")
    gte: int | None = None
    lt: int | None = None


class Filters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    brand: list[str] | None = None
    category: list[str] | None = None
    price_cents: Bounds | None = None


class Body(BaseModel):
    query: str = Field(min_length=1, max_length=1_000)
    filters: Filters = Filters()
    facets: list[Literal["brand", "category", "price_cents"]] = []
    page_size: int = Field(24, ge=1, le=1_000)


class Words:
    """BM25 of tantivy over a text field and, at a fifth of its weight, the attributes.

    kept: decode the postings of a stem once, rather than all hits of every query.
    """

    def __init__(self, texts: Sequence[str], attributes: Sequence[str], kept: bool):
        make = tantivy.Filter
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        for each in (make.remove_long(60), make.lowercase(), make.ascii_fold(), make.stemmer("english")):
            builder = builder.filter(each)
        self._analyzer = builder.build()
        fields = tantivy.SchemaBuilder().add_unsigned_field("row", fast=True)
        for name in ("text", "attributes"):
            fields = fields.add_text_field(name, tokenizer_name="words")
        self._schema = fields.build()
        index = tantivy.Index(self._schema)
        index.register_tokenizer("words", self._analyzer)
        writer = index.writer(heap_size=64 << 20, num_threads=1)
        for row, (text, words) in enumerate(zip(texts, attributes, strict=True)):
            document = {"row": row, "text": text, "attributes": words}
            writer.add_document(tantivy.Document.from_dict(document, self._schema))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._searcher = index.searcher()
        self._n = len(texts)
        self._kept = kept
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def scores(self, query: str) -> np.ndarray:
        """float32 (N,), 0 where no word matches."""
        out = np.zeros(self._n, np.float32)
        stems = list(dict.fromkeys(self._analyzer.analyze(query)))
        if not self._kept and stems:
            rows, scores = self._decode(stems)
            out[rows] = scores
            return out
        for stem in stems:
            if stem not in self._postings:
                self._postings[stem] = self._decode([stem])
            rows, scores = self._postings[stem]
            out[rows] += scores
        return out

    def _decode(self, stems: list[str]) -> tuple[np.ndarray, np.ndarray]:
        clauses = []
        for stem in stems:
            for name, boost in (("text", 1.0), ("attributes", _ATTRIBUTES_BOOST)):
                term = tantivy.Query.term_query(self._schema, name, stem, index_option="freq")
                clauses.append((tantivy.Occur.Should, tantivy.Query.boost_query(term, boost)))
        hits = self._searcher.search(tantivy.Query.boolean_query(clauses), limit=self._n, count=False).hits
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        return np.array(rows, np.int64), np.array([score for score, _ in hits], np.float32)


class Columns:
    """Filters and facets over integer codes."""

    def __init__(self, items: pa.Table):
        self._brands, self._brand = _codes(items.column("brand").to_pylist())
        paths = [[part for part in path or () if part] for path in items.column("category").to_pylist()]
        prefixes = [[_SEPARATOR.join(path[: i + 1]) for i in range(len(path))] for path in paths]
        self._categories = sorted({name for each in prefixes for name in each})
        place = {name: i for i, name in enumerate(self._categories)}
        # each item's category and its ancestors, one column a level; -1 beyond the path's end
        self._levels = np.full((len(paths), max(map(len, prefixes))), -1)
        for row, each in enumerate(prefixes):
            self._levels[row, : len(each)] = [place[name] for name in each]
        self._price = items.column("price_cents").fill_null(-1).to_numpy()

    def masks(self, filters: Filters, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of each field that is filtered, which of the rows pass: bool (len(rows),)."""
        masks = {}
        if filters.brand is not None:
            masks["brand"] = _chosen(self._brands, filters.brand)[self._brand[rows]]
        if filters.category is not None:
            masks["category"] = _chosen(self._categories, filters.category)[self._levels[rows]].any(1)
        if filters.price_cents is not None:
            price = self._price[rows]
            mask = price >= max(filters.price_cents.gte or 0, 0)
            masks["price_cents"] = mask if filters.price_cents.lt is None else mask & (price < filters.price_cents.lt)
        return masks

    def facet(self, name: str, rows: np.ndarray) -> Any:
        if name == "brand":
            return _values(self._brands, self._brand[rows])
        if name == "category":
            return _values(self._categories, self._levels[rows].ravel())
        return self._ranges(rows)

    def _ranges(self, rows: np.ndarray) -> dict[str, Any]:
        values = np.sort(self._price[rows])
        values = values[np.searchsorted(values, 0) :]
        if not len(values):
            return {"min": None, "max": None, "ranges": []}
        edges = np.unique(values[np.arange(_PRICE_RANGES + 1) * (len(values) - 1) // _PRICE_RANGES])
        edges = np.append(edges[:-1] if len(edges) > 1 else edges, values[-1] + 1)
        counts = np.diff(np.searchsorted(values, edges)).tolist()
        bounds = edges.tolist()
        ranges = [{"gte": a, "lt": b, "count": c} for a, b, c in zip(bounds[:-1], bounds[1:], counts, strict=True)]
        return {"min": int(values[0]), "max": int(values[-1]), "ranges": ranges}


def _codes(values: list[str | None]) -> tuple[list[str], np.ndarray]:
    words = sorted({value for value in values if value is not None})
    place = {word: i for i, word in enumerate(words)}
    return words, np.array([-1 if value is None else place[value] for value in values])


def _chosen(names: list[str], wanted: list[str]) -> np.ndarray:
    """bool: whether a code's name is wanted; the last place stands for none (-1)."""
    return np.array([name in wanted for name in names] + [False])


def _values(names: list[str], codes: np.ndarray) -> list[dict[str, Any]]:
    """The most frequent names of codes, -1 for none; ties by name."""
    counts = np.bincount(codes + 1, minlength=len(names) + 1)[1:]
    order = np.argsort(-counts, kind="stable")[:_FACET_VALUES]
    return [{"value": names[i], "count": count} for i in order if (count := int(counts[i]))]


class Shop:
    """The catalog, searched."""

    def __init__(self, data: Path, cached: int, tuned: bool):
        items = pq.read_table(data / "items.parquet")
        self._words = Words(items.column("text").to_pylist(), items.column("words").to_pylist(), kept=tuned)
        items = items.drop_columns(["text", "words"])
        self._columns = Columns(items)
        self._json = [orjson.dumps(_plain(record)) for record in items.to_pylist()]
        self._ids = items.column("item_id").to_pylist()
        vectors = np.load(data / "vectors.npy")
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        sample = np.linspace(0, len(vectors) - 1, min(_SAMPLE, len(vectors))).astype(np.int64)
        self._mean = vectors[sample].mean(0)
        self._cache: LRUCache = LRUCache(cached)

    def search(self, body: Body, vector: np.ndarray) -> bytes:
        rows, scores = self._cache.get(body.query) or self._candidates(body.query, vector)
        masks = self._columns.masks(body.filters, rows)
        inside = _all(list(masks.values()))
        kept = rows[inside]
        facets = {}
        for name in body.facets:  # each as if its own filter were open
            others = rows[_all([mask for field, mask in masks.items() if field != name])] if name in masks else kept
            facets[name] = self._columns.facet(name, others)
        hits = [
            {"item_id": self._ids[row], "score": score, "item": orjson.Fragment(self._json[row])}
            for row, score in _best(kept, scores[inside], body.page_size)
        ]
        return orjson.dumps({"hits": hits, "total": len(kept), "facets": facets})

    def _candidates(self, query: str, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows that share a word with the query or reach the floor of its vector, their fused scores)."""
        lexical = self._words.scores(query)
        cosine = np.empty(len(lexical), np.float32)
        # the product that IndexFlatIP's search makes, without its heap: every item's value is wanted
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(cosine), faiss.swig_ptr(vector), self._index.get_xb(), self._index.d, self._index.ntotal
        )
        background = float(self._mean @ vector)
        near = cosine >= background + 0.5 * (float(cosine.max()) - background) - 1e-6
        rows = np.flatnonzero((lexical > 0) | near)
        words = (1 - _DENSE) * _reciprocal_ranks(lexical[rows], lexical[rows] > 0)
        meaning = _DENSE * _reciprocal_ranks(cosine[rows], near[rows])
        found = rows, (_RRF_K + 1) * (words + meaning)
        if self._cache.maxsize:
            self._cache[query] = found
        return found


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "attributes": dict(record["attributes"] or ())}


def _all(masks: list[np.ndarray]) -> Any:
    """An index of what all masks keep."""
    return np.logical_and.reduce(masks) if masks else slice(None)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The k best rows and their scores, ties by row."""
    if k < len(rows):
        kept = np.flatnonzero(scores >= np.partition(scores, len(rows) - k)[len(rows) - k])
        rows, scores = rows[kept], scores[kept]
    order = np.argsort(-scores, kind="stable")[:k]
    return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))


def _reciprocal_ranks(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    out = np.zeros(len(scores))
    members = np.flatnonzero(member)
    order = members[np.argsort(-scores[members], kind="stable")]
    out[order] = 1 / (_RRF_K + 1 + np.arange(len(order)))
    return out
