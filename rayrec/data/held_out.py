"""Events that a model never learned to foresee, because they judge it: by their ids, so that the next leaves them too.

A split by the last event or by time moves as events come in: what judged a model yesterday would be learned from today.
So a model keeps its held-out events beside it, and one that is made of it holds them out as well, and some of its own.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.histories import Cases, Histories

FILE = "held_out.parquet"
"""beside a model"""
SCHEMA = pa.schema([("event_id", pa.string()), ("valid", pa.int64()), ("test", pa.int64())])


@dataclass(frozen=True)
class HeldOut:
    """Over the E rows of a table of events.

    held: bool (E,), not to be learned; valid, test: int64 (E,), the number of the case that asks for an event, -1 for
    none. What a held-out basket has twice, and searches after it, are held out and no case asks for them.
    """

    held: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @classmethod
    def of_split(cls, n: int, histories: Histories, learned: Histories, valid: Cases, test: Cases) -> "HeldOut":
        """What a split of histories, made of n events, leaves out of `learned`."""
        held = np.zeros(n, bool)
        held[histories.sources] = True
        held[learned.sources] = False
        return cls(held, _numbered(n, valid), _numbered(n, test))

    @classmethod
    def read(cls, table: pa.Table, event_ids: pa.Array) -> "HeldOut":
        """As it was saved, over events of these ids, in whatever order and among whatever others."""
        at = pc.fill_null(pc.index_in(event_ids, value_set=table.column("event_id").combine_chunks()), -1).to_numpy()
        there = at >= 0

        def numbers(name: str) -> np.ndarray:
            of = table.column(name).to_numpy()
            return np.where(there, of[at], -1) if len(of) else np.full(len(at), -1)

        return cls(there, numbers("valid"), numbers("test"))

    def table(self, event_ids: pa.Array) -> pa.Table:
        """To be saved, SCHEMA."""
        at = np.flatnonzero(self.held)
        return pa.table([event_ids.take(pa.array(at)), self.valid[at], self.test[at]], schema=SCHEMA)

    def joined(self, other: "HeldOut") -> "HeldOut":
        """Both; cases of the other are numbered after those of this one. No event may be in both."""

        def after(own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return np.where(theirs >= 0, theirs + own.max(initial=-1) + 1, own)

        return HeldOut(self.held | other.held, after(self.valid, other.valid), after(self.test, other.test))


def _numbered(n: int, cases: Cases) -> np.ndarray:
    numbers = np.full(n, -1, np.int64)
    numbers[cases.places] = np.repeat(np.arange(len(cases)), np.diff(cases.wanted_start))
    return numbers


def cases_of(histories: Histories, numbers: np.ndarray) -> Cases:
    """What is asked for by numbers, int64 (E,) as of HeldOut, each after all that its shopper did before.

    A case whose items are no longer in the catalog is none.
    """
    number = numbers[histories.sources]
    at = np.flatnonzero((number >= 0) & (histories.rows >= 0))
    known, first, of_case = np.unique(number[at], return_index=True, return_inverse=True)
    opening = at[first]
    h = np.searchsorted(histories.start, opening, side="right") - 1
    pairs, opens = np.unique(np.stack([of_case.ravel(), histories.rows[at]]), axis=1, return_index=True)
    counts = np.bincount(pairs[0], minlength=len(known))
    return Cases(
        histories.window(h, histories.start[h], opening),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        pairs[1].astype(np.int64),
        histories.sources[at[opens]],
    )


def held_out_of_new(histories: Histories, new: np.ndarray, share: float, *, baskets: bool) -> HeldOut:
    """The last new item (or basket: the new ones in it) of some shoppers; half of them validate, half test.

    new: bool (E,); share: of the shoppers with new events. Who they are is drawn from their names, so that the same
    ones judge at every update and the others are learned from in full. Who did nothing before judges nothing.
    """
    h = np.repeat(np.arange(len(histories)), histories.lengths)
    fresh = np.flatnonzero(new[histories.sources] & (histories.rows >= 0))
    whose, from_end = np.unique(h[fresh][::-1], return_index=True)
    last = np.full(len(histories), -1)
    last[whose] = fresh[::-1][from_end]
    mine = fresh == last[h[fresh]]
    if baskets:
        mine = histories.baskets[fresh] == histories.baskets[last[h[fresh]]]
    chosen = fresh[mine]
    opening = np.full(len(histories), -1)
    opening[h[chosen][::-1]] = chosen[::-1]
    draw = np.full(len(histories), 1.0)
    draw[whose] = [drawn(str(user)) for user in histories.users[whose]]
    judges = (draw < share) & (opening > histories.start[:-1])
    chosen = chosen[judges[h[chosen]]]
    tests = draw[h[chosen]] < share / 2
    places = histories.sources[chosen]
    n = len(new)
    held, valid, test = np.zeros(n, bool), np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    held[places] = True
    test[places[tests]], valid[places[~tests]] = h[chosen][tests], h[chosen][~tests]
    return HeldOut(held, valid, test)


def drawn(name: str) -> float:
    """In [0, 1), the same everywhere."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / (1 << 56)
