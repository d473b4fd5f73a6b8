"""jobs/serve.yaml on a cluster that `ray start` made: split, equal to fused, and its encoder scales by itself."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrec.config import IndexConfig
from rayrec.serving.cluster import environment
from rayrec.workspace import Workspace
from tests.ports import free_port
from tests.service import Service, load, until

pytestmark = [pytest.mark.ray, pytest.mark.model]
JOB = Path(__file__).parents[2] / "jobs" / "serve.yaml"
BIN = Path(sys.executable).parent
QUERIES = ["frozen pizza", "cat food", "chocolate milk", "shampoo for dry hair", "bread", "something sweet", "tea"]


def written(ws: Workspace, port: int, file: Path) -> Path:
    """The job as it is in the repository, but for what this machine cannot have: its bucket, its size, its patience."""
    job: dict[str, Any] = yaml.safe_load(JOB.read_text())
    job["http_options"] = {"host": "127.0.0.1", "port": port}
    (application,) = job["applications"]
    assert application["args"]["topology"] == "split"
    application["args"] |= {"workspace": ws.uri, "store": None}
    for part in ("gateway", "encoder", "retriever", "scorer"):
        application["args"][part] |= {"min": 1, "cpus": 0.1}
    application["args"]["encoder"] |= {"max": 2, "target": 1, "upscale_delay_s": 1, "downscale_delay_s": 4}
    file.write_text(yaml.safe_dump(job))
    return file


@pytest.fixture(scope="module")
def split(shop: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from rayrec.serving.auth import Keys

    directory = tmp_path_factory.mktemp("deploy")
    private = Path("/tmp") / f"rr-test-{os.getpid()}"
    private.mkdir(mode=0o700)
    port, gcs, dashboard = free_port(), free_port(), free_port()
    env = {**os.environ, **environment(private), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    env |= {"RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    log = directory / "head.log"
    command = [
        BIN / "ray", "start", "--head", "--block", f"--port={gcs}", "--num-cpus=4", "--disable-usage-stats",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true",
    ]  # fmt: skip
    with open(log, "w") as out:
        head = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    service = Service(head, f"http://127.0.0.1:{port}", port, log, shop, Keys(shop).create("admin", "tests")[1])
    try:
        until(lambda: "--block" in log.read_text(), 120)
        job = written(shop, port, directory / "serve.yaml")

        def deployed() -> bool:  # the dashboard takes a moment until it takes applications
            done = subprocess.run([BIN / "serve", "deploy", job], env=env, capture_output=True, text=True, check=False)
            log.write_text(log.read_text() + done.stdout + done.stderr)
            return done.returncode == 0

        until(deployed, 120)
        until(lambda: answers(service), 180)
        yield service
    finally:
        head.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(60)
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)


def answers(service: Service) -> bool:
    with contextlib.suppress(OSError):
        told = service.ask("POST", "/v1/search", {"query": "tea"})
        if told.status != 200:  # before the application is up the proxy answers for it
            assert told.status == 503
            assert told.json["error"]["code"] == "unavailable"
        return told.status == 200
    return False


def same(service: Service, other: Service, method: str, path: str, body: Any = None) -> None:
    varying = ("took_ms", "request_id", "versions")
    one, two = ({k: v for k, v in s.ask(method, path, body).json.items() if k not in varying} for s in (service, other))
    assert one == two
    assert "error" not in one


def test_split_answers_as_fused_does(split: Service, service: Service):
    for query in QUERIES:
        for more in (
            {"facets": ["brand", "category", "price_cents"], "explain": True},
            {"filters": {"price_cents": {"gte": 100, "lt": 400}}, "sort": "price_asc"},
            {"mode": "dense", "page_size": 50},
            {"mode": "lexical", "page": 2, "page_size": 5},
        ):
            same(split, service, "POST", "/v1/search", {"query": query, **more})
    item = service.search("milk")["hits"][0]["item_id"]
    for shopper in ("900", "1", "nobody"):
        same(split, service, "POST", "/v1/recommend", {"user_id": shopper, "recent_item_ids": [item], "explain": True})
    same(split, service, "GET", f"/v1/items/{item}/similar?k=9&explain=true")
    same(split, service, "GET", f"/v1/items/{item}")


def test_operations_need_a_key_where_others_can_reach_them(split: Service):
    assert split.ask("GET", "/metrics", headers={"authorization": ""}).status == 401
    assert split.metric("rayrec_version_replicas", part="scorer") == 1


def test_a_load_step_scales_the_encoder_up_and_down_again(split: Service):
    counts = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            counts.append(len(split.replicas("QueryEncoder")))
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    bodies = [{"query": f"a distinct query of some length about soup and bread number {n}"} for n in range(20_000)]
    with load(split, bodies, 4_000, lambda number, answer: None, threads=16) as result:
        pass
    until(lambda: len(split.replicas("QueryEncoder")) == 1, 90)
    over.set()
    watcher.join()
    print(f"load: {dict(result.statuses)}, encoders over time: {counts}")
    assert max(counts) == 2
    assert result.statuses == {200: 4_000}
    assert result.broken == []


def test_a_swap_reaches_every_part_and_no_request_fails_or_mixes_versions(split: Service, shop: Workspace):
    from rayrec import Engine
    from rayrec.pipelines.index import index

    first = str(shop.current().index)
    second = index(IndexConfig(half_life_days=10, promote=False), shop).index
    expected = {}
    for version in (first, second):
        engine = Engine.open(shop, index=version)
        expected[version] = {q: [hit.item_id for hit in engine.search(q, k=5).hits] for q in QUERIES}
    bodies = [{"query": query, "page_size": 5} for query in QUERIES]

    def check(number: int, answer: dict[str, Any]) -> str | None:
        query, version = QUERIES[number % len(QUERIES)], answer["versions"]["index"]
        ids = [hit["item_id"] for hit in answer["hits"]]
        return None if ids == expected[version][query] else f"{query} by {version}: {ids}"

    def everywhere(version: str) -> bool:
        parts = ("gateway", "encoder", "scorer", "retriever-0")
        return all(split.metric("rayrec_version_replicas", part=part, index=version) >= 1 for part in parts)

    with load(split, bodies, 2_000, check, threads=4) as result:
        shop.promote(index=second)
        took = [until(lambda: everywhere(second), 10)]
        shop.rollback()
        took.append(until(lambda: everywhere(first), 10))
    print(f"split swap: {dict(result.statuses)}, by version {dict(result.indexes)}, seconds {took}")
    assert result.statuses == {200: 2_000}
    assert (result.wrong, result.broken) == ([], [])
    assert set(result.indexes) == {first, second}


def test_a_killed_encoder_costs_meaning_for_a_moment_and_comes_back(split: Service):
    until(lambda: not split.search("tea")["coverage"]["degraded"], 30)
    victims = split.replicas("QueryEncoder")
    for victim in victims:
        victim.kill()
    states = []

    def healed() -> bool:
        answer = split.search(f"hot tea with milk {len(states)}")
        states.append(answer["coverage"]["dense"])
        assert answer["total"] > 0
        assert answer["coverage"]["degraded"] == (answer["coverage"]["dense"] == "failed")
        return len(states) > 20 and states[-1] == "ok"

    until(healed, 90)
    print(f"encoder killed: {states}")
    assert not any(victim.is_running() for victim in victims)


def test_a_killed_scorer_is_told_as_unavailable_until_it_is_back(split: Service):
    for victim in split.replicas("Scorer"):
        victim.kill()
    statuses = []

    def healed() -> bool:
        told = split.ask("POST", "/v1/search", {"query": "tea"})
        statuses.append(told.status)
        if told.status != 200:
            assert told.status == 503
            assert told.json["error"]["code"] == "unavailable"
        return told.status == 200

    until(healed, 90)
    print(f"scorer killed: {statuses}")
