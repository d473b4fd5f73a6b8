"""Training pairs without labels: what a shopper could have typed, and an item that answers it.

Each source gives one way to ask for an item: words of its title, its category, a value of its attributes,
its description, a query after which it was bought, an item that was bought with it. A pair's item is one
answer of many: `answers` tells which other items the same words describe, so that training never pushes
away an item that fits.

>>> pairs = Pairs(items)                                       # doctest: +SKIP
>>> pairs.among(np.arange(1_000)).draw(rng)                    # doctest: +SKIP
Pair(query='wireless mouse', row=17, source='title')
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrec.data.catalog import item_texts
from rayrec.errors import SchemaError

SOURCES = ("title", "category", "attribute", "description", "searched", "together")
MIN_ITEMS = 5
"""Words that fewer items have are names of one thing; the word index finds those."""
MAX_SHARE = 0.1
"""Words that more of the catalog has tell little."""
_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_SPAN = 3
_MAX_CHARS = 40
_SESSION_US = 3_600_000_000


@dataclass(frozen=True)
class Pair:
    """row: of the catalog."""

    query: str
    row: int
    source: str


def words(text: str) -> list[str]:
    """Lowercase words, plurals folded: enough to tell whether an item says what a query says."""
    return [_singular(word.lower()) for word in _WORD.findall(text)]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class Pairs:
    """The pairs of a catalog, drawn at random.

    items: CATALOG; events: EVENTS or None; sources: name -> weight, by default every source that has data,
    equally. Raises SchemaError if no source has any.
    """

    def __init__(self, items: pa.Table, events: pa.Table | None = None, sources: Mapping[str, float] | None = None):
        self.n = items.num_rows
        self.texts = item_texts(items)
        self._bags = [frozenset(words(text)) for text in self.texts]
        self._asked: dict[str, list[list[str]]] = {
            "title": _spans([_WORD.findall(title.lower()) for title in items.column("title").to_pylist()]),
            "category": _recurring([path[-1:] if path else [] for path in items.column("category").to_pylist()]),
            "attribute": _recurring([_values(pairs) for pairs in items.column("attributes").to_pylist()]),
            "description": [[text] if text else [] for text in items.column("description").to_pylist()],
        }
        if events is not None and events.num_rows:
            row_of = {item: row for row, item in enumerate(items.column("item_id").to_pylist())}
            self._asked["searched"] = _searched(events, row_of, self.n)
            self._asked["together"] = _together(events, row_of, items.column("title").to_pylist())
        unknown = set(sources or ()) - set(SOURCES)
        if unknown:
            raise SchemaError(f"sources: {sorted(unknown)} are not known; known: {', '.join(SOURCES)}")
        weights = {name: (sources or {}).get(name, 0.0 if sources else 1.0) for name in self._asked}
        self.weights = {name: w for name, w in weights.items() if w > 0 and any(self._asked[name])}
        if not self.weights:
            raise SchemaError("no pairs can be mined: the catalog has no words, categories or attributes that recur")
        # of the words of each item, and of what other sources say of it: who answers a query
        self._said: dict[str, set[int]] = defaultdict(set)
        for name in ("category", "attribute", "searched", "together"):
            for row, queries in enumerate(self._asked.get(name, ())):
                for query in queries:
                    self._said[query].add(row)
        self._having: dict[str, list[int]] = defaultdict(list)
        for row, bag in enumerate(self._bags):
            for word in bag:
                self._having[word].append(row)

    def among(self, rows: np.ndarray) -> "Draws":
        """Draws of pairs whose items are all among `rows`. Raises SchemaError if none of them has any."""
        return Draws(self, rows)

    def answers(self, query: str, row: int) -> bool:
        """Whether an item fits a query: it says all its words, or a source says so."""
        return row in self._said.get(query, ()) or self._bags[row].issuperset(words(query))

    def answering(self, query: str) -> set[int]:
        """All items that fit a query."""
        lists = [self._having.get(word, ()) for word in words(query)]
        said = set(self._said.get(query, ()))
        if not lists or not all(lists):
            return said
        shortest = min(lists, key=len)
        return said | {row for row in shortest if self._bags[row].issuperset(words(query))}

    def asked(self, source: str, row: int) -> list[str]:
        """The queries that a source has for an item."""
        return self._asked[source][row]

    def having(self, word: str) -> list[int]:
        """The rows, ascending, whose text says a word, given as `words` gives it."""
        return self._having.get(word, [])


class Draws:
    """Random pairs of a part of the catalog."""

    def __init__(self, pairs: Pairs, rows: np.ndarray):
        self._pairs = pairs
        self._rows = np.sort(rows)
        having = {name: [r for r in self._rows.tolist() if pairs.asked(name, r)] for name in pairs.weights}
        self._having = {name: found for name, found in having.items() if found}
        if not self._having:
            raise SchemaError(f"none of {len(rows)} items has a pair of {', '.join(pairs.weights)}")
        weights = np.array([pairs.weights[name] for name in self._having])
        self._shares = weights / weights.sum()
        self._allowed = frozenset(self._rows.tolist())

    def draw(self, rng: np.random.Generator) -> Pair:
        """A pair of a source by weight, of a random item that it has."""
        source = list(self._having)[rng.choice(len(self._shares), p=self._shares)]
        row = self._having[source][rng.integers(len(self._having[source]))]
        queries = self._pairs.asked(source, row)
        return Pair(queries[rng.integers(len(queries))], row, source)

    def hard(self, pair: Pair, rng: np.random.Generator) -> int:
        """A row that shares a word with the query and does not answer it; any that does not, if none is found soon."""
        asked = words(pair.query)
        for attempt in range(32):
            shared = self._pairs.having(asked[rng.integers(len(asked))]) if asked and attempt < 16 else ()
            row = int(shared[rng.integers(len(shared))] if shared else self._rows[rng.integers(len(self._rows))])
            if row in self._allowed and not self._pairs.answers(pair.query, row):
                return row
        return row


def _spans(titles: Sequence[list[str]]) -> list[list[str]]:
    """Of each title, the runs of one to three words that recur in the catalog, and are not all numbers or crumbs."""

    def runs(title: list[str]) -> set[tuple[str, ...]]:
        return {tuple(title[i : i + k]) for k in range(1, _SPAN + 1) for i in range(len(title) - k + 1)}

    counts = Counter(run for title in titles for run in runs(title))
    most = MAX_SHARE * len(titles)
    fit = {
        run
        for run, count in counts.items()
        if MIN_ITEMS <= count <= most and any(len(w) > 2 and not any(c.isdigit() for c in w) for w in run)
    }
    return [sorted(" ".join(run) for run in runs(title) & fit) for title in titles]


def _recurring(values: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each item's values, those that recur in the catalog."""
    lowered = [sorted({v.lower() for v in each if v and len(v) <= _MAX_CHARS}) for each in values]
    counts = Counter(v for each in lowered for v in each)
    most = MAX_SHARE * len(values)
    return [[v for v in each if MIN_ITEMS <= counts[v] <= most] for each in lowered]


