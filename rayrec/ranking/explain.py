"""Reasons per hit: which part put it there, by what share, in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayrec.ranking.scoring import Parts

_LEAST_SHARE = 0.05
Wordings = Mapping[str, Callable[[], str]]
"""part of a score -> a function that words it"""


def reasons(parts: Parts, place: int, texts: Wordings) -> list[dict[str, Any]]:
    """[{part, weight, text}] of one candidate, by share of its score; parts under 5 % are left out.

    texts: called only for parts that are shown.
    """
    shares = {name: max(float(values[place]), 0.0) for name, values in parts.items()}
    whole = sum(shares.values())
    if whole <= 0:
        return []
    shown = [(name, share / whole) for name, share in shares.items() if share / whole >= _LEAST_SHARE]
    shown.sort(key=lambda pair: (-pair[1], pair[0]))
    return [{"part": name, "weight": round(share, 4), "text": texts[name]()} for name, share in shown]


def of_search(
    record: Mapping[str, Any], shared: Callable[[str], Sequence[str]], cosine: float, *, photo: bool
) -> Wordings:
    """shared: words that a text and the query have in common. photo: whether the query has one."""

    def words() -> str:
        text = " ".join(str(v) for v in (record["title"], record["brand"], record["description"]) if v)
        text += " " + " ".join(v for v in [*(record["category"] or []), *record["attributes"].values()] if v)
        return "says " + ", ".join(f"'{word}'" for word in shared(text))

    close = "close to your words and photo together" if photo else "close in meaning"
    return {
        "lexical": words,
        "dense": lambda: f"{close} (cosine {cosine:.2f})",
        "image": lambda: f"looks like your photo (cosine {cosine:.2f})",
        "popular": lambda: "often bought lately",
        "price": lambda: "at a price that is often chosen",
        "repeat": lambda: "you have it, and its buyers buy it again",
        "content": lambda: "like what you buy",
        "learned": lambda: "what shoppers who did as you did want",
    }


def of_similar(title: str) -> Wordings:
    """title: of the item that others are like."""
    return {"content": lambda: f"like {title}", "together": lambda: f"bought together with {title}"}


def of_recommendation(repeat: float, companion: Callable[[], str | None]) -> Wordings:
    """repeat: share of the item's buyers who buy it again. companion: title of what it goes together with."""
    return {
        "learned": lambda: "what shoppers who did as you did want next",
        "repeat": lambda: f"{repeat:.0%} of its buyers buy it again, and it is one of yours",
        "together": lambda: f"bought together with {companion() or 'your items'}",
        "content": lambda: "like what you buy",
        "popular": lambda: "often bought lately",
    }
