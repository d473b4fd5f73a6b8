"""The catalog in columns: which rows a filter keeps, what a facet counts, how a sort orders.

Everything reads the same integer codes, so a facet's count and the total of the search that chooses
that value cannot disagree.

>>> filters.mask({"brand": ["HP", "Dell"], "price_cents": {"gte": 1000}})   # doctest: +SKIP
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from cachetools import LRUCache

from rayrec.errors import InvalidRequest
from rayrec.retrieval.base import Column, Update, top_k
from rayrec.retrieval.codes import ATTRIBUTE, SEPARATOR, Codes, word

SORTS = ("relevance", "price_asc", "price_desc", "newest", "popular")
_WORDS = ("brand", "currency", "item_id")
_NUMBERS = ("price_cents", "updated_us")
_BOUNDS = {"gte": np.greater_equal, "gt": np.greater, "lte": np.less_equal, "lt": np.less}
_NULL_NUMBER = np.iinfo(np.int64).min
_PRICE_RANGES = 5
_CACHED_RECORDS = 20_000  # of about 1 KB
_CACHED_FIELDS = 128


class ItemColumns:
    """ITEMS, sorted by item_id, ready to be filtered, counted and sorted. Row = place in that order.

    A row is an item for good: what changes keeps its row, what is deleted is not there until it is put again, and what
    is new gets the next row.
    """

    def __init__(self, items: pa.Table):
        self.items = items.combine_chunks()
        self.n = items.num_rows
        self.there: np.ndarray | None = None
        """bool (N,), whether an item is there; None if all are."""
        self._there = Column(np.ones(self.n, bool))
        self._changed: dict[int, bytes] = {}  # records as JSON, a third of what they take as dicts
        self._codes: LRUCache = LRUCache(_CACHED_FIELDS)  # whoever asks may invent attribute names
        self._records: LRUCache = LRUCache(_CACHED_RECORDS)
        self._lock = threading.Lock()
        self._of_paths: tuple[int, tuple[list[str], sp.csr_matrix]] | None = None

    @cached_property
    def rows(self) -> dict[str, int]:
        """item_id -> the row that it has or had."""
        return {item_id: row for row, item_id in enumerate(self.items.column("item_id").to_pylist())}

    def row(self, item_id: str) -> int | None:
        """The row of an item that is there."""
        row = self.rows.get(item_id)
        return None if row is None or (self.there is not None and not self.there[row]) else row

    # -- changes ----------------------------------------------------------------------------------

    def _claim(self, item_id: str) -> int:
        """The row of an item, a new one if it never had one."""
        row = self.rows.get(item_id)
        if row is None:
            row = self.rows[item_id] = self.n
            self.n += 1
            self._set(row, dict.fromkeys(self.items.column_names) | {"attributes": {}})
            self._remove(row)
        return row

    def update(self, updates: Iterable[Update]) -> None:
        """Take up what became of items, new ones in the order of their rows."""
        for update in updates:
            row = self._claim(update.item_id)
            assert row == update.row, f"row {row} of an item planned for {update.row}"
            if update.record is None:
                self._remove(row)
            else:
                self._put(row, update.record)

    def _put(self, row: int, record: dict[str, Any]) -> None:
        self._changed[row] = bytes(memoryview(orjson.dumps(record)))  # orjson leaves kilobytes of room
        with self._lock:
            self._records.pop(row, None)
        self._there.put(row, True)
        self.there = None if self._there.values.all() else self._there.values
        self._set(row, record)

    def _set(self, row: int, record: dict[str, Any]) -> None:
        with self._lock:
            fields = list(self._codes.items())
        for field, codes in fields:
            codes.put(row, word(record, field))
        for name, column in self._numbers.items():
            column.put(row, _NULL_NUMBER if record[name] is None else record[name])
        self._available.put(row, record["available"] is not False)

    def _remove(self, row: int) -> None:
        self._there.put(row, False)
        self.there = self._there.values

    # -- values -----------------------------------------------------------------------------------

    def words(self, field: str) -> Codes:
        """The codes of a word field: brand, category (as joined path), currency or attributes.NAME."""
        with self._lock:
            codes = self._codes.get(field)
        if codes is None:
            if field == "category":
                column = pc.binary_join(self.items.column("category"), SEPARATOR)
                column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            elif field.startswith(ATTRIBUTE):
                column = pc.map_lookup(self.items.column("attributes"), field[len(ATTRIBUTE) :], "first")
            else:
                column = self.items.column(field)
            codes = Codes.encode(column)
            for row in range(self.items.num_rows, self.n):
                codes.put(row, None)
            # most invented names are in no record; to look for one is much less than to read the record
            said = orjson.dumps(field.removeprefix(ATTRIBUTE))
            for row, record in self._changed.items():
                codes.put(row, word(orjson.loads(record), field) if said in record else None)
            with self._lock:
                self._codes[field] = codes
        return codes

    def numbers(self, field: str) -> np.ndarray:
        """int64 (N,) of price_cents or updated_us; the least int64 where there is none."""
        return self._numbers[field].values

    @cached_property
    def _numbers(self) -> dict[str, Column]:
        return {name: Column(pc.fill_null(self.items.column(name), _NULL_NUMBER).to_numpy()) for name in _NUMBERS}

    @property
    def _subtrees(self) -> tuple[list[str], sp.csr_matrix]:
        """(all paths and their ancestors, sorted; which category codes each of them counts, one row a path)."""
        words = self.words("category").words
        if self._of_paths is None or self._of_paths[0] != len(words):
            self._of_paths = len(words), self._count_subtrees(words)
        return self._of_paths[1]

    @staticmethod
    def _count_subtrees(words: list[str]) -> tuple[list[str], sp.csr_matrix]:
        paths = [path.split(SEPARATOR) for path in words]
        prefixes = [[SEPARATOR.join(path[: i + 1]) for i in range(len(path))] for path in paths]
        names = sorted({name for each in prefixes for name in each})
        place = {name: i for i, name in enumerate(names)}
        columns = [place[name] for each in prefixes for name in each]
        start = np.cumsum([0, *(len(each) for each in prefixes)])
        of_code = sp.csr_matrix((np.ones(len(columns), np.int64), columns, start), (len(paths), len(names)))
        return names, of_code.T.tocsr()

    @property
    def available(self) -> np.ndarray:
        """bool (N,). An item that does not say is available."""
        return self._available.values

    @cached_property
    def _available(self) -> Column:
        return Column(pc.fill_null(self.items.column("available"), True).to_numpy(zero_copy_only=False))

    # -- filters ----------------------------------------------------------------------------------

    def mask(self, filters: Mapping[str, Any] | None) -> np.ndarray | None:
        """bool (N,): rows that are there and pass all filters; None if all do. Raises InvalidRequest."""
        mask = self.there
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
        if field.startswith(ATTRIBUTE) and len(field) > len(ATTRIBUTE):
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
        by_name = None
        if field == "price_cents":
            return self._spans(field, rows)
        if field == "available":
            names: list[Any] = [False, True]
            counts = np.bincount(self.available[rows].astype(int), minlength=2)
        else:
            self._known(field, f"facets.{field}")
            codes = self.words(field)
            names = codes.words
            counts = np.bincount(codes.of_row[rows] + 1, minlength=len(names) + 1)[1:]
            if field == "category":
                names, belongs = self._subtrees
                counts = belongs @ counts
            else:
                by_name = codes.by_name
        found = np.flatnonzero(counts)
        order = found[np.lexsort((found if by_name is None else by_name(found), -counts[found]))][:limit]
        return [{"value": names[i], "count": int(counts[i])} for i in order]

    def _spans(self, field: str, rows: np.ndarray) -> dict[str, Any]:
        values = np.sort(self.numbers(field)[rows])
        values = values[np.searchsorted(values, _NULL_NUMBER, "right") :]
        if not len(values):
            return {"min": None, "max": None, "ranges": []}
        edges = np.unique(values[np.arange(_PRICE_RANGES + 1) * (len(values) - 1) // _PRICE_RANGES])
        edges = np.append(edges[:-1] if len(edges) > 1 else edges, values[-1] + 1)
        counts = np.diff(np.searchsorted(values, edges))
        return {
            "min": int(values[0]),
            "max": int(values[-1]),
            "ranges": [
                {"gte": int(low), "lt": int(high), "count": int(count)}
                for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
            ],
        }

    # -- order ------------------------------------------------------------------------------------

    def order(
        self, rows: np.ndarray, sort: str, scores: np.ndarray, popularity: np.ndarray | None, k: int
    ) -> np.ndarray:
        """Places in `rows` (ascending) of the first k in the order of `sort`; items without the value come last.

        scores and popularity: one value per place in `rows`. Ties by item_id.
        """
        if sort == "relevance":
            return top_k(scores, k)
        if sort == "popular":
            assert popularity is not None
            return top_k(popularity, k)
        if sort in ("price_asc", "price_desc", "newest"):
            field = "updated_us" if sort == "newest" else "price_cents"
            values = self.numbers(field)[rows]
            missing = values == _NULL_NUMBER
            signed = values if sort == "price_asc" else -np.where(missing, 0, values)
            return np.lexsort((rows, np.where(missing, 0, signed), missing))[:k]
        raise InvalidRequest("invalid_sort", f"sort: no such order {sort!r}", field="sort", hint=", ".join(SORTS))

    def records(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The items at `rows` as plain dicts; lists and maps in them are shared, so they are to be read only."""
        wanted = [int(row) for row in rows]
        with self._lock:
            known = {row: self._records[row] for row in wanted if row in self._records}
        lacking = [row for row in wanted if row not in known]
        if lacking:
            made = self._made(lacking)
            known |= made
            with self._lock:  # a changed one is read anew: it may change again between its reading and this
                self._records.update((row, record) for row, record in made.items() if row not in self._changed)
        return [dict(known[row]) for row in wanted]

    def _made(self, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        made = {row: orjson.loads(self._changed[row]) for row in rows if row in self._changed}
        as_built = [row for row in rows if row not in made]
        for row, record in zip(as_built, self.items.take(pa.array(as_built, pa.int64())).to_pylist(), strict=True):
            made[row] = {**record, "attributes": dict(record["attributes"] or [])}
        return made
