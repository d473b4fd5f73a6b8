"""Changes of the catalog over a base index: what became of each item since, as updates of an index that answers.

A replica reads the numbered log of changes and hands it on here. What follows is worked out beside the answers, by
`plan`, and taken up between two of them, by `Shards.update`. All replicas read the same log, so an item has the same
row on each.

>>> updates = live.plan(changes, embed)                  # doctest: +SKIP
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rayrec.data.catalog import content_hash, item_text
from rayrec.encoders.item import fuse
from rayrec.retrieval.base import Update
from rayrec.retrieval.filters import ItemColumns
from rayrec.schema import ITEMS, Change

KEPT = 500
"""changes that can be taken back for a moment, so that a search's next page is of the catalog of its first"""
Embed = Callable[[Mapping[str, str]], Mapping[str, np.ndarray]]
"""contents, hash -> text, to their unit vectors float32 (D,)"""


class Pictures(NamedTuple):
    """of_rows float32 (N, D): of the items of the base, zeros where there is none; weight: theirs beside the text's."""

    of_rows: np.ndarray
    weight: float


class _Said(NamedTuple):
    content: str
    attributes: str
    image_uri: str | None


class LiveCatalog:
    """What an index has taken up. One thread at a time may plan, and what it planned is taken up before it plans again.

    offset: in the log, up to which the index knows all changes.
    """

    def __init__(self, columns: ItemColumns, dim: int, offset: int, pictures: Callable[[], Pictures | None]):
        """pictures: called once, when the first is needed; answers None for an index without."""
        self.offset = offset
        self._columns = columns
        self._base = columns.n
        self._dim = dim
        self._load_pictures = pictures
        self._pictures: Pictures | None = None
        self._said: dict[int, _Said] = {}
        self._planned: dict[int, _Said] = {}
        self._steps: deque[tuple[Update, Update]] = deque()
        self._reaches = offset

    def plan(self, changes: Sequence[Change], embed: Embed) -> list[Update]:
        """What each change makes of its item, in the order of the log. May take its time to embed.

        Deletions of what the index never had say nothing.
        """
        self._planned = {}
        steps: list[tuple[Update, _Said | None]] = []  # and what its vector is to be made of, if it needs another
        for change, row in self._rows(changes):
            record = None if change.item is None else _record(change.item)
            update, other = Update(change.offset, row, change.item_id, record), None
            if record is not None and (said := _say(record)) != self._before(row):
                update = replace(update, words=(item_text(record), said.attributes))
                other = said if self._other_vector(row, said) else None
                self._planned[row] = said
            steps.append((update, other))
        texts = {said.content: update.words[0] for update, said in steps if said is not None and update.words}
        vectors = embed(texts) if texts else {}
        return [
            update if said is None else self._with_vector(update, said, vectors[said.content]) for update, said in steps
        ]

    def _rows(self, changes: Sequence[Change]) -> Iterator[tuple[Change, int]]:
        """Changes with their items' rows; new items get the next ones."""
        new: dict[str, int] = {}
        for change in changes:
            row = new.get(change.item_id, self._columns.rows.get(change.item_id))
            if row is None:
                if change.item is None:
                    continue
                row = new[change.item_id] = self._columns.n + len(new)
            yield change, row

    def took(self, offset: int, steps: Iterable[tuple[Update, Update]] = ()) -> None:
        """What was planned is taken up, so that the changes up to `offset` are. Without this they are planned anew.

        steps: each update, and what takes it back, for `since`.
        """
        self._said.update(self._planned)
        self._planned = {}
        self.offset = offset
        self._steps.extend(steps)
        while len(self._steps) > KEPT:
            self._reaches = self._steps.popleft()[0].offset

    def since(self, offset: int) -> list[tuple[Update, Update]] | None:
        """The steps after the change of an offset, as they were handed to `took`; None if that is too long ago."""
        if offset < self._reaches:
            return None
        return [step for step in self._steps if step[0].offset > offset]

    def _before(self, row: int) -> _Said | None:
        """What the index has as the words and vector of a row, whether or not it is there now."""
        said = self._planned.get(row, self._said.get(row))
        if said is None and row < self._base:
            said = self._said[row] = _say(self._columns.records([row])[0])
        return said

    def _other_vector(self, row: int, said: _Said) -> bool:
        before = self._before(row)
        if before is None or before.content != said.content:
            return True
        return before.image_uri != said.image_uri and self._with_pictures() is not None

    def _with_vector(self, update: Update, said: _Said, text: np.ndarray) -> Update:
        row, pictures = update.row, self._with_pictures()
        if pictures is None:
            return replace(update, vector=text, text=text)
        picture = np.zeros(self._dim, np.float32)
        if row < self._base and self._base_uri(row) == said.image_uri:  # of another, the next embed job finds out
            picture = pictures.of_rows[row].astype(np.float32)
        fused = fuse(text[None], picture[None], pictures.weight)[0]
        return replace(update, vector=fused, text=text, picture=picture)

    def _base_uri(self, row: int) -> str | None:
        return self._columns.items.column("image_uri")[row].as_py()

    def _with_pictures(self) -> Pictures | None:
        if self._load_pictures is not _loaded:
            self._pictures, self._load_pictures = self._load_pictures(), _loaded
        return self._pictures


Before = Callable[[int], tuple[bool, np.ndarray | None]]
"""row -> (whether its item says what it said when the index was built, its vector)"""


def taken_back(updates: Sequence[Update], columns: ItemColumns, before: Before) -> list[Update]:
    """What takes each update back after all later ones were, of updates that are not taken up yet; in the same order.

    Of an item that was deleted too: its words and vector stand while it is away, for an older update may want them.
    """
    states: dict[int, tuple[bool, dict[str, Any] | None, bool, np.ndarray | None]] = {}
    found = []
    for update in updates:
        row = update.row
        if row not in states:
            last = columns.records([row])[0] if row < columns.n else None
            states[row] = (columns.row(update.item_id) is not None, last, *before(row))
        there, last, built, vector = states[row]
        back = Update(update.offset, row, update.item_id, last if there else None)
        if last is not None and update.words is not None:
            back = replace(back, words=(item_text(last), _say(last).attributes), as_built=built)
        if vector is not None and update.vector is not None:
            # what a vector with a picture was made of is not known here; a model's vector then stays
            back = replace(back, vector=vector, text=vector if update.picture is None else None)
        found.append(back)
        after = vector if update.vector is None else update.vector
        states[row] = (update.record is not None, update.record or last, built and update.words is None, after)
    return found


def _loaded() -> None:
    return None


def _record(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as `ItemColumns.records` gives it."""
    record = {name: item.get(name) for name in ITEMS.names}
    record["attributes"] = dict(record["attributes"] or {})
    return record


def _say(record: Mapping[str, Any]) -> _Said:
    words = " ".join(value for value in record["attributes"].values() if value)
    return _Said(content_hash(item_text(record)).hex(), words, record["image_uri"])
