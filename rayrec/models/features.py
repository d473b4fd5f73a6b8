"""What the fusion model sees, made by the same code when it learns and when it answers.

Items: vectors of text and picture, tokens of attributes, price. Shoppers: their last events, with kinds and gaps.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.histories import Histories
from rayrec.schema import EVENT_TYPES

PRICE_FEATURES = 3
TOKENS_AN_ITEM = 24
KINDS = len(EVENT_TYPES) + 1
"""0 is padding."""
_HOUR, _DAY = 3_600, 86_400
GAP_EDGES_S = (1, 60, 600, _HOUR, 6 * _HOUR, _DAY, 3 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY)
GAPS = len(GAP_EDGES_S) + 2
"""Buckets of the time since the event before; 0 is padding, and the first event's."""


@dataclass(frozen=True)
class Content:
    """Of M items, as arrays or as tensors: text (M, D), image (M, D) and has_image (M, 1), attributes int64 (M, A) of
    tokens with 0 for none, price (M, PRICE_FEATURES)."""

    text: Any
    image: Any
    has_image: Any
    attributes: Any
    price: Any

    def take(self, rows: Any) -> "Content":
        return Content(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class FeatureSchema:
    """How items become features. tokens: the attributes that are known; log_price: (mean, deviation)."""

    text_dim: int
    image_dim: int
    tokens: tuple[str, ...]
    log_price: tuple[float, float]

    @classmethod
    def fit(cls, items: pa.Table, text_dim: int, image_dim: int, *, min_count: int, max_tokens: int) -> "FeatureSchema":
        """Of ITEMS: the tokens that several items share, the most frequent of them."""
        counts = Counter(token for tokens in _tokens(items) for token in tokens)
        common = sorted((token for token, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))
        prices = np.log1p([p for p in items.column("price_cents").to_pylist() if p is not None and p >= 0])
        spread = (float(prices.mean()), float(max(prices.std(), 1e-3))) if len(prices) else (0.0, 1.0)
        return cls(text_dim, image_dim, tuple(common[:max_tokens]), spread)

    def content(self, items: pa.Table, text: np.ndarray, image: np.ndarray | None) -> Content:
        """Features of ITEMS. text, image: float32 (M, D), zeros where there is none; image None if no item has one."""
        place = {token: number + 1 for number, token in enumerate(self.tokens)}
        attributes = np.zeros((items.num_rows, TOKENS_AN_ITEM if self.tokens else 0), np.int64)
        for row, tokens in enumerate(_tokens(items)):
            known = [place[token] for token in tokens if token in place][: attributes.shape[1]]
            attributes[row, : len(known)] = known
        picture = np.zeros((items.num_rows, self.image_dim), np.float32) if image is None else image
        has_image = picture.any(1, keepdims=True).astype(np.float32)
        return Content(text, picture, has_image, attributes, self._prices(items))

    def _prices(self, items: pa.Table) -> np.ndarray:
        cents = np.array([-1 if p is None or p < 0 else p for p in items.column("price_cents").to_pylist()], np.float64)
        known = cents >= 0
        mean, deviation = self.log_price
        level = np.where(known, (np.log1p(np.maximum(cents, 0)) - mean) / deviation, 0.0)
        return np.stack([level, level**2, known], axis=1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {
            "text_dim": self.text_dim,
            "image_dim": self.image_dim,
            "tokens": list(self.tokens),
            "log_price": list(self.log_price),
        }

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> "FeatureSchema":
        low, high = said["log_price"]
        return cls(said["text_dim"], said["image_dim"], tuple(said["tokens"]), (low, high))

    @property
    def digest(self) -> str:
        """Of everything that decides what a feature means; kinds and gaps of events too."""
        meaning = [self.to_dict(), EVENT_TYPES, GAP_EDGES_S, TOKENS_AN_ITEM]
        return hashlib.blake2b(json.dumps(meaning, sort_keys=True).encode(), digest_size=8).hexdigest()


def _tokens(items: pa.Table) -> Iterator[list[str]]:
    """Attributes of each item as words: its brand, each level of its category, its attributes."""
    columns = (items.column(name).to_pylist() for name in ("brand", "category", "attributes"))
    for brand, category, attributes in zip(*columns, strict=True):
        tokens = [f"brand={brand.lower()}"] if brand else []
        path = [level for level in category or [] if level]
        tokens += ["category=" + " > ".join(path[: depth + 1]).lower() for depth in range(len(path))]
        tokens += [f"{key}={value}".lower() for key, value in attributes or [] if value]
        yield list(dict.fromkeys(tokens))


@dataclass(frozen=True)
class Batch:
    """Histories side by side, oldest event first, padded at their end.

    rows int64 (B, L): of the catalog, -1 for a search and for padding; queries int64 (B, L): of the texts asked, -1
    else; kinds and gaps int64 (B, L), 0 for padding; baskets int64 (B, L), -1 for padding; lengths int64 (B,).
    """

    rows: np.ndarray
    queries: np.ndarray
    kinds: np.ndarray
    gaps: np.ndarray
    baskets: np.ndarray
    lengths: np.ndarray

    def part(self, which: slice, length: int) -> "Batch":
        """Some of them, and no more than their first `length` events."""
        values = (self.rows, self.queries, self.kinds, self.gaps, self.baskets)
        rows, queries, kinds, gaps, baskets = (v[which, :length] for v in values)
        return Batch(rows, queries, kinds, gaps, baskets, np.minimum(self.lengths[which], length))


def collate(histories: Histories, length: int) -> Batch:
    """The last `length` events of each history."""
    gap_s = np.diff(histories.ts_us, prepend=0) // 1_000_000
    gaps = np.searchsorted(GAP_EDGES_S, np.maximum(gap_s, 0), side="right") + 1
    gaps[histories.start[:-1][histories.lengths > 0]] = 0
    inside, at = _inside(histories, length)

    def padded(values: np.ndarray, padding: int) -> np.ndarray:
        out = np.full(inside.shape, padding, np.int64)
        out[inside] = values[at]
        return out

    return Batch(
        padded(histories.rows, -1),
        padded(histories.queries, -1),
        padded(histories.kinds.astype(np.int64) + 1, 0),
        padded(gaps, 0),
        padded(histories.baskets, -1),
        inside.sum(1),
    )


def side_by_side(histories: Histories, flags: np.ndarray, length: int) -> np.ndarray:
    """Flags bool (E,) of the last `length` events of each history, as `collate` puts those: (B, L)."""
    inside, at = _inside(histories, length)
    out = np.zeros(inside.shape, bool)
    out[inside] = flags[at]
    return out


def _inside(histories: Histories, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(bool (B, L): where an event is, which events these are, row by row)."""
    lengths = np.minimum(histories.lengths, length)
    place = np.arange(max(1, int(lengths.max(initial=0))))[None]
    inside = place < lengths[:, None]
    return inside, ((histories.start[1:] - lengths)[:, None] + place)[inside]
