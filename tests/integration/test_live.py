"""A shop that changes while it answers: upserts, deletions and compaction on a real service of two replicas."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayrec.config import IndexConfig
from rayrec.pipelines.embed import embed
from rayrec.pipelines.index import index
from rayrec.workspace import Workspace
from tests.integration.conftest import embed_config, write_catalog
from tests.service import Service, load, running, until

pytestmark = [pytest.mark.ray, pytest.mark.model]

QUOKKA = {"title": "quokka plush toy", "brand": "Zenith", "price_cents": 1999}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog as it was before all changes."""
    return write_catalog(tmp_path_factory.mktemp("file") / "items.csv", 300)


@pytest.fixture(scope="module")
def changing(cluster: str, exported: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("changing")
    (root / "encoders").symlink_to(exported / "encoders")
    ws = Workspace.open(root)
    embed(embed_config(file), ws)
    index(IndexConfig(), ws)
    return ws


@pytest.fixture(scope="module")
def service(changing: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"gateway": {"min": 2, "max": 2}, "poll_s": 0.5}
    with running(changing, tmp_path_factory.mktemp("live") / "serve.log", settings) as started:
        yield started


def put(service: Service, *items: dict) -> int:
    told = service.ask("PUT", "/v1/items", {"items": list(items)})
    assert (told.status, told.json["accepted"]) == (200, len(items)), told
    return told.json["offset"]


def delete(service: Service, item_id: str) -> int:
    told = service.ask("DELETE", f"/v1/items/{item_id}")
    assert told.status == 200, told
    return told.json["offset"]


def by_both(service: Service, query: str, offset: int, **more: object) -> list[list[str]]:
    """What each of both replicas finds, once it knows the change of an offset."""
    found: dict[str, list[str]] = {}
    while len(found) < 2:
        answer = service.search(query, min_offset=offset, **more)
        assert answer["versions"]["log_offset"] >= offset
        found[answer["versions"]["replica"]] = [hit["item_id"] for hit in answer["hits"]]
    return list(found.values())


def test_a_change_is_found_by_every_replica_and_its_deletion_too(service: Service):
    offset = put(service, {**QUOKKA, "item_id": "quokka"})
    for mode in ("lexical", "dense", "hybrid"):
        assert [ids[0] for ids in by_both(service, "quokka plush", offset, mode=mode)] == ["quokka"] * 2
    told = service.ask("PATCH", "/v1/items/quokka", {"price_cents": 5, "attributes": {"color": "brown"}})
    asked = {"filters": {"price_cents": {"lt": 6}, "attributes.color": ["brown"]}}
    assert by_both(service, "", told.json["offset"], **asked) == [["quokka"]] * 2

    offset = delete(service, "quokka")
    assert not any("quokka" in ids for ids in by_both(service, "quokka plush", offset, page_size=300))
    assert service.ask("GET", "/v1/items/quokka").status == 404
    until(lambda: service.metric("rayrec_changes_total", state="accepted") >= 3, 10)


def test_a_compaction_that_is_killed_changes_nothing(service: Service, changing: Workspace):
    offset = put(service, *[{**QUOKKA, "item_id": f"kept {n}"} for n in range(20)])
    delete(service, "i000007")
    before = changing.current()
    job = subprocess.Popen(
        [sys.executable, "-m", "rayrec.cli", "index", "-w", changing.uri],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        # in the middle: the version is being written and has no manifest yet
        until(lambda: len(changing.names("indexes")) > len(changing.versions("indexes")), 120)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()

    assert changing.current() == before
    assert changing.versions("indexes")[-1] == before.index
    assert all({f"kept {n}" for n in range(20)} <= set(ids) for ids in by_both(service, "quokka", offset, page_size=50))
    assert service.ask("GET", "/v1/items/i000007").status == 404


def test_a_compaction_under_load_and_writes_fails_no_request_of_ten_thousand(service: Service, changing: Workspace):
    gone = delete(service, "i000008")
    stop = threading.Event()
    offsets: list[int] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            offsets.append(put(service, {**QUOKKA, "item_id": f"moving {number % 10}", "price_cents": number}))
            number += 1
            time.sleep(0.05)

    def check(number: int, answer: dict) -> str | None:
        ids = {hit["item_id"] for hit in answer["hits"]}
        if {"i000007", "i000008"} & ids:
            return f"{number}: what was deleted came back"
        return None if "kept 3" in ids or number % 2 else f"{number}: what was put is not there"

    bodies = [{"query": "quokka plush toy", "page_size": 50}, {"query": "wireless mouse", "page_size": 50}]
    writer = threading.Thread(target=write)
    by_both(service, "", gone)
    with load(service, bodies, 10_000, check) as result:
        writer.start()
        began = time.monotonic()
        built = index(IndexConfig(), changing)
        took = [time.monotonic() - began]
        took.append(
            until(lambda: service.metric("rayrec_version_replicas", part="gateway", index=built.index) == 2, 30)
        )
        changing.rollback()
        until(lambda: service.metric("rayrec_version_replicas", part="gateway", index=built.index) == 0, 30)
        changing.promote(index=built.index)
    stop.set()
    writer.join()
    print(f"compaction {took[0]:.1f} s, on both replicas after {took[1]:.1f} s more; {dict(result.statuses)}")
    assert result.statuses == {200: 10_000}
    assert (result.wrong, result.broken) == ([], [])
    assert set(result.indexes) >= {built.index}

    manifest = changing.manifest("indexes", built.index)
    assert gone <= manifest["log_offset"] < offsets[-1]
    until(lambda: service.metric("rayrec_version_replicas", part="gateway", index=built.index) == 2, 30)
    last = service.ask("GET", f"/v1/items/moving {(len(offsets) - 1) % 10}".replace(" ", "%20")).json["item"]
    assert last["price_cents"] == len(offsets) - 1
    assert all("kept 3" in ids for ids in by_both(service, "quokka", offsets[-1], page_size=50))


def test_an_older_file_brings_nothing_back(service: Service, changing: Workspace, file: Path):
    offset = put(service, {"item_id": "i000001", "title": "quokka in place of a lamp"})
    deleted = {"i000007", "i000008", "i000009"}
    offset = max(offset, delete(service, "i000009"))
    embed(embed_config(file), changing)
    built = index(IndexConfig(), changing)

    until(lambda: service.metric("rayrec_version_replicas", part="gateway", index=built.index) == 2, 30)
    for ids in by_both(service, "", offset, page_size=500):
        assert not deleted & set(ids)
        assert {"i000001", "i000002", "kept 3"} <= set(ids)
    assert service.ask("GET", "/v1/items/i000001").json["item"]["title"] == "quokka in place of a lamp"
