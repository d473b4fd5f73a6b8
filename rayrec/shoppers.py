"""What shoppers did: what an index knows of it, and what came since."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rayrec.data.histories import DAY_US, Histories
from rayrec.request import Recent
from rayrec.retrieval.shards import Shards
from rayrec.schema import EVENT_TYPES


class Did(NamedTuple):
    """What one shopper did, oldest first.

    asked: float32 (Q, D), vectors of events.texts. now_us: the moment from which ages count.
    """

    events: Histories
    asked: np.ndarray
    now_us: int

    @property
    def items(self) -> np.ndarray:
        """Rows int64 (H,) of the items of the events that are about one."""
        return self.events.rows[self.events.rows >= 0]

    @property
    def ages(self) -> np.ndarray:
        """Days (H,) since each of these."""
        return np.maximum(0, self.now_us - self.events.ts_us[self.events.rows >= 0]) / DAY_US


class Shoppers:
    """Of one index. searches: whether what they searched for is minded, as a trained model does."""

    def __init__(self, shards: Shards, *, made_us: int | None, events_offset: int, searches: bool):
        """made_us: when the index was built; None: when the newest event that it knows was.

        events_offset: in the log of events, up to which it knows them.
        """
        self._shards = shards
        self._made_us = shards.behavior.now_us if made_us is None else made_us
        self._events_offset = events_offset
        self._searches = searches

    def did(self, user_id: str | None, recent: Sequence[Recent] = (), forgotten_us: int = -1) -> Did:
        """What the index knows of a shopper after forgotten_us, then recent events that it does not know.

        Time stands still between the newest event of an index and its building, so that of an index built late what it
        knows is not old at once.
        """
        behavior = self._shards.behavior
        events = behavior.history(user_id or "").after(forgotten_us)
        known = [
            (row, EVENT_TYPES.index(one.type), one)
            for one in recent
            if not 0 < one.offset <= self._events_offset
            and ((row := self._row(one)) >= 0 or (one.vector is not None and self._searches))
        ]
        if not known:
            return Did(events, behavior.asked, behavior.now_us)
        rows = np.array([row for row, _, _ in known], np.int64)
        kinds = np.array([kind for _, kind, _ in known], np.int8)
        since = np.array([max(0, one.ts_us - self._made_us) for _, _, one in known])
        ts_us = behavior.now_us + np.maximum.accumulate(since)
        # of all that the index has vectors for, those of this shopper alone
        before = events.compact()
        asked = [*behavior.asked[np.unique(events.queries[events.queries >= 0])]]
        texts, queries = list(before.texts), np.full(len(known), -1, np.int64)
        for place, (row, _, one) in enumerate(known):
            if row < 0:
                queries[place] = len(asked)
                asked.append(one.vector)
                texts.append(one.query or "")
        vectors = np.stack(asked) if asked else behavior.asked[:0]
        return Did(before.and_then(rows, kinds, ts_us, queries, texts), vectors, int(ts_us[-1]))

    def _row(self, one: Recent) -> int:
        row = None if one.item_id is None else self._shards.columns.row(one.item_id)
        return -1 if row is None else row
