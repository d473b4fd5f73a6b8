"""Shoppers' events as arrays in time order, and how they are split to learn from and to judge by.

>>> histories = Histories.of(events, item_ids)                      # doctest: +SKIP
>>> learned, valid, test = leave_one_out(histories)                 # doctest: +SKIP
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.schema import EVENT_TYPES

SEARCH = EVENT_TYPES.index("search")
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Histories:
    """Events of history h are at start[h]:start[h + 1], oldest first.

    users object (H,): ids; start int64 (H + 1,). Per event: rows int64, of the catalog, -1 of a search; kinds int8,
    of EVENT_TYPES; ts_us int64; baskets int64, a session or else a shopper's day; queries int64, of `texts`, -1 where
    nothing was asked. places int64 (E,): rows of the table of events that they were made `of`, if they were.
    """

    users: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    kinds: np.ndarray
    ts_us: np.ndarray
    baskets: np.ndarray
    queries: np.ndarray
    texts: Sequence[str] = ()
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.start)

    @property
    def sources(self) -> np.ndarray:
        """`places` of histories that must have them."""
        if self.places is None:
            raise ValueError("these histories were not made of a table of events")
        return self.places

    @classmethod
    def of(
        cls, events: pa.Table, item_ids: pa.Array, *, kinds: Sequence[str] = EVENT_TYPES, sessions: bool = False
    ) -> "Histories":
        """EVENTS in time order, of a catalog's rows. What names no shopper or no known item or query is passed over.

        sessions: one of nobody known is a shopper too.
        """
        wanted = pc.is_in(events.column("type"), pa.array(kinds))
        events = events.filter(wanted)
        item = pc.fill_null(pc.index_in(events.column("item_id"), value_set=item_ids), -1)
        rows = item.to_numpy().astype(np.int64)
        kind = pc.index_in(events.column("type"), value_set=pa.array(EVENT_TYPES)).to_numpy()
        asked = pc.dictionary_encode(events.column("query")).combine_chunks()
        query = pc.fill_null(asked.indices, -1).to_numpy().astype(np.int64)
        rows[kind == SEARCH] = -1
        query[kind != SEARCH] = -1
        whose = events.column("user_id")
        if sessions:
            whose = pc.coalesce(whose, pc.binary_join_element_wise("session", events.column("session_id"), " "))
        user = pc.dictionary_encode(whose).combine_chunks()
        users = pc.fill_null(user.indices, -1).to_numpy().astype(np.int64)
        baskets = group_baskets(events, users)
        names = np.array(user.dictionary.to_pylist(), object)
        rank = np.empty(len(names), np.int64)
        rank[np.argsort(names.astype(str), kind="stable")] = np.arange(len(names))
        known = np.flatnonzero((users >= 0) & ((rows >= 0) | (query >= 0)))
        order = known[np.argsort(rank[users[known]], kind="stable")]
        counts = np.bincount(rank[users[order]], minlength=len(names))
        there = counts > 0
        return cls(
            names[np.argsort(rank)][there],
            np.concatenate([[0], np.cumsum(counts[there])]).astype(np.int64),
            rows[order],
            kind[order].astype(np.int8),
            events.column("ts_us").to_numpy()[order],
            baskets[order],
            query[order],
            asked.dictionary.to_pylist(),
            np.flatnonzero(wanted.to_numpy())[order],
        )

    @classmethod
    def of_rows(cls, sequences: Sequence[Sequence[int]], kind: str = "purchase") -> "Histories":
        """Bare sequences of catalog rows, a day between two events."""
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.concatenate([np.asarray(s, np.int64) for s in sequences]) if len(sequences) else np.empty(0, np.int64)
        place = np.arange(len(rows)) - np.repeat(start[:-1], lengths)
        return cls(
            np.array([str(h) for h in range(len(sequences))], object),
            start,
            rows,
            np.full(len(rows), EVENT_TYPES.index(kind), np.int8),
            place * DAY_US,
            np.arange(len(rows)),
            np.full(len(rows), -1, np.int64),
        )

    def take(self, chosen: np.ndarray) -> "Histories":
        """Some of them, in that order."""
        return self.window(chosen, self.start[chosen], self.start[chosen + 1])

    def window(self, chosen: np.ndarray, first: np.ndarray, end: np.ndarray) -> "Histories":
        """Events first[i]:end[i], as places in the arrays, of histories chosen[i]."""
        lengths = end - first
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(start[-1]) + np.repeat(first - start[:-1], lengths)
        rows, kinds, ts_us, baskets, queries = (getattr(self, name)[at] for name in _ARRAYS[1:])
        places = None if self.places is None else self.places[at]
        return Histories(self.users[chosen], start, rows, kinds, ts_us, baskets, queries, self.texts, places)

    def where(self, kept: np.ndarray) -> "Histories":
        """Those events alone for which `kept`, bool (E,), is true; all shoppers stay."""
        h = np.repeat(np.arange(len(self)), self.lengths)[kept]
        start = np.concatenate([[0], np.cumsum(np.bincount(h, minlength=len(self)))]).astype(np.int64)
        rows, kinds, ts_us, baskets, queries = (getattr(self, name)[kept] for name in _ARRAYS[1:])
        places = None if self.places is None else self.places[kept]
        return Histories(self.users, start, rows, kinds, ts_us, baskets, queries, self.texts, places)

    def last(self, length: int) -> "Histories":
        """The last `length` events of each."""
        return self.window(np.arange(len(self)), np.maximum(self.start[:-1], self.start[1:] - length), self.start[1:])

    def compact(self) -> "Histories":
        """With those texts alone that were asked in it."""
        used, at = np.unique(self.queries[self.queries >= 0], return_inverse=True)
        queries = self.queries.copy()
        queries[queries >= 0] = at
        return replace(self, queries=queries, texts=[self.texts[q] for q in used])

    def of_user(self, user_id: str) -> "Histories":
        """That of one shopper, empty for a stranger. Users must be sorted, as `of` makes them."""
        at = int(np.searchsorted(self.users, user_id)) if len(self.users) else 0
        if at == len(self.users) or self.users[at] != user_id:
            none = np.zeros(0, np.int64)
            nobody = self.window(none, none, none)
            return replace(nobody, users=np.array([user_id], object), start=np.zeros(2, np.int64))
        return self.take(np.array([at]))

    def after(self, ts_us: int) -> "Histories":
        """Of a single history: what is newer."""
        if ts_us < 0:
            return self
        first = int(np.count_nonzero(self.ts_us <= ts_us))
        return self.window(np.zeros(1, np.int64), np.array([first]), self.start[1:])

    def and_then(
        self, rows: np.ndarray, kinds: np.ndarray, ts_us: np.ndarray, queries: np.ndarray, texts: Sequence[str]
    ) -> "Histories":
        """Of a single history: with events after it, oldest first. rows, ts_us, queries int64, kinds int8 (n,).

        texts: of all queries, those of before included.
        """
        n = len(rows)
        return Histories(
            self.users,
            self.start + np.array([0, n]),
            np.concatenate([self.rows, rows]),
            np.concatenate([self.kinds, kinds]),
            np.concatenate([self.ts_us, ts_us]),
            np.concatenate([self.baskets, np.full(n, -1)]),
            np.concatenate([self.queries, queries]),
            texts,
        )

    def without(self, gone: np.ndarray) -> "Histories":
        """Without some events, bool (E,), and with every place in `users` and `texts` as it was.

        So each file that it is saved in means the same beside the other files of before, and they need not be replaced
        in one step. Who has no event left is called as the one before, who is found first; a text that nobody
        asks any more is empty.
        """
        h = np.repeat(np.arange(len(self)), self.lengths)[~gone]
        start = np.concatenate([[0], np.cumsum(np.bincount(h, minlength=len(self)))]).astype(np.int64)
        rows, kinds, ts_us, baskets, queries = (getattr(self, name)[~gone] for name in _ARRAYS[1:])
        users = self.users.copy()
        for place in np.flatnonzero(np.diff(start) == 0):
            users[place] = users[place - 1] if place else ""
        asked = set(queries.tolist())
        texts = [text if place in asked else "" for place, text in enumerate(self.texts)]
        return Histories(users, start, rows, kinds, ts_us, baskets, queries, texts)

    def files(self) -> dict[str, bytes]:
        """What it is saved in, by name; those that say more by themselves come first."""
        packed = io.BytesIO()
        np.savez(packed, **{name: getattr(self, name) for name in _ARRAYS})
        found = {"histories.npz": packed.getvalue()}
        for name, values in (("texts", list(self.texts)), ("users", self.users.tolist())):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({name: pa.array(values, pa.string())}), sink)
            found[f"{name}.parquet"] = sink.getvalue().to_pybytes()
        return found

    @classmethod
    def of_files(cls, read: Callable[[str], bytes]) -> "Histories":
        """read: the content of a file by its name. Raises OSError, ValueError, KeyError, zipfile.BadZipFile."""
        with np.load(io.BytesIO(read("histories.npz")), allow_pickle=False) as z:
            arrays = {name: z[name] for name in _ARRAYS}
        users, texts = (
            pq.read_table(pa.BufferReader(read(f"{name}.parquet"))).column(name).to_pylist()
            for name in ("users", "texts")
        )
        return cls(users=np.array(users, object), texts=texts, **arrays)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)

    @classmethod
    def load(cls, directory: Path) -> "Histories":
        """Raises OSError, ValueError, KeyError, zipfile.BadZipFile."""
        return cls.of_files(lambda name: (directory / name).read_bytes())


_ARRAYS = ("start", "rows", "kinds", "ts_us", "baskets", "queries")


@dataclass(frozen=True)
class Cases:
    """What is asked and what is right: after history c come rows wanted[wanted_start[c]:wanted_start[c + 1]].

    places: of the event that brought each wanted row (the first, of a basket's), where histories have them.
    """

    histories: Histories
    wanted_start: np.ndarray
    wanted: np.ndarray
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.histories)

    def take(self, chosen: np.ndarray) -> "Cases":
        first, lengths = self.wanted_start[chosen], np.diff(self.wanted_start)[chosen]
        start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(start[-1]) + np.repeat(first - start[:-1], lengths)
        places = None if self.places is None else self.places[at]
        return Cases(self.histories.take(chosen), start, self.wanted[at], places)

    def sample(self, n: int, seed: int) -> "Cases":
        """n of them, or all."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))


def leave_one_out(histories: Histories) -> tuple[Histories, Cases, Cases]:
    """(to learn from, validation, test): each shopper's last item is for the test, the one before for validation.

    Shoppers with fewer than three items are only learned from. A search after the item that is left out goes too.
    """
    items = np.flatnonzero(histories.rows >= 0)
    first = np.searchsorted(items, histories.start)
    judged = np.flatnonzero(np.diff(first) >= 3)
    last, before = items[first[judged + 1] - 1], items[first[judged + 1] - 2]
    end = histories.start[1:].copy()
    end[judged] = before
    everyone = np.arange(len(histories))
    begin = histories.start[judged]
    one_each = np.arange(len(judged) + 1)

    def cases(at: np.ndarray) -> Cases:
        places = None if histories.places is None else histories.places[at]
        return Cases(histories.window(judged, begin, at), one_each, histories.rows[at], places)

    return histories.window(everyone, histories.start[:-1], end), cases(before), cases(last)


def next_baskets(
    histories: Histories, at_us: int, until_us: int | None = None, *, every: bool = False
) -> tuple[Histories, Cases]:
    """(what was before a moment, the first basket of each shopper at or after it, and before `until_us`).

    A basket's wanted rows are distinct. Who has nothing before is asked about with an empty history. every: all of a
    shopper's baskets until then, each after what they did before it.
    """
    h = np.repeat(np.arange(len(histories)), histories.lengths)
    split = histories.start[:-1] + np.bincount(h[histories.ts_us < at_us], minlength=len(histories))
    after = (histories.ts_us >= at_us) & (histories.rows >= 0)
    if until_us is not None:
        after &= histories.ts_us < until_us
    places = np.flatnonzero(after)
    keys = np.stack([h[places], histories.baskets[places]])
    baskets, opening, of_case = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(opening)  # in time order within a shopper, as places are
    judged, opening = baskets[0][order], places[opening[order]]
    of_case = np.argsort(order)[of_case.ravel()]
    if not every:
        first = np.unique(judged, return_index=True)[1]
        inside = np.isin(of_case, first)
        judged, opening = judged[first], split[judged[first]]
        places, of_case = places[inside], np.searchsorted(first, of_case[inside])
    pairs, opens = np.unique(np.stack([of_case, histories.rows[places]]), axis=1, return_index=True)
    counts = np.bincount(pairs[0], minlength=len(judged))
    return (
        histories.window(np.arange(len(histories)), histories.start[:-1], split),
        Cases(
            histories.window(judged, histories.start[:-1][judged], opening),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            pairs[1].astype(np.int64),
            None if histories.places is None else histories.places[places[opens]],
        ),
    )


def group_baskets(events: pa.Table, users: np.ndarray) -> np.ndarray:
    """A number per event: its session, or where that is unknown its user's day; alone without either.

    users int64 (E,): a code per shopper, -1 for none.
    """
    session = pc.dictionary_encode(events.column("session_id")).combine_chunks()
    codes = pc.fill_null(session.indices, -1).to_numpy().astype(np.int64)
    day = events.column("ts_us").to_numpy() // DAY_US
    of_day = users.astype(np.int64) * (int(day.max(initial=0)) + 1) + day
    alone = (codes < 0) & (users < 0)
    keys = np.where(codes >= 0, codes, len(session.dictionary) + of_day)
    keys[alone] = -1 - np.arange(int(alone.sum()))
    return np.unique(keys, return_inverse=True)[1]
