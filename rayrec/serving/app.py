"""The only place that binds deployments: plain classes become a Ray Serve application.

    serve deploy jobs/serve.yaml          # on a cluster; import_path: rayrec.serving.app:build
    rayrec serve --workspace W            # on this machine, through serving/local.py

The classes here only hold what needs a replica around it: its id, its event loop, its handles to others.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve

from rayrec.barring import Bars
from rayrec.config import ReplicasConfig, ServeConfig
from rayrec.forgetting import forget
from rayrec.retrieval.base import Found, Hits, Probe
from rayrec.rewriting import clean_copies
from rayrec.serving.auth import Keys
from rayrec.serving.backends import PICTURES_TOGETHER, Backend, FusedBackend, SplitBackend, between_answers
from rayrec.serving.batching import Batcher, by_key
from rayrec.serving.catalog import Catalog
from rayrec.serving.events import Events, count_on, store_url
from rayrec.serving.gateway import Gateway
from rayrec.serving.http import create_app
from rayrec.serving.loopback import confine_replica
from rayrec.serving.parts import QueryEncoder, Retriever, ScorerPart
from rayrec.serving.remote import RemoteRetrievers, RemoteScorer, discreet, retried
from rayrec.serving.telemetry import MetricsHub, Telemetry
from rayrec.serving.versions import Pair
from rayrec.store import CatalogLog, open_catalog_log, open_store
from rayrec.workspace import Workspace

log = logging.getLogger(__name__)

_REPORT_S = 1.0
_ONGOING = 1_024  # the gateway refuses long before Ray Serve would queue
# every search makes some thousand small objects that live for a millisecond: collect less often
_GC_THRESHOLD = 50_000
# several requests at once keep the cores busy; threads of one small product would only wait for each other
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def build(config: ServeConfig) -> serve.Application:
    """The application; what `import_path` in jobs/serve.yaml names, its `args` are the config."""
    hub = _deployment(HubReplica, "MetricsHub", ReplicasConfig(cpus=0), config).bind()
    gateway = _deployment(serve.ingress()(GatewayReplica), "Gateway", config.gateway, config)
    if config.topology == "fused":
        return gateway.bind(config, hub, None, None)
    retrievers = [
        _deployment(RetrieverReplica, f"Retriever{shard}", config.retriever, config).bind(config, hub, shard)
        for shard in range(config.shards)
    ]
    scorer = _deployment(ScorerReplica, "Scorer", config.scorer, config).bind(config, hub, *retrievers)
    encoder = _deployment(EncoderReplica, "QueryEncoder", config.encoder, config).bind(config, hub)
    return gateway.bind(config, hub, encoder, scorer)


def _deployment(kind: type, name: str, replicas: ReplicasConfig, config: ServeConfig) -> serve.Deployment:
    scaling: dict[str, Any] = {"num_replicas": replicas.min}
    if replicas.max > replicas.min:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.min,
                "max_replicas": replicas.max,
                "target_ongoing_requests": replicas.target,
                "upscale_delay_s": replicas.upscale_delay_s,
                "downscale_delay_s": replicas.downscale_delay_s,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 3.0,
            }
        }
    options: dict[str, Any] = {
        "name": name,
        "ray_actor_options": {
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            "runtime_env": {"env_vars": _ONE_THREAD},
        },
        "max_ongoing_requests": _ONGOING,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": 2 * config.deadline_ms / 1000,
        "graceful_shutdown_wait_loop_s": 0.2,
        # an access log holds paths, and a path may hold what somebody types
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        **scaling,
    }
    return serve.deployment(kind, **options)


class Reporting:
    """What every replica has: its counts, told to the hub while it lives."""

    def __init__(self, hub: Any):
        confine_replica()
        gc.set_threshold(_GC_THRESHOLD, 20, 20)
        self.telemetry = Telemetry()
        self._hub = hub
        self.replica = serve.get_replica_context().replica_id.unique_id
        self._reporter = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        while True:
            # the hub may be starting, or be replaced; the next report carries everything again
            with contextlib.suppress(Exception):
                await self._hub.report.remote(self.replica, self.telemetry.snapshot())
            await asyncio.sleep(_REPORT_S)


class HubReplica(MetricsHub):
    """The hub takes its calls in its event loop: they are short."""

    def __init__(self) -> None:
        confine_replica()
        super().__init__()

    async def report(self, replica: str, snapshot: Any) -> None:  # type: ignore[override]
        super().report(replica, snapshot)

    async def text(self) -> str:  # type: ignore[override]
        return super().text()


class GatewayReplica(Reporting):
    """The ingress: HTTP in front, and with no handles the whole engine behind."""

    def __init__(self, config: ServeConfig, hub: Any, encoder: Any, scorer: Any):
        Reporting.__init__(self, hub)
        ws = Workspace.open(config.workspace, create=False)
        url, log = _store_url(config), _catalog_log(config)
        store = None if url is None else open_store(url)
        count_on(ws, store, log)
        backend: Backend
        if encoder is None:
            backend = FusedBackend(config, self.telemetry, log)
        else:
            backend = SplitBackend(config, self.telemetry, encoder, scorer)
        self._keys = Keys(ws)
        self._bars = Bars(ws)
        self._bars.create_secret()
        clean_copies(ws, self._bars)
        self._refresher = asyncio.get_running_loop().create_task(self._refresh(ws, config.poll_s))
        events = None if store is None else Events(config, store, self.telemetry, self._bars)
        # without a store to ask at every answer, replicas find out as they look
        after_s = 0.0 if url is not None else 2 * config.poll_s
        self._gateway = Gateway(
            config,
            backend,
            self.telemetry,
            self.replica,
            events,
            None if log is None else Catalog(config, log, backend, self.telemetry),
            self._bars,
            partial(forget, ws, url, in_answers_after_s=after_s),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._gateway, self._keys, self._metrics)

    async def _refresh(self, ws: Workspace, poll_s: float) -> None:
        while True:
            await asyncio.sleep(poll_s)
            try:
                await asyncio.to_thread(self._keys.refresh)
                if await asyncio.to_thread(self._bars.refresh):
                    await asyncio.to_thread(clean_copies, ws, self._bars)
            except Exception as error:  # a filesystem that is away for a moment
                log.warning("keys and bars cannot be read (%s); the known ones stay", type(error).__name__)

    async def _metrics(self) -> str:
        await retried(partial(self._hub.report.remote, self.replica, self.telemetry.snapshot()))
        return await retried(self._hub.text.remote)


def _store_url(config: ServeConfig) -> str | None:
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return store_url(config, Workspace.open(config.workspace, create=False), nodes)


def _catalog_log(config: ServeConfig) -> CatalogLog | None:
    url = _store_url(config)
    return None if url is None else open_catalog_log(url)


class EncoderReplica(Reporting):
    def __init__(self, config: ServeConfig, hub: Any):
        Reporting.__init__(self, hub)
        self._part = part = QueryEncoder(config, self.telemetry)
        thread = ThreadPoolExecutor(1, thread_name_prefix="rayrec-encode")
        self._items = ThreadPoolExecutor(1, thread_name_prefix="rayrec-items")
        self._encode = Batcher[tuple[Pair, str], np.ndarray](
            lambda calls: by_key(calls, lambda pair, queries: list(part.encode(pair, queries))),
            thread,
            max_size=config.max_batch,
        )
        self._encode_images = Batcher[tuple[Pair, np.ndarray], np.ndarray](
            lambda calls: by_key(calls, lambda pair, pictures: list(part.encode_images(pair, pictures))),
            thread,
            max_size=min(config.max_batch, PICTURES_TOGETHER),
        )

    @discreet
    async def encode(self, pair: Pair, query: str) -> np.ndarray:
        return await self._encode((pair, query))

    @discreet
    async def encode_image(self, pair: Pair, picture: np.ndarray) -> np.ndarray:
        return await self._encode_images((pair, picture))

    @discreet
    async def encode_items(self, pair: Pair, texts: Sequence[str]) -> tuple[str, np.ndarray]:
        return await asyncio.get_running_loop().run_in_executor(self._items, self._part.encode_items, pair, texts)


class RetrieverReplica(Reporting):
    def __init__(self, config: ServeConfig, hub: Any, shard: int):
        Reporting.__init__(self, hub)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayrec-retrieve")
        log, between = _catalog_log(config), between_answers(self._thread)
        self._part = part = Retriever(config, shard, self.telemetry, log, between)
        self._find = Batcher[tuple[Pair, Probe], Found](
            lambda calls: by_key(calls, part.find), self._thread, max_size=config.max_batch
        )

    @discreet
    async def find(self, pair: Pair, probe: Probe) -> Found:
        await self._part.reach(pair, probe.min_offset)
        return await self._find((pair, probe))

    @discreet
    async def nearest(self, pair: Pair, vector: np.ndarray, k: int, allowed: np.ndarray | None) -> Hits:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._part.nearest, pair, vector, k, allowed)


class ScorerReplica(Reporting, RemoteScorer):
    def __init__(self, config: ServeConfig, hub: Any, *retrievers: Any):
        Reporting.__init__(self, hub)
        thread = ThreadPoolExecutor(1, thread_name_prefix="rayrec-score")
        part = ScorerPart(config, self.telemetry, _catalog_log(config), between_answers(thread))
        RemoteScorer.__init__(self, part, RemoteRetrievers(retrievers), thread)
