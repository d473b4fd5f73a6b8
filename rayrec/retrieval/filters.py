"""The catalog in columns: which rows a filter keeps, what a facet counts, how a sort orders.

Everything reads the same integer codes, so a facet's count and the total of the search that chooses
that value cannot disagree.

>>> filters.mask({"brand": ["HP", "Dell"], "price_cents": {"gte": 1000}})   # doctest: +SKIP
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.errors import InvalidRequest

SEPARATOR = " > "
SORTS = ("relevance", "price_asc", "price_desc", "newest", "popular")
_WORDS = ("brand", "currency", "item_id")
_NUMBERS = ("price_cents", "updated_us")
_BOUNDS = {"gte": np.greater_equal, "gt": np.greater, "lte": np.less_equal, "lt": np.less}
_ATTRIBUTE = "attributes."
_NULL_NUMBER = np.iinfo(np.int64).min
_PRICE_RANGES = 5


@dataclass(frozen=True)
class Codes:
    """A column of words: code of each row (-1: none), and the word of each code, sorted."""

    of_row: np.ndarray
    words: list[str]

    @cached_property
    def code(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @classmethod
    def encode(cls, column: pa.ChunkedArray | pa.Array) -> "Codes":
        words = sorted(pc.unique(pc.drop_null(column)).to_pylist())
        found = pc.fill_null(pc.index_in(column, value_set=pa.array(words, pa.string())), -1)
        return cls(found.to_numpy().astype(np.int32), words)


class ItemColumns:
    """ITEMS, sorted by item_id, ready to be filtered, counted and sorted. Row = place in that order."""

    def __init__(self, items: pa.Table):
        self.items = items.combine_chunks()
        self.n = items.num_rows
        self._codes: dict[str, Codes] = {}

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.items.column("item_id").to_pylist())}

    def words(self, field: str) -> Codes:
        """The codes of a word field: brand, category (as joined path), currency or attributes.NAME."""
        if field not in self._codes:
            if field == "category":
                column = pc.binary_join(self.items.column("category"), SEPARATOR)
                column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            elif field.startswith(_ATTRIBUTE):
                column = pc.map_lookup(self.items.column("attributes"), field[len(_ATTRIBUTE) :], "first")
            else:
                column = self.items.column(field)
            self._codes[field] = Codes.encode(column)
        return self._codes[field]

    def numbers(self, field: str) -> np.ndarray:
        """int64 (N,) of price_cents or updated_us; the least int64 where there is none."""
        return pc.fill_null(self.items.column(field), _NULL_NUMBER).to_numpy()

    @cached_property
    def available(self) -> np.ndarray:
        """An item that does not say is available."""
        return pc.fill_null(self.items.column("available"), True).to_numpy()

    # -- filters ----------------------------------------------------------------------------------

    def mask(self, filters: Mapping[str, Any] | None) -> np.ndarray | None:
        """bool (N,): rows that pass all filters; None if there are none. Raises InvalidRequest."""
        mask: np.ndarray | None = None
        for field, wanted in (filters or {}).items():
            one = self._one(field, wanted)
            mask = one if mask is None else mask & one
        return mask

    def _one(self, field: str, wanted: Any) -> np.ndarray:
        at = f"filters.{field}"
        if field in _NUMBERS:
            return self._range(field, wanted, at)
        if field == "available":
            if not isinstance(wanted, bool):
                raise InvalidRequest("invalid_filter", f"{at}: expected true or false", field=at)
            return self.available == wanted
        self._known(field, at)
        values = [wanted] if isinstance(wanted, str) else wanted
        if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
            raise InvalidRequest(
                "invalid_filter", f"{at}: expected a list of words", field=at, hint=f'like {{"{field}": ["A", "B"]}}'
            )
        codes = self.words(field)
        chosen = np.zeros(len(codes.words) + 1, bool)  # the last place stands for "none" (-1)
        for value in values:
            if field == "category":
                chosen[self._subtree(value)] = True
            elif value in codes.code:
                chosen[codes.code[value]] = True
        return chosen[codes.of_row]

    def _known(self, field: str, at: str) -> None:
        if field in _WORDS or field == "category":
            return
        if field.startswith(_ATTRIBUTE) and len(field) > len(_ATTRIBUTE):
            return
        known = [*_WORDS, "category", *_NUMBERS, "available", "attributes.NAME"]
        raise InvalidRequest("unknown_field", f"{at}: no such field", field=at, hint=f"known: {', '.join(known)}")

    def _range(self, field: str, wanted: Any, at: str) -> np.ndarray:
        if not isinstance(wanted, Mapping) or not wanted or set(wanted) - set(_BOUNDS):
            raise InvalidRequest(
                "invalid_filter",
                f"{at}: expected bounds out of {', '.join(_BOUNDS)}",
                field=at,
                hint=f'like {{"{field}": {{"gte": 1000, "lt": 5000}}}}',
            )
        values = self.numbers(field)
        mask = values != _NULL_NUMBER
        for bound, limit in wanted.items():
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit != limit:
                raise InvalidRequest("invalid_filter", f"{at}.{bound}: expected a number", field=f"{at}.{bound}")
            mask &= _BOUNDS[bound](values, limit)
        return mask

    def _subtree(self, path: str) -> list[int]:
        prefix = path + SEPARATOR
        return [i for i, word in enumerate(self.words("category").words) if word == path or word.startswith(prefix)]

    # -- facets -----------------------------------------------------------------------------------

    def facet(self, field: str, rows: np.ndarray, limit: int = 100) -> Any:
        """What a page shows of `field` over `rows`: value counts, or the span of a number.

        Values by count, then name; at most `limit`. A category counts its whole subtree.
        """
        if field == "price_cents":
            return self._spans(field, rows)
        if field == "available":
            counted = np.bincount(self.available[rows].astype(int), minlength=2)
            counts: dict[Any, int] = {True: int(counted[1]), False: int(counted[0])}
        else:
            self._known(field, f"facets.{field}")
            codes = self.words(field)
            found = np.bincount(codes.of_row[rows] + 1, minlength=len(codes.words) + 1)[1:]
            counts = {codes.words[i]: int(found[i]) for i in np.flatnonzero(found)}
            if field == "category":
                counts = _with_ancestors(counts)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return [{"value": value, "count": count} for value, count in ordered[:limit] if count]

    def _spans(self, field: str, rows: np.ndarray) -> dict[str, Any]:
        values = self.numbers(field)[rows]
        values = values[values != _NULL_NUMBER]
        if not len(values):
            return {"min": None, "max": None, "ranges": []}
        edges = np.unique(np.quantile(values, np.linspace(0, 1, _PRICE_RANGES + 1), method="lower"))
        edges = np.append(edges[:-1], values.max() + 1) if len(edges) > 1 else np.append(edges, edges[-1] + 1)
        counts, _ = np.histogram(values, edges)
        return {
            "min": int(values.min()),
            "max": int(values.max()),
            "ranges": [
                {"gte": int(low), "lt": int(high), "count": int(count)}
                for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            ],
        }

    # -- order ------------------------------------------------------------------------------------

    def order(self, rows: np.ndarray, sort: str, scores: np.ndarray, popularity: np.ndarray) -> np.ndarray:
        """Places in `rows` in the order of `sort`; items without the value last; ties by item_id.

        scores and popularity: one value per place in `rows`.
        """
        if sort == "relevance":
            key = -scores
        elif sort == "popular":
            key = -popularity
        elif sort in ("price_asc", "price_desc", "newest"):
            field = "updated_us" if sort == "newest" else "price_cents"
            values = self.numbers(field)[rows]
            missing = values == _NULL_NUMBER
            signed = values if sort == "price_asc" else -np.where(missing, 0, values)
            return np.lexsort((rows, np.where(missing, 0, signed), missing))
        else:
            raise InvalidRequest("invalid_sort", f"sort: no such order {sort!r}", field="sort", hint=", ".join(SORTS))
        return np.lexsort((rows, key))

    def records(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """The items at `rows` as plain dicts."""
        records = self.items.take(pa.array(list(rows), pa.int64())).to_pylist()
        for record in records:
            record["attributes"] = dict(record["attributes"] or [])
        return records


def _with_ancestors(counts: dict[str, int]) -> dict[str, int]:
    """{'A > B': 2, 'A': 1} -> {'A > B': 2, 'A': 3}"""
    totals: dict[str, int] = {}
    for path, count in counts.items():
        parts = path.split(SEPARATOR)
        for depth in range(1, len(parts) + 1):
            prefix = SEPARATOR.join(parts[:depth])
            totals[prefix] = totals.get(prefix, 0) + count
    return totals
