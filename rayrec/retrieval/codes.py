"""Words of a catalog's columns as integer codes, which filters compare and facets count."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.retrieval.base import Column

SEPARATOR = " > "
ATTRIBUTE = "attributes."


class Codes:
    """A column of words: code of each row (-1: none), and the word of each code, sorted but for what came later."""

    def __init__(self, of_row: np.ndarray, words: list[str]):
        self._of_row = Column(of_row)
        self.words = words
        self.code = {word: i for i, word in enumerate(words)}
        self._sorted = len(words)
        self._rank = np.empty(0, np.int64)

    @property
    def of_row(self) -> np.ndarray:
        return self._of_row.values

    @classmethod
    def encode(cls, column: pa.ChunkedArray | pa.Array) -> "Codes":
        words = sorted(pc.unique(pc.drop_null(column)).to_pylist())
        found = pc.fill_null(pc.index_in(column, value_set=pa.array(words, pa.string())), -1)
        return cls(found.to_numpy().astype(np.int32), words)

    def put(self, row: int, word: str | None) -> None:
        code = -1
        if word is not None:
            code = self.code.setdefault(word, len(self.words))
            if code == len(self.words):
                self.words.append(word)
        self._of_row.put(row, code)

    def by_name(self, codes: np.ndarray) -> np.ndarray:
        """The order of some codes by their words."""
        if self._sorted == len(self.words):
            return codes
        if len(self._rank) != len(self.words):
            self._rank = np.argsort(np.argsort(np.array(self.words, object)))
        return self._rank[codes]


def word(record: Mapping[str, Any], field: str) -> str | None:
    """What a record says in a word field."""
    if field == "category":
        path = record["category"] or ()
        return None if None in path else SEPARATOR.join(path) or None
    if field.startswith(ATTRIBUTE):
        return record["attributes"].get(field[len(ATTRIBUTE) :])
    return record[field]
