"""The fused service, really started: its answers, its edges, and what happens to it under load."""

import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from http.client import RemoteDisconnected
from pathlib import Path

import pytest

from rayrec import Engine
from rayrec.config import IndexConfig, SourceConfig
from rayrec.errors import IncompatibleArtifact
from rayrec.pipelines.index import publish_events
from rayrec.workspace import Workspace
from tests.conftest import SHOPPERS
from tests.fakes import NOW_US, make_events
from tests.service import Service, load, until

pytestmark = [pytest.mark.ray, pytest.mark.model]

QUERIES = ["frozen pizza", "cat food", "chocolate milk", "shampoo", "bread", "something sweet", "beef", "soup", "tea"]


def test_answers_are_the_engines_own(service: Service, shop: Workspace):
    engine = Engine.open(shop)
    for query in QUERIES:
        expected = engine.search(query, facets=["brand", "category"], k=10).to_dict()
        found = service.search(query, facets=["brand", "category"], page_size=10)
        assert [h["item_id"] for h in found["hits"]] == [h["item_id"] for h in expected["hits"]]
        assert (found["total"], found["facets"]) == (expected["total"], expected["facets"])
        assert found["coverage"]["dense"] == "ok"
    for shopper in SHOPPERS:
        expected = engine.recommend(user_id=shopper, k=5).to_dict()
        found = service.ask("POST", "/v1/recommend", {"user_id": shopper, "k": 5}).json
        assert [h["item_id"] for h in found["hits"]] == [h["item_id"] for h in expected["hits"]]
    item = expected["hits"][0]["item_id"]
    similar = service.ask("GET", f"/v1/items/{item}/similar?k=3").json
    assert [h["item_id"] for h in similar["hits"]] == [h.item_id for h in engine.similar(item, k=3).hits]
    assert service.ask("GET", f"/v1/items/{item}").json["item"]["item_id"] == item
    assert all("piz" in s["text"] for s in service.ask("GET", "/v1/suggest?q=piz").json["suggestions"])


