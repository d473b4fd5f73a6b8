"""What a shopper may be typing: the shop's own phrases, found from the start of any of their words.

>>> Completions({"frozen pizza": 2.0, "pizza sauce": 1.0}).complete("piz", 5)[0].text
'frozen pizza'
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayrec.retrieval.analyzers import after_spaces, normal
from rayrec.retrieval.base import Column
from rayrec.retrieval.filters import ItemColumns

_MAX_PHRASES = 100_000
_MAX_CHARS = 60
_SCAN = 5_000
_LAST = chr(0x10FFFF)
_ANY = 1e-3  # what an item weighs that nobody wants


@dataclass(frozen=True)
class Completion:
    """text: the phrase; weight: how wanted its items are together."""

    text: str
    weight: float


class Completions:
    """Phrases by weight, sorted by each of their word starts. word_starts: where in a phrase words begin."""

    def __init__(self, weights: Mapping[str, float], word_starts: Callable[[str], list[int]] = after_spaces):
        ranked = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:_MAX_PHRASES]
        self._word_starts = word_starts
        self._phrases = [text for text, _ in ranked]
        self._weights = Column(np.array([weight for _, weight in ranked]))
        self._place = {text: place for place, text in enumerate(self._phrases)}
        starts = [each for place, text in enumerate(self._phrases) for each in self._starts_of(text, place)]
        starts.sort()
        self._starts = [start for start, _ in starts]
        self._places = [place for _, place in starts]
        self._free: list[int] = []  # places of phrases that were removed

    def _starts_of(self, text: str, place: int) -> list[tuple[str, int]]:
        typed = normal(text)
        return [(typed[start:], place) for start in self._word_starts(typed)]

    @classmethod
    def build(
        cls, columns: ItemColumns, popularity: np.ndarray, word_starts: Callable[[str], list[int]] = after_spaces
    ) -> "Completions":
        """From titles, brands and last category names; popularity float32 (N,) of the items that bear them."""
        weights: dict[str, float] = {}
        names = [columns.items.column(name).to_pylist() for name in ("title", "brand", "category")]
        for title, brand, category, wanted in zip(*names, popularity.tolist(), strict=True):
            for phrase in _phrases(title, brand, category):
                weights[phrase] = weights.get(phrase, 0.0) + wanted + _ANY
        return cls(weights, word_starts)

    def change(self, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, wanted: float) -> None:
        """An item's record is another one; None: it is not there. wanted: its popularity."""
        old, new = (set() if r is None else _phrases(r["title"], r["brand"], r["category"]) for r in (before, now))
        for phrase in old - new:
            if (place := self._place.get(phrase)) is not None:
                self._weights.put(place, self._weights.values[place] - wanted - _ANY)
                if self._weights.values[place] < _ANY / 2:  # every item is gone
                    self._remove(phrase)
        for phrase in new - old:
            self._add(phrase, wanted + _ANY)

    def _add(self, phrase: str, weight: float) -> None:
        place = self._place.get(phrase)
        if place is not None:
            self._weights.put(place, self._weights.values[place] + weight)
            return
        if len(self._place) >= _MAX_PHRASES:
            return
        if self._free:
            place = self._free.pop()
            self._phrases[place] = phrase
        else:
            place = len(self._phrases)
            self._phrases.append(phrase)
        self._place[phrase] = place
        self._weights.put(place, weight)
        for start, _ in self._starts_of(phrase, place):
            at = bisect_left(self._starts, start)
            self._starts.insert(at, start)
            self._places.insert(at, place)

    def _remove(self, phrase: str) -> None:
        place = self._place.pop(phrase)
        self._free.append(place)
        for start, _ in self._starts_of(phrase, place):
            at = self._places.index(place, bisect_left(self._starts, start))
            del self._starts[at], self._places[at]

    def complete(self, prefix: str, k: int) -> list[Completion]:
        """The k weightiest phrases with a word that starts so; for very short prefixes among the first 5,000."""
        start = " ".join(normal(prefix).split())
        if not start:
            return []
        low = bisect_left(self._starts, start)
        high = bisect_left(self._starts, start + _LAST, low)
        places = np.unique(np.array(self._places[low : min(high, low + _SCAN)], np.int64))
        weights = self._weights.values[places]
        if k < len(places):
            places = places[weights >= np.partition(weights, -k)[-k]]
        best = sorted((-self._weights.values[place], self._phrases[place]) for place in places)[:k]
        return [Completion(phrase, -float(weight)) for weight, phrase in best]


def _phrases(title: str, brand: str | None, category: Sequence[str | None] | None) -> set[str]:
    """What one item is offered as."""
    said = {title, brand, next((name for name in reversed(category or ()) if name), None)}
    return {" ".join(text.replace(",", " ").split()).lower() for text in said if text and len(text) <= _MAX_CHARS}
