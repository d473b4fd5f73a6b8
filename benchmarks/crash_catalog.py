"""The catalog's half of crash_fuzz: who changes items, who compacts meanwhile, and who judges what is there after."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote

import numpy as np

from benchmarks.bench_live import Client
from rayrec.engine import Engine
from rayrec.errors import RayrecError
from rayrec.schema import Change
from rayrec.store import CatalogLog, open_catalog_log
from rayrec.workspace import Workspace

ITEMS = 400
WORDS = ("kettle", "lamp", "tea", "soup", "red", "blue", "oak", "steel", "large", "small", "garden", "desk")
QUERIES = ("red kettle", "garden lamp", "soup", "steel desk small", "tea")
_AT_ONCE = 10_000
_REST_S = (5.0, 30.0)


class CatalogLedger:
    """What was sent and what was acknowledged: (offset, item_id, the fields that it must have, None if deleted)."""

    def __init__(self) -> None:
        self.acked: list[tuple[int, str, dict[str, Any] | None]] = []
        self.sent: set[tuple[str, str]] = set()
        self.lock = threading.Lock()


class CatalogWriter(threading.Thread):
    """Puts, patches and deletes items of its own and others' until it is told to stop."""

    def __init__(
        self,
        number: int,
        seed: int,
        ask: Callable[[str, str, dict[str, Any]], dict[str, Any] | None],
        ledger: CatalogLedger,
        stop: threading.Event,
    ):
        super().__init__(name=f"catalog-{number}")
        self._number, self._rng = number, random.Random(f"catalog {seed}-{number}")
        self._ask, self._ledger, self._stopped = ask, ledger, stop
        self._made = 0

    def run(self) -> None:
        while not self._stopped.is_set():
            kind = self._rng.random()
            if kind < 0.3:
                self._put([self._item() for _ in range(self._rng.randint(1, 4))])
            elif kind < 0.55:
                self._patch()
            else:
                self._remove()

    def _item(self) -> dict[str, Any]:
        self._made += 1
        stamp = f"w{self._number}x{self._made}"
        return {
            "item_id": self._any_id(),
            "title": " ".join(self._rng.sample(WORDS, 3)),
            "price_cents": self._rng.randint(1, 9_999),
            "attributes": {"stamp": stamp},
        }

    def _any_id(self) -> str:
        return f"crash{self._rng.randrange(ITEMS)}"

    def _put(self, items: list[dict[str, Any]]) -> None:
        self._sends(items)
        told = self._ask("PUT", "/v1/items", {"items": items})
        if told is not None:
            first = told["offset"] - len(items) + 1
            self._acked((first + place, item["item_id"], item) for place, item in enumerate(items))

    def _patch(self) -> None:
        item = self._item()
        fields = {"price_cents": item["price_cents"], "attributes": item["attributes"]}
        self._sends([item])
        told = self._ask("PATCH", f"/v1/items/{quote(item['item_id'])}", fields)
        if told is not None:
            self._acked([(told["offset"], item["item_id"], fields)])

    def _remove(self) -> None:
        name = self._any_id()
        told = self._ask("DELETE", f"/v1/items/{name}", {})
        if told is not None:
            self._acked([(told["offset"], name, None)])

    def _sends(self, items: list[dict[str, Any]]) -> None:
        with self._ledger.lock:
            self._ledger.sent |= {(item["item_id"], item["attributes"]["stamp"]) for item in items}

    def _acked(self, changes: Any) -> None:
        with self._ledger.lock:
            self._ledger.acked.extend(changes)


class Compactor(threading.Thread):
    """Runs `rayrec index` again and again, kills half of them with SIGKILL in the middle, now and then rolls back."""

    def __init__(self, ws: Workspace, config: str, seed: int, stop: threading.Event):
        super().__init__(name="compactor")
        self._ws, self._config, self._rng, self._stopped = ws, config, random.Random(f"compact {seed}"), stop
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        while not self._stopped.wait(self._rng.uniform(*_REST_S)):
            command = [sys.executable, "-m", "rayrec.cli", "index", "-w", self._ws.uri, "-c", self._config, "--json"]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            limit = self._rng.uniform(1.0, 30.0) if self._rng.random() < 0.5 else None
            try:
                told = process.communicate(timeout=limit or 240)[1]
                self.done["compacted" if process.returncode == 0 else "failed"] += 1
                if process.returncode:  # its store was killed in the middle, say
                    print(f"a compaction ended with: {told.strip()[-300:]}", flush=True)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                self.done["killed while compacting"] += 1
            if self._rng.random() < 0.3:
                with contextlib.suppress(RayrecError):
                    self._ws.rollback()
                    self.done["rolled back"] += 1


