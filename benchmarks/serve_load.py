"""Load for bench_serve: search requests made from a catalog's titles, and wrk, which sends them.

wrk (Will Glozer's, in C) costs a tenth of a millisecond a request, so that on two cores it takes little of what it
measures. It goes through a file of bodies in order, from a line it is given.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

_SCRIPT = Path(__file__).with_name("serve_load.lua")
_FACETS = ["brand", "category", "price_cents"]
_PAGE = 24
_NEIGHBOURS = 60
_ZIPF_QUERIES = 1_000
_ZIPF_EXPONENT = 1.0


@dataclass(frozen=True)
class Point:
    """What wrk saw at one number of connections. failed: answers of status 400 and up, and errors of sockets."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    rps: float
    requests: int
    failed: int


def wrk_version() -> str:
    """Exits with how to install it if it is not there."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; run: apt-get install wrk")
    said = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0].partition(" Copyright")[0].strip()


# -- requests -------------------------------------------------------------------------------------


def distinct_bodies(items: pa.Table, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """`n` search bodies, no query twice: 2 to 4 words of two titles that stand side by side on the shelf.

    One title alone has too few: 15,000 of a grocer make 13,000 queries. Every second body has filters.
    """
    titles = [_words(title) for title in items.column("title").to_pylist()]
    paths = items.column("category").to_pylist()
    shelf = sorted((row for row in range(len(titles)) if titles[row]), key=lambda row: (str(paths[row]), row))
    seen: set[str] = set()
    bodies: list[dict[str, Any]] = []
    filters = _filters(items, rng)
    while len(bodies) < n:
        one = int(rng.integers(len(shelf)))
        other = min(one + int(rng.integers(1, _NEIGHBOURS)), len(shelf) - 1)
        words = list(dict.fromkeys(titles[shelf[one]] + titles[shelf[other]]))
        count = min(int(rng.integers(2, 5)), len(words))
        query = " ".join(words[i] for i in np.sort(rng.permutation(len(words))[:count]))
        if count < 2 or query in seen:
            continue
        seen.add(query)
        body = {"query": query, "facets": _FACETS, "page_size": _PAGE}
        bodies.append({**body, "filters": next(filters)} if len(bodies) % 2 else body)
    return bodies


def zipf_bodies(bodies: Sequence[dict[str, Any]], n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """`n` bodies out of the first 1,000, the r-th most frequent of them 1 / r as often as the first."""
    shares = 1 / np.arange(1, _ZIPF_QUERIES + 1) ** _ZIPF_EXPONENT
    return [bodies[i] for i in rng.choice(_ZIPF_QUERIES, n, p=shares / shares.sum())]


def _words(title: str) -> list[str]:
    """Words that somebody would type: sizes and their units are left out."""
    return [word for word in dict.fromkeys(re.findall(r"[a-z]+", title.lower())) if len(word) > 2]


def _filters(items: pa.Table, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """By turns a brand, price bounds, a category, and price bounds with a brand."""
    brands = [brand for brand in items.column("brand").to_pylist() if brand]
    prices = np.sort(items.column("price_cents").drop_null().to_numpy())
    tops = [path[0] for path in items.column("category").to_pylist() if path]
    while True:
        low, high = (int(prices[int(share * (len(prices) - 1))]) for share in np.sort(rng.random(2)))
        bounds = {"gte": low, "lt": high + 1}
        brand = brands[rng.integers(len(brands))]
        yield {"brand": [brand]}
        yield {"price_cents": bounds}
        yield {"category": [tops[rng.integers(len(tops))]]}
        yield {"price_cents": bounds, "brand": [brand]}


# -- wrk ------------------------------------------------------------------------------------------


class Load:
    """Bodies in a file, gone through in order: what one point has sent, the next one does not send again."""

    def __init__(self, file: Path, bodies: Sequence[dict[str, Any]], key: str):
        file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
        self._file = file
        self._key = key
        self._lines = len(bodies)
        self.sent = 0

    @property
    def repeated(self) -> bool:
        """Whether the bodies did not last, and were gone through again."""
        return self.sent > self._lines

    def run(self, url: str, connections: int, seconds: float) -> Point:
        """Raises RuntimeError with wrk's reason if it does not run."""
        command = [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(_SCRIPT), url, "--",
            str(self._file), self._key, str(self.sent % self._lines),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        if not last.startswith("{"):
            raise RuntimeError(f"wrk: {done.stderr.strip() or last}")
        point = Point(**json.loads(last))
        self.sent += point.requests + connections  # those under way at the end were sent too
        return point