def _values(pairs: Iterable[tuple[str, str | None]] | None) -> list[str]:
    """Attribute values in words: no numbers, no yes or no."""
    found = [value for _, value in pairs or () if value and len(value) > 2 and not any(c.isdigit() for c in value)]
    return [value for value in found if value.lower() not in ("true", "false", "yes", "no", "none")]


def _searched(events: pa.Table, row_of: Mapping[str, int], n: int) -> list[list[str]]:
    """Queries after which an item was viewed, put in a cart or bought by the same shopper within the hour."""
    found: list[set[str]] = [set() for _ in range(n)]
    last: dict[str, tuple[str, int]] = {}
    columns = ["user_id", "session_id", "type", "item_id", "query", "ts_us"]
    for event in events.select(columns).sort_by("ts_us").to_pylist():
        who = event["session_id"] or event["user_id"]
        if who is None:
            continue
        if event["type"] == "search":
            last[who] = (event["query"] or "").strip(), event["ts_us"]
        elif who in last and event["item_id"] in row_of:
            query, at = last[who]
            if query and event["ts_us"] - at <= _SESSION_US:
                found[row_of[event["item_id"]]].add(query)
    return [sorted(queries) for queries in found]


def _together(events: pa.Table, row_of: Mapping[str, int], titles: Sequence[str]) -> list[list[str]]:
    """Titles of items that were bought with an item in at least MIN_ITEMS baskets."""
    baskets: dict[str, set[int]] = defaultdict(set)
    for event in events.select(["session_id", "type", "item_id"]).to_pylist():
        if event["type"] == "purchase" and event["session_id"] and event["item_id"] in row_of:
            baskets[event["session_id"]].add(row_of[event["item_id"]])
    counts: Counter[tuple[int, int]] = Counter()
    for basket in baskets.values():
        bought = sorted(basket)[:30]
        counts.update((a, b) for i, a in enumerate(bought) for b in bought[i + 1 :])
    found: list[list[str]] = [[] for _ in titles]
    for (a, b), count in counts.items():
        if count >= MIN_ITEMS:
            found[a].append(titles[b])
            found[b].append(titles[a])
    return found