def judge(url: str, key: str, store: str, ws: Workspace, ledger: CatalogLedger) -> dict[str, int]:
    """Counts of acknowledged changes that the log lacks, of deleted items that are found, and of all that differs."""
    log = open_catalog_log(store)
    try:
        changes = everything(log, 0)
        at = {change.offset: change for change in changes}
        lost = sum(not _is_in(at, *acked) for acked in ledger.acked)
        # what the log has but nobody sent; patches and puts carry a stamp of their own
        invented = sum(
            (c.item_id, c.item["attributes"].get("stamp")) not in ledger.sent for c in changes if c.item is not None
        )
        newest = {change.item_id: change for change in changes}
        gone = {name for name, change in newest.items() if change.item is None}
        end = changes[-1].offset if changes else 0
        index = ws.current().index or ""
        wanted = replayed(ws, index, log)
        found, alike = asked(url, key, end, wanted)
    finally:
        log.close()
    there = set(wanted.columns.rows) & {name for name in wanted.columns.rows if wanted.columns.row(name) is not None}
    different = sum(
        any(found.get(name, {}).get(field) != value for field, value in change.item.items() if field != "updated_us")
        for name, change in newest.items()
        if change.item is not None
    )
    return {
        "changes_acked": len(ledger.acked),
        "deletes_acked": sum(item is None for _, _, item in ledger.acked),
        "changes": len(changes),
        "lost": lost,
        "resurrected": len(gone & set(found)) + invented,
        "mismatched": len(set(found) ^ there) + different + (len(QUERIES) * 2 - alike),
    }


def _is_in(log: dict[int, Change], offset: int, item_id: str, fields: dict[str, Any] | None) -> bool:
    change = log.get(offset)
    if change is None or change.item_id != item_id or (change.item is None) != (fields is None):
        return False
    said = change.item or {}
    return fields is None or all(
        said.get(name) == value if name != "attributes" else said[name].items() >= value.items()
        for name, value in fields.items()
    )


def everything(log: CatalogLog, after: int) -> list[Change]:
    changes: list[Change] = []
    while part := log.changes(after, _AT_ONCE):
        changes += part
        after = part[-1].offset
    return changes


def replayed(ws: Workspace, index: str, log: CatalogLog) -> Engine:
    """An engine of the same base that took up the log in one go, in this process."""
    engine = Engine.load(ws, index, ws.current().model)
    engine.catch_up(ws, log)
    return engine


def asked(url: str, key: str, end: int, wanted: Engine) -> tuple[dict[str, dict[str, Any]], int]:
    """(every item that the service has, how many of its answers are the replayed engine's), over both replicas."""
    found: dict[str, dict[str, Any]] = {}
    alike = 0
    with closing(Client(url, key)) as client:
        _wait_for(client, wanted.versions["index"])
        cursor = None
        while True:
            body = {"query": "", "page_size": 500, "sort": "price_asc", "min_offset": end, "cursor": cursor}
            page = client.ask("/v1/search", body)
            found |= {hit["item_id"]: hit["item"] for hit in page["hits"]}
            cursor = page["cursor"]
            if cursor is None:
                break
        for query in QUERIES:
            expected = wanted.search(query, facets=["brand"], k=50)
            replicas: set[str] = set()
            deadline = time.monotonic() + 30
            while len(replicas) < 2 and time.monotonic() < deadline:
                body = {"query": query, "facets": ["brand"], "page_size": 50, "min_offset": end}
                answer = client.ask("/v1/search", body)
                if answer["versions"]["replica"] in replicas:
                    continue
                replicas.add(answer["versions"]["replica"])
                same = [hit["item_id"] for hit in answer["hits"]] == [hit.item_id for hit in expected.hits]
                scores = np.allclose([h["score"] for h in answer["hits"]], [h.score for h in expected.hits], atol=1e-5)
                alike += same and scores and answer["total"] == expected.total
    return found, alike


def _wait_for(client: Client, index: str) -> None:
    """Until both replicas answer with the index that is promoted."""
    deadline = time.monotonic() + 120
    streak = 0
    while streak < 20:
        versions = client.ask("/v1/search", {"query": "soup", "page_size": 1})["versions"]
        streak = streak + 1 if versions["index"] == index else 0
        if time.monotonic() > deadline:
            raise RuntimeError(f"the service does not come to answer with {index}")
        time.sleep(0.05)
