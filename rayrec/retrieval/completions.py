"""What a shopper may be typing: the shop's own phrases, found from the start of any of their words.

>>> Completions({"frozen pizza": 2.0, "pizza sauce": 1.0}).complete("piz", 5)[0].text
'frozen pizza'
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rayrec.retrieval.analyzers import after_spaces, normal
from rayrec.retrieval.filters import ItemColumns

_MAX_PHRASES = 100_000
_MAX_CHARS = 60
_SCAN = 5_000
_LAST = chr(0x10FFFF)


@dataclass(frozen=True)
class Completion:
    """text: the phrase; weight: how wanted its items are together."""

    text: str
    weight: float


class Completions:
    """Phrases by weight, sorted by each of their word starts. word_starts: where in a phrase words begin."""

    def __init__(self, weights: Mapping[str, float], word_starts: Callable[[str], list[int]] = after_spaces):
        ranked = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:_MAX_PHRASES]
        self._phrases = [Completion(text, weight) for text, weight in ranked]
        starts = []
        for place, (text, _) in enumerate(ranked):
            typed = normal(text)
            starts += [(typed[start:], place) for start in word_starts(typed)]
        starts.sort()
        self._starts = [start for start, _ in starts]
        self._places = np.array([place for _, place in starts], np.int32)

    @classmethod
    def build(
        cls, columns: ItemColumns, popularity: np.ndarray, word_starts: Callable[[str], list[int]] = after_spaces
    ) -> "Completions":
        """From titles, brands and last category names; popularity float32 (N,) of the items that bear them."""
        weights: dict[str, float] = {}
        names = [columns.items.column(name).to_pylist() for name in ("title", "brand", "category")]
        for title, brand, category, wanted in zip(*names, popularity.tolist(), strict=True):
            for text in {title, brand, next((c for c in reversed(category or ()) if c), None)}:
                if text and len(text) <= _MAX_CHARS:
                    phrase = " ".join(text.replace(",", " ").split()).lower()
                    weights[phrase] = weights.get(phrase, 0.0) + wanted + 1e-3
        return cls(weights, word_starts)

    def complete(self, prefix: str, k: int) -> list[Completion]:
        """The k weightiest phrases with a word that starts so; for very short prefixes among the first 5,000."""
        start = " ".join(normal(prefix).split())
        if not start:
            return []
        low = bisect_left(self._starts, start)
        high = bisect_left(self._starts, start + _LAST, low)
        places = np.unique(self._places[low : min(high, low + _SCAN)])  # a phrase's place is its rank
        return [self._phrases[place] for place in places[:k]]