def test_pages_of_a_search_are_disjoint_over_replicas(service: Service):
    seen, cursor, replicas = [], None, set()
    while True:
        page = service.search("milk", page_size=7, cursor=cursor)
        seen += [hit["item_id"] for hit in page["hits"]]
        replicas.add(page["versions"]["replica"])
        cursor = page["cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == page["total"]
    assert len(replicas) == 2


def test_a_click_is_minded_by_every_replica_at_once(service: Service):
    item = service.search("frozen pizza")["hits"][0]["item_id"]

    def told_by_both(shopper: str) -> dict[str, list[str]]:
        """replica -> what it recommends."""
        found: dict[str, list[str]] = {}
        while len(found) < 2:
            answer = service.ask("POST", "/v1/recommend", {"user_id": shopper, "k": 10}).json
            found[answer["versions"]["replica"]] = [hit["item_id"] for hit in answer["hits"]]
        return found

    stranger = told_by_both("nobody yet")
    clicked = {"event_id": "click 1", "type": "click", "user_id": "nobody yet", "item_id": item}
    answer = service.ask("POST", "/v1/events", {"events": [clicked, {"type": "click"}]}).json
    assert (answer["accepted"], len(answer["rejected"])) == (1, 1)
    minded = told_by_both("nobody yet")
    assert minded.keys() == stranger.keys()
    assert len({tuple(items) for items in minded.values()}) == 1
    assert set(map(tuple, minded.values())) != set(map(tuple, stranger.values()))
    assert service.ask("POST", "/v1/events", {"events": [clicked]}).json["duplicates"] == 1


def test_a_forgotten_shopper_is_a_stranger_to_every_replica_at_once(service: Service, shop: Workspace):
    known = Engine.open(shop).scorer.behavior.histories.users.tolist()
    shopper = next(user for user in known if user not in SHOPPERS)

    def told(user: str | None) -> dict[str, list[str]]:
        """replica -> what it recommends."""
        found: dict[str, list[str]] = {}
        while len(found) < 2:
            answer = service.ask("POST", "/v1/recommend", {"user_id": user, "k": 10}).json
            found[answer["versions"]["replica"]] = [hit["item_id"] for hit in answer["hits"]]
        return found

    clicked = {"event_id": "hers", "type": "click", "user_id": shopper, "item_id": "none", "ts_us": NOW_US}
    assert service.ask("POST", "/v1/events", {"events": [clicked]}).json["accepted"] == 1
    assert told(shopper) != told(None)

    receipt = service.ask("DELETE", f"/v1/users/{shopper}").json

    assert told(shopper) == told(None)
    assert sum(place["removed"] for place in receipt["places"]) > 1
    again = service.ask("POST", "/v1/events", {"events": [clicked]}).json
    assert [one["code"] for one in again["rejected"]] == ["forgotten"]
    shop.verify("indexes", str(shop.current().index))
    assert not len(Engine.open(shop).scorer.behavior.history(shopper).rows)


def test_events_are_fed_by_line_and_replayed_from_the_record(service: Service, tmp_path: Path):
    items = [hit["item_id"] for hit in service.search("chocolate")["hits"]]
    lines = [json.dumps({"type": "view", "user_id": "fed", "item_id": item}) for item in items[:3]]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, "{broken"]))
    rayrec = Path(sys.executable).with_name("rayrec")
    to = ["--url", service.url, "--key", service.key, "--json"]

    def run(*command: str) -> dict:
        done = subprocess.run([rayrec, *command, *to], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    for expected in ({"accepted": 3, "duplicates": 0}, {"accepted": 0, "duplicates": 3}):
        assert run("consume", str(tmp_path / "events.jsonl")) == {**expected, "rejected": 1}
    stranger = service.ask("POST", "/v1/recommend", {"k": 10}).json["hits"]
    fed = service.ask("POST", "/v1/recommend", {"user_id": "fed", "k": 10}).json["hits"]
    assert [hit["item_id"] for hit in fed] != [hit["item_id"] for hit in stranger]

    record = Workspace.open(tmp_path / "record")
    bought = [{"user_id": "replayed", "item_id": item, "ts_us": NOW_US + i} for i, item in enumerate(items)]
    publish_events(make_events(bought), SourceConfig(path="record"), record)
    told = run("replay", "--workspace", record.uri, "--speed", "0")
    assert told == {"accepted": len(items), "duplicates": 0, "rejected": 0}
    replayed = service.ask("POST", "/v1/recommend", {"user_id": "replayed", "k": 10}).json["hits"]
    assert [hit["item_id"] for hit in replayed] != [hit["item_id"] for hit in stranger]


def test_headers_cannot_reach_around_the_api(service: Service):
    told = service.ask("POST", "/v1/search", {"query": "soup"}, {"x-request-timeout-seconds": "0.000001"})
    assert told.status == 200
    told = service.ask("POST", "/v1/recommend", {}, {"x-request-id": "<b>", "serve_multiplexed_model_id": "x"})
    assert re.fullmatch(r"[0-9a-f-]{36}", told.json["request_id"])
    assert told.headers["x-request-id"] == told.json["request_id"]


def test_metrics_are_the_sum_of_all_replicas(service: Service):
    time.sleep(2)  # what replicas have counted by now is told by then
    before = service.metric("rayrec_requests_total", route="/v1/suggest", status="200")
    for _ in range(20):
        assert service.ask("GET", "/v1/suggest?q=pi").status == 200
    until(lambda: service.metric("rayrec_requests_total", route="/v1/suggest", status="200") == before + 20, 10)
    assert service.metric("rayrec_version_replicas", part="gateway") == 2


def test_a_new_key_works_and_a_revoked_one_stops_working_within_seconds(service: Service, shop: Workspace):
    from rayrec.serving.auth import Keys

    keys = Keys(shop)
    key, secret = keys.create("read")
    header = {"authorization": f"Bearer {secret}"}

    def statuses() -> set[int]:
        return {service.ask("POST", "/v1/recommend", {}, header).status for _ in range(6)}

    until(lambda: statuses() == {200}, 10)
    keys.revoke(key.id)
    until(lambda: statuses() == {401}, 10)


def expected_ids(ws: Workspace, version: str) -> dict[str, list[str]]:
    engine = Engine.open(ws, index=version)
    return {query: [hit.item_id for hit in engine.search(query, k=5).hits] for query in QUERIES}


def test_promotion_and_rollback_under_load_fail_no_request_of_ten_thousand(service: Service, shop: Workspace):
    from rayrec.pipelines.index import index

    first = shop.current().index
    second = index(IndexConfig(half_life_days=10, promote=False), shop).index
    broken = index(IndexConfig(promote=False), shop).index
    (file,) = Path(shop.path("indexes", broken)).glob("shard-0000/dense/dense.faiss")
    expected = {version: expected_ids(shop, version) for version in (first, second)}
    bodies = [{"query": query, "page_size": 5} for query in QUERIES]

    def check(number: int, answer: dict) -> str | None:
        query, version = QUERIES[number % len(QUERIES)], answer["versions"]["index"]
        ids = [hit["item_id"] for hit in answer["hits"]]
        return None if ids == expected[version][query] else f"{query} by {version}: {ids}"

    def all_answer_with(version: str) -> bool:
        return service.metric("rayrec_version_replicas", part="gateway", index=version) == 2

    def promote(version: str | None) -> float:
        """Seconds until both replicas answer with it."""
        pointer = shop.rollback() if version is None else shop.promote(index=version)
        return until(lambda: all_answer_with(str(pointer.index)), 10)

    with load(service, bodies, 10_000, check) as result:
        time.sleep(3)
        took = [promote(second), promote(None), promote(second), promote(None)]
        # promoting checks a version; this pointer was moved around that, and the replicas check again
        file.write_bytes(b"broken")
        with pytest.raises(IncompatibleArtifact, match="truncated"):
            shop.promote(index=broken)
        now = shop.current()
        moved = replace(now, generation=now.generation + 1, index=broken, history=[{"index": first, "model": None}])
        shop.write_bytes(json.dumps(asdict(moved)).encode(), "current.json")
        until(lambda: service.metric("rayrec_version_load_failures_total", part="gateway") >= 2, 20)
        shop.rollback()
    print(f"swap: {result.done} requests {dict(result.statuses)}, seconds to reach all replicas {took}")
    print(f"answers by version {dict(result.indexes)}, by replica {dict(result.replicas)}")
    assert result.statuses == {200: 10_000}
    assert (result.wrong, result.broken) == ([], [])
    assert set(result.indexes) == {first, second}
    assert all(seconds < 10 for seconds in took)


def test_a_killed_replica_costs_no_wrong_answer_and_comes_back(service: Service, shop: Workspace):
    expected = expected_ids(shop, str(shop.current().index))
    bodies = [{"query": query, "page_size": 5} for query in QUERIES]

    def check(number: int, answer: dict) -> str | None:
        ids = [hit["item_id"] for hit in answer["hits"]]
        return None if ids == expected[QUERIES[number % len(QUERIES)]] else f"{number}: {ids}"

    with load(service, bodies, 6_000, check) as result:
        time.sleep(2)
        victim = service.replicas("Gateway")[0]
        victim.kill()
        began = time.monotonic()
        until(lambda: len(service.replicas("Gateway")) == 2 and not victim.is_running(), 60)
        back_s = time.monotonic() - began
    print(f"kill: {result.done} requests {dict(result.statuses)}, broken {result.broken}, back in {back_s:.1f} s")
    assert result.wrong == []
    unanswered = len(result.broken) + result.statuses[503]
    assert result.statuses[200] + unanswered == 6_000
    assert unanswered <= 8, "at most what the eight clients had in flight there"
    until(lambda: service.metric("rayrec_version_replicas", part="gateway") == 2, 30)


def test_with_no_replica_left_the_proxy_answers_in_the_one_shape_until_one_is_back(service: Service):
    for replica in service.replicas("Gateway"):
        replica.kill()
    told = []

    def answered() -> bool:
        try:
            answer = service.ask("POST", "/v1/search", {"query": "soup"}, {"x-request-id": "alone"})
        except RemoteDisconnected:  # HAProxy says nothing where a connection breaks that it used before
            told.append(0)
            return False
        told.append(answer.status)
        if answer.status != 200:
            assert answer.status == 503, answer
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["retry-after"] == "1"
            assert answer.json["error"]["code"] == "unavailable"
            assert answer.json["error"]["request_id"]
        return answer.status == 200

    until(answered, 60)
    print(f"without replicas: {told}")
    assert told.count(0) <= 3, "in the moment of the kill, and no longer"
    until(lambda: service.metric("rayrec_version_replicas", part="gateway") == 2, 60)


def test_overload_is_degraded_then_refused_quickly_and_passes(service: Service):
    bodies = [{"query": f"frozen pizza {n}", "page_size": 24, "facets": ["brand", "category"]} for n in range(500)]
    states: dict[str, int] = {}

    def check(number: int, answer: dict) -> str | None:
        state = answer["coverage"]["why"] or "full"
        states[state] = states.get(state, 0) + 1
        degraded = answer["coverage"]["degraded"]
        return None if degraded == (answer["coverage"]["dense"] == "skipped") else f"{number}: {answer['coverage']}"

    with load(service, bodies, 3_000, check, threads=96) as result:
        time.sleep(1)
        told = []
        for _ in range(40):
            began = time.monotonic()
            answer = service.ask("POST", "/v1/search", {"query": "soup"})
            told.append((answer.status, time.monotonic() - began, answer.headers.get("retry-after")))
            time.sleep(0.02)
    print(f"overload: {dict(result.statuses)}, {states}")
    assert result.wrong == []
    assert result.broken == []
    assert set(result.statuses) == {200, 429}
    assert {"full"} < set(states), "some were answered in full, some by less"
    refused = [row for row in told if row[0] == 429]
    assert refused
    assert all(retry == "1" for _, _, retry in refused)
    assert sorted(seconds for _, seconds, _ in refused)[len(refused) // 2] < 1.0
    assert not service.search("soup")["coverage"]["degraded"]
