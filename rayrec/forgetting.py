"""Forgetting a shopper, and what is too old, in every place of a workspace and its stores.

In this order, so that a kill anywhere leaves nothing that doing it again does not end: the bar in the workspace, the
bar in the stores, the stores' own files, the files of the workspace, the receipt. Whoever publishes looks at the bars
after that, so what was being made meanwhile is cleaned by its maker.

>>> forget(ws, None, "ann")["places"]                                              # doctest: +SKIP
[{"place": "sqlite.events", "removed": 12}, {"place": "events/20260101-...", "removed": 7}, ...]
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rayrec.barring import Bars
from rayrec.rewriting import clean, clean_copies, traces
from rayrec.store import EventStore, default_store, open_store
from rayrec.store.base import shopper
from rayrec.workspace import Workspace

Receipt = dict[str, Any]
"""receipt_id, at_us, until_us, in_answers_after_s, places: [{place, removed}]; never whom it is about"""
_DAY_US = 86_400_000_000


def forget(
    ws: Workspace,
    url: str | None,
    user_id: str,
    *,
    now_us: int | None = None,
    in_answers_after_s: float = 0.0,
) -> Receipt:
    """Remove all that is known of a user, bar what happened until now, and tell what was where.

    A session that is said to be theirs only later: what it did before is not minded and not exported, and leaves the
    store when they are forgotten again, or by `retain`.

    url: of the service's store, beside which the workspace's own is looked through too. in_answers_after_s: how long
    replicas may mind what they hold in memory. Safe to repeat: then it counts what was still there. Raises Unavailable
    if it could not reach the end, and must be repeated; SchemaError, IncompatibleArtifact.
    """
    bars = Bars(ws)
    with _opened(ws, url) as stores:
        known = [traces(ws, user_id), *(store.traces(user_id) for _, store in stores)]
        sessions = sorted({session for one in known for session in one.sessions})
        # a clock that was ahead wrote events of later: they are of before all the same
        until_us = max([time.time_ns() // 1000 if now_us is None else now_us, *(one.newest_us for one in known)])
        shoppers = [f"u:{user_id}", *(f"s:{session}" for session in sessions)]
        bars.add(shoppers, until_us)
        places = _remove(ws, bars, stores, shoppers, until_us)
    return _receipt(ws, until_us, in_answers_after_s, places)


def retain(ws: Workspace, url: str | None, days: float, *, now_us: int | None = None) -> Receipt:
    """Remove every event that is older than so many days, and bar them. As `forget` in all else."""
    bars = Bars(ws)
    until_us = int((time.time_ns() // 1000 if now_us is None else now_us) - days * _DAY_US)
    bars.add((), until_us)
    with _opened(ws, url) as stores:
        places = _remove(ws, bars, stores, None, until_us)
    return _receipt(ws, until_us, 0.0, places)


def mark_of(bars: Bars, user_id: str | None, session_id: str | None) -> str | None:
    """The mark that a store's `bar` knows who did something by; None of nobody."""
    whose = shopper(user_id, session_id)
    return None if whose is None else bars.mark(whose)


def _remove(
    ws: Workspace, bars: Bars, stores: list[tuple[str, EventStore]], shoppers: Sequence[str] | None, until_us: int
) -> dict[str, int]:
    places: dict[str, int] = {}
    for _, store in stores:
        store.bar(bars.known())
    for name, store in stores:
        for what, removed in store.remove(shoppers, until_us).items():
            places[f"{name}.{what}"] = places.get(f"{name}.{what}", 0) + removed
    places.update(clean(ws, bars))
    clean_copies(ws, bars)
    return places


def _receipt(ws: Workspace, until_us: int, after_s: float, places: dict[str, int]) -> Receipt:
    """Also kept, as receipts/<receipt_id>.json."""
    receipt = {
        "receipt_id": secrets.token_hex(8),
        "at_us": time.time_ns() // 1000,
        "until_us": until_us,
        "in_answers_after_s": after_s,
        "places": [{"place": place, "removed": removed} for place, removed in places.items()],
    }
    ws.write_bytes(json.dumps(receipt).encode(), "receipts", f"{receipt['receipt_id']}.json")
    return receipt


@contextlib.contextmanager
def _opened(ws: Workspace, url: str | None) -> Iterator[list[tuple[str, EventStore]]]:
    """(kind, store) of the URL and of the file in the workspace, in which a service of before may have kept events."""
    urls = dict.fromkeys(one for one in (url, default_store(ws)) if one is not None)
    with contextlib.ExitStack() as opened:
        yield [(one.partition(":")[0], opened.enter_context(contextlib.closing(open_store(one)))) for one in urls]
