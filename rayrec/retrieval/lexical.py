"""Word matching on tantivy: BM25 over a text field and, at a fifth of its weight, the attributes.

Every word that a query and an item share makes a match. tantivy fixes k1 = 1.2 and b = 0.75.

What changes after an index was built stands beside it, scored by the same formula and by what the built index says of
words (how many items have one, how long texts are), so that scores of old and new items compare, and an item's does not
depend on when it came. A word that the index never saw counts as the rarest.
"""

import json
import math
import threading
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tantivy
from cachetools import LRUCache

from rayrec.errors import IncompatibleArtifact
from rayrec.retrieval.analyzers import analyzer
from rayrec.retrieval.base import Column, top_k

_TOKENIZER = "words"
# nDCG@10 on chorus_icecat: text alone .781, attributes at .1 .790, at .2 .792, at .4 .774, in the text .757
_BOOST = {"text": 1.0, "attributes": 0.2}
_K1, _B = 1.2, 0.75
_MEANS = "words.json"
_SLACK = 50_000  # postings, of 12 bytes
_SWEPT = 20  # terms at a time, which takes some .15 ms
_HEAP_BYTES = 128 << 20
_KEPT_BYTES = 64 << 20


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("row", stored=False, indexed=True, fast=True)
    builder.add_text_field("text", tokenizer_name=_TOKENIZER)
    builder.add_text_field("attributes", tokenizer_name=_TOKENIZER)
    return builder.build()


class _Postings:
    """One term's items beside the built index, in 12 bytes each; of an item only those of its newest turn count."""

    def __init__(self) -> None:
        self._rows, self._turns, self._scores = array("i"), array("i"), array("f")

    def __len__(self) -> int:
        return len(self._rows)

    def drop_old(self, newest: np.ndarray) -> None:
        current = np.frombuffer(self._turns, np.int32) == newest[np.frombuffer(self._rows, np.int32)]
        kept = [np.frombuffer(values, np.int32)[current].tobytes() for values in (self._rows, self._turns)]
        scores = np.frombuffer(self._scores, np.float32)[current].tobytes()
        self._rows, self._turns, self._scores = array("i", kept[0]), array("i", kept[1]), array("f", scores)

    def append(self, row: int, turn: int, score: float) -> None:
        self._rows.append(row)
        self._turns.append(turn)
        self._scores.append(score)

    def valid(self, newest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows int32, scores float32), copies. newest: the turn of each row."""
        rows = np.frombuffer(self._rows, np.int32)
        current = np.frombuffer(self._turns, np.int32) == newest[rows]
        return rows[current], np.frombuffer(self._scores, np.float32)[current]


def _kept_length(words: int) -> int:
    """A text's length as tantivy keeps it, in a byte: exact up to 39 words, beyond with three bits and an exponent."""
    if words < 40:
        return words
    shift = (words - 24).bit_length() - 4
    return 24 + ((words - 24 >> shift) << shift)


