"""What was changed in a running shop becomes the catalog, and no older file undoes it."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec import encoder_exports
from rayrec.config import SourceConfig
from rayrec.data.catalog import content_hash, item_text
from rayrec.data.conform import Quarantine
from rayrec.embedding_store import EmbeddingStore
from rayrec.errors import NotFound
from rayrec.item_vectors import packed
from rayrec.pipelines import catalog_log
from rayrec.pipelines.embed import publish_catalog
from rayrec.schema import CONTENT_HASH, ITEMS
from rayrec.store import CatalogLog, Wanted, open_catalog_log
from rayrec.workspace import Staged, Workspace
from tests.fakes import FakeEncoder, make_items

SOURCE = SourceConfig(path="items")
FILE = [{"item_id": name, "title": f"title of {name}", "price_cents": 100} for name in "abcd"]
ENCODER = {"space": "fake", "id": "fake.numpy", "query_id": "fake.numpy", "export": "none"}


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def log(ws: Workspace):
    opened = open_catalog_log(f"sqlite:///{ws.path('store', 'live.db')}")
    yield opened
    opened.close()


def imported(ws: Workspace, records: list[dict[str, Any]] = FILE) -> str:
    return publish_catalog(make_items(records), Quarantine(), SOURCE, ws)


def put(log: CatalogLog, item_id: str, ts_us: int, title: str = "changed", **more: Any) -> int | None:
    item = {"item_id": item_id, "title": title, **more}
    full = {**dict.fromkeys(ITEMS.names), **item}
    return log.change([Wanted(item_id, item, content_hash(item_text(full)).hex(), ts_us)], {})[0]


def delete(log: CatalogLog, item_id: str, ts_us: int) -> int | None:
    return log.change([Wanted(item_id, None, None, ts_us)], {})[0]


def titles(ws: Workspace) -> dict[str, str]:
    items = ws.read_parquet("catalog", ws.latest("catalog") or "")
    assert items.column("item_id").to_pylist() == sorted(items.column("item_id").to_pylist())
    hashes = [content_hash(item_text(record)) for record in items.to_pylist()]
    assert items.column(CONTENT_HASH).to_pylist() == hashes
    return dict(zip(items.column("item_id").to_pylist(), items.column("title").to_pylist(), strict=True))


BASE = {name: f"title of {name}" for name in "abcd"}


def test_changes_become_a_version_of_their_own_and_say_how_far_they_go(ws: Workspace, log: CatalogLog) -> None:
    first = imported(ws)
    put(log, "b", 10, attributes={"color": "red"}, category=["Mugs"])
    put(log, "x", 11, "new")
    delete(log, "c", 12)
    put(log, "x", 13, "newer")

    version = catalog_log.compact(ws, None)

    assert version != first
    assert titles(ws) == {"a": BASE["a"], "b": "changed", "d": BASE["d"], "x": "newer"}
    manifest = ws.manifest("catalog", version)
    assert (manifest["log_offset"], manifest["counts"]["items"], manifest["counts"]["changes"]) == (4, 4, 4)
    ws.verify("catalog", version)
    assert catalog_log.compact(ws, None) == version
    delete(log, "x", 14)
    assert ws.manifest("catalog", catalog_log.compact(ws, None))["log_offset"] == 5
    assert "x" not in titles(ws)


def test_an_import_and_a_compaction_wait_for_each_other(ws: Workspace, log: CatalogLog) -> None:
    """Else the later of two that read the same version would leave out what the other brought."""
    imported(ws)
    put(log, "b", 10)
    with ThreadPoolExecutor(2) as threads:
        with ws.lock(catalog_log.CATALOG_LOCK):
            both = [
                threads.submit(imported, ws, [*FILE, {"item_id": "e", "title": "new"}]),
                threads.submit(catalog_log.compact, ws, None),
            ]
            time.sleep(0.3)
            assert not any(each.done() for each in both)
        for each in both:
            each.result(20)
    assert titles(ws) == {**BASE, "b": "changed", "e": "new"}


def test_without_a_log_or_a_catalog(ws: Workspace) -> None:
    with pytest.raises(NotFound, match="run 'rayrec embed' first"):
        catalog_log.compact(ws, None)
    version = imported(ws)
    assert catalog_log.compact(ws, None) == version == imported(ws)


@pytest.mark.parametrize("compacted", [False, True])
def test_an_older_file_undoes_nothing(ws: Workspace, log: CatalogLog, compacted: bool, caplog: Any) -> None:
    imported(ws)
    put(log, "b", 10)
    put(log, "x", 11, "new")
    delete(log, "c", 12)
    if compacted:
        catalog_log.compact(ws, None)

    version = imported(ws, [*FILE, {"item_id": "e", "title": "only in the file"}])

    assert titles(ws) == {"a": BASE["a"], "b": "changed", "d": BASE["d"], "e": "only in the file", "x": "new"}
    counts = ws.manifest("catalog", version)["counts"]
    assert (counts["kept"], counts["barred"]) == (2, 1)
    assert "2 items stay as the running shop changed them, 1 that it deleted stay away" in caplog.text
    assert ws.manifest("catalog", version)["log_offset"] == 3
    for _ in range(2):  # for good
        imported(ws, [{**record, "updated_us": 9} for record in FILE])
        assert titles(ws) == {"a": BASE["a"], "b": "changed", "d": BASE["d"], "x": "new"}


def test_a_row_that_is_newer_replaces_and_revives(ws: Workspace, log: CatalogLog) -> None:
    imported(ws)
    put(log, "b", 10)
    delete(log, "c", 10)
    put(log, "a", 10)
    imported(ws, [{**r, "updated_us": 11 if r["item_id"] in "bc" else 10} for r in FILE])
    assert titles(ws) == {**BASE, "a": "changed"}
    delete(log, "c", 12)  # and what the shop does after that counts again
    imported(ws, [{**r, "updated_us": 11} for r in FILE])
    assert titles(ws) == {name: BASE[name] for name in "abd"}


def test_a_version_half_written_counts_for_nothing(ws: Workspace, log: CatalogLog, monkeypatch: Any) -> None:
    first = imported(ws)
    put(log, "b", 10)

    def killed(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Staged, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            catalog_log.compact(ws, None)
    assert ws.latest("catalog") == first
    catalog_log.compact(ws, None)
    assert titles(ws)["b"] == "changed"


def test_vectors_come_from_the_log_and_are_made_where_they_lack(
    ws: Workspace, log: CatalogLog, monkeypatch: Any
) -> None:
    made: list[str] = []

    class Counted(FakeEncoder):
        def encode(self, texts: Any, role: Any = "passage") -> np.ndarray:
            made.extend(texts)
            return super().encode(texts, role)

    monkeypatch.setattr(encoder_exports, "open_items", lambda ws, encoder, **_: Counted())
    imported(ws)
    put(log, "x", 11, "with a vector")
    put(log, "y", 11, "without one")
    content = content_hash(b"with a vector".decode()).hex()
    log.change([], packed("fake", {content: FakeEncoder().encode(["with a vector"])[0]}))
    version = catalog_log.compact(ws, None)

    assert catalog_log.embed_changes(ws, None, version, ENCODER) == 2
    assert made == ["without one"]
    items = ws.read_parquet("catalog", version)
    vectors, there = EmbeddingStore(ws, "fake.numpy").find(items.column(CONTENT_HASH).combine_chunks())
    assert there.tolist() == [False] * 4 + [True, True]  # what a file brought is the embed job's
    np.testing.assert_allclose(vectors[4:], FakeEncoder().encode(["with a vector", "without one"]), atol=1e-6)
    assert catalog_log.embed_changes(ws, None, version, ENCODER) == 0
