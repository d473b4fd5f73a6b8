"""Changes of the catalog over a base index: what became of each item since, as updates of an index that answers.

A replica reads the numbered log of changes and hands it on here. What follows is worked out beside the answers, by
`plan`, and taken up between two of them, by `Shards.update`. All replicas read the same log, so an item has the same
row on each.

>>> updates = live.plan(changes, embed)                  # doctest: +SKIP
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rayrec.data.catalog import content_hash, item_text
from rayrec.encoders.item import fuse
from rayrec.retrieval.base import Update
from rayrec.retrieval.filters import ItemColumns
from rayrec.schema import ITEMS, Change

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

    def plan(self, changes: Sequence[Change], embed: Embed) -> list[Update]:
        """What becomes of each item, once, by rows; changes in the order of the log. May take its time to embed.

        Deletions of what the index never had say nothing.
        """
        rows: dict[str, int] = {}
        n = self._columns.n
        newest: dict[int, Change] = {}
        for change in changes:
            row = rows.get(change.item_id, self._columns.rows.get(change.item_id))
            if row is None:
                if change.item is None:
                    continue
                row, n = n, n + 1
            rows[change.item_id] = row
            newest[row] = change
        records = {row: None if c.item is None else _record(c.item) for row, c in newest.items()}
        fresh = {row: said for row, record in records.items() if record and (said := _say(record)) != self._before(row)}
        wanted = {row: said for row, said in fresh.items() if self._other_vector(row, said)}
        texts = {said.content: item_text(records[row] or {}) for row, said in wanted.items()}
        vectors = embed(texts) if texts else {}
        updates = []
        for row in sorted(newest):
            record = records[row]
            words = (item_text(record), fresh[row].attributes) if record and row in fresh else None
            made = self._vector(row, wanted[row], vectors) if row in wanted else {}
            if not made and row >= self._columns.n:  # gone before it was ever seen: its place is taken all the same
                words, made = ("", ""), {"vector": np.zeros(self._dim, np.float32)}
            updates.append(Update(row, newest[row].item_id, record, words, **made))
        self._planned = fresh
        return updates

    def took(self, offset: int) -> None:
        """What was planned is taken up, so that the changes up to `offset` are. Without this they are planned anew."""
        self._said.update(self._planned)
        self._planned = {}
        self.offset = offset

    def _before(self, row: int) -> _Said | None:
        """What the index has as the words and vector of a row, whether or not it is there now."""
        said = self._said.get(row)
        if said is None and row < self._base:
            said = self._said[row] = _say(self._columns.records([row])[0])
        return said

    def _other_vector(self, row: int, said: _Said) -> bool:
        before = self._before(row)
        if before is None or before.content != said.content:
            return True
        return before.image_uri != said.image_uri and self._with_pictures() is not None

    def _vector(self, row: int, said: _Said, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        text = vectors[said.content]
        pictures = self._with_pictures()
        if pictures is None:
            return {"vector": text, "text": text}
        picture = np.zeros(self._dim, np.float32)
        if row < self._base and self._base_uri(row) == said.image_uri:  # of another, the next embed job finds out
            picture = pictures.of_rows[row].astype(np.float32)
        return {"vector": fuse(text[None], picture[None], pictures.weight)[0], "text": text, "picture": picture}

    def _base_uri(self, row: int) -> str | None:
        return self._columns.items.column("image_uri")[row].as_py()

    def _with_pictures(self) -> Pictures | None:
        if self._load_pictures is not _loaded:
            self._pictures, self._load_pictures = self._load_pictures(), _loaded
        return self._pictures


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
