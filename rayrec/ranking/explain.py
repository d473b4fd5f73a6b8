"""Reasons per hit: which part put it there, by what share, in words."""

from collections.abc import Callable
from typing import Any

from rayrec.ranking.scoring import Parts

_LEAST_SHARE = 0.05


def reasons(parts: Parts, place: int, texts: dict[str, Callable[[], str]]) -> list[dict[str, Any]]:
    """[{part, weight, text}] of one candidate, by share of its score; parts under 5 % are left out.

    texts: part -> a function that words it; called only for parts that are shown.
    """
    shares = {name: max(float(values[place]), 0.0) for name, values in parts.items()}
    whole = sum(shares.values())
    if whole <= 0:
        return []
    shown = [(name, share / whole) for name, share in shares.items() if share / whole >= _LEAST_SHARE]
    shown.sort(key=lambda pair: (-pair[1], pair[0]))
    return [{"part": name, "weight": round(share, 4), "text": texts[name]()} for name, share in shown]