class LexicalIndex:
    """One shard's words."""

    def __init__(self, index: tantivy.Index, language: str, mean_words: Mapping[str, float]):
        """mean_words: of an item in each field."""
        self.analyzer = analyzer(language)
        index.register_tokenizer(_TOKENIZER, self.analyzer.tokenizer)
        index.reload()
        self._index = index
        self._schema = index.schema
        self._searcher = index.searcher()
        self.n = int(self._searcher.num_docs)
        self._kept: LRUCache = LRUCache(_KEPT_BYTES, getsizeof=lambda found: 200 + 8 * len(found[0]))
        self._lock = threading.Lock()
        self._mean_words = mean_words
        self._built = self.n
        self._beside: dict[str, _Postings] = {}
        # int32 (N,): which of its postings beside the index are an item's; 0: those that it was built with
        self._turns = Column(np.zeros(self.n, np.int32))
        self._turn = 0
        self._kept_beside, self._room = 0, _SLACK
        self._to_sweep: list[str] = []
        self._rare: dict[tuple[str, str], float] = {}

    @classmethod
    def build(cls, directory: Path, texts: Sequence[str], attributes: Sequence[str], language: str = "english") -> None:
        """Write an index of one document per position into `directory`. Raises NotFound as `analyzer` does."""
        directory.mkdir(parents=True, exist_ok=True)
        schema = _schema()
        index = tantivy.Index(schema, path=str(directory))
        read = analyzer(language)
        index.register_tokenizer(_TOKENIZER, read.tokenizer)
        writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        words = dict.fromkeys(_BOOST, 0)
        for row, said in enumerate(zip(texts, attributes, strict=True)):
            document: dict[str, Any] = {"row": row}
            for field, text in zip(_BOOST, said, strict=True):
                document[field] = read.indexed(text)
                words[field] += len(read.tokenizer.analyze(document[field]))
            writer.add_document(tantivy.Document.from_dict(document, schema))
        writer.commit()
        writer.wait_merging_threads()
        for lock in directory.glob(".tantivy-*.lock"):  # left behind; not part of the index
            lock.unlink()
        means = {field: count / max(1, len(texts)) for field, count in words.items()}
        (directory / _MEANS).write_text(json.dumps(means))

    @classmethod
    def load(cls, directory: Path, language: str = "english") -> "LexicalIndex":
        """Raises IncompatibleArtifact if `directory` holds no index of ours, NotFound as `analyzer` does."""
        try:
            if not tantivy.Index.exists(str(directory)):  # opening would make an empty one here
                raise ValueError("no index there")
            means = json.loads((directory / _MEANS).read_text())
            return cls(tantivy.Index(_schema(), path=str(directory), reuse=True), language, means)
        except (ValueError, OSError) as error:
            raise IncompatibleArtifact(f"{directory}: not a readable tantivy index ({error})") from error

    def terms(self, query: str) -> list[str]:
        """The distinct words that a query asks for, in its order."""
        return self.analyzer.terms(query)

    def put(self, position: int, text: str, attributes: str) -> None:
        """Change what an item says, or add the next one."""
        scores: dict[str, float] = {}
        for field, said in (("text", text), ("attributes", attributes)):
            words = Counter(self.analyzer.tokenizer.analyze(self.analyzer.indexed(said)))
            length = _kept_length(words.total())
            norm = _K1 * (1 - _B + _B * length / max(self._mean_words[field], 1e-9))
            for term, count in words.items():
                weight = _BOOST[field] * self._rarity(field, term) * (_K1 + 1)
                scores[term] = scores.get(term, 0.0) + weight * count / (count + norm)
        self._turn += 1
        self._turns.put(position, self._turn)
        for term, score in scores.items():
            if term not in self._beside:
                self._beside[term] = _Postings()
            self._beside[term].append(position, self._turn, score)
        self._kept_beside += len(scores)
        if self._kept_beside > self._room and not self._to_sweep:
            self._to_sweep = list(self._beside)
            self._rare.clear()
        if self._to_sweep:
            self._drop_old()
        self.n = max(self.n, position + 1)

    def _drop_old(self) -> None:
        """What items no longer say goes when it may be half of all that is beside the index: a few terms a change."""
        for term in self._to_sweep[-_SWEPT:]:
            postings = self._beside[term]
            self._kept_beside -= len(postings)
            postings.drop_old(self._turns.values)
            self._kept_beside += len(postings)
            if not postings:
                del self._beside[term]
        del self._to_sweep[-_SWEPT:]
        if not self._to_sweep:
            self._room = 2 * self._kept_beside + _SLACK

    def restore(self, position: int) -> None:
        """An item says again what it said when the index was built."""
        self._turns.put(position, 0)

    def holds(self, position: int) -> bool:
        """Whether an item says what it said when the index was built."""
        return position < self._built and not self._turns.values[position]

    def _rarity(self, field: str, term: str) -> float:
        """ln(1 + (N - n + 1/2) / (n + 1/2)) of n of the N built items with a term."""
        found = self._rare.get((field, term))
        if found is None:
            n = self._searcher.doc_freq(field, term)
            found = self._rare[field, term] = math.log1p((self._built - n + 0.5) / (n + 0.5))
        return found

    def match(self, query: str, limit: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, bool]:
        """(positions int64 ascending, BM25 float32, complete): all items that share a word, or the `limit` best.

        allowed: bool (N,), the positions that may be found. complete tells that nothing was cut; a cut goes by score,
        ties by position.
        """
        scores = np.zeros(self.n, np.float32)
        terms = self.terms(query)
        for term in terms:
            rows, contributions = self._postings(term)
            scores[rows] += contributions
        if self._turn:
            scores[: self._built][self._turns.values[: self._built] > 0] = 0
        for term in terms:
            beside = self._beside.get(term)
            if beside is not None:
                rows, contributions = beside.valid(self._turns.values)
                scores[rows] += contributions
        if allowed is not None:
            scores[~allowed] = 0
        positions = np.flatnonzero(scores)
        if len(positions) > limit:
            best = np.sort(positions[top_k(scores[positions], limit)])
            return best, scores[best], False
        return positions, scores[positions], True

    def _postings(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """(positions int32, BM25 float32) of the items with one term; BM25 is a sum over terms, so these add up.

        tantivy hands out hits as Python objects, which took half of a search's time (15,000 items, 4,300 matches a
        query: 3.0 ms, from kept postings 0.1 ms). Words recur, so what is decoded is kept.
        """
        with self._lock:
            known = self._kept.get(term)
        if known is not None:
            return known
        clauses = []
        for name, boost in _BOOST.items():
            clause = tantivy.Query.term_query(self._schema, name, term, index_option="freq")
            clauses.append((tantivy.Occur.Should, tantivy.Query.boost_query(clause, boost)))
        hits = self._searcher.search(tantivy.Query.boolean_query(clauses), limit=max(self._built, 1), count=False).hits
        rows = self._searcher.fast_field_values("row", [address for _, address in hits])
        scores = np.fromiter((score for score, _ in hits), np.float32, len(hits))
        found = np.asarray(rows, np.int32), scores
        with self._lock:
            self._kept[term] = found
        return found
