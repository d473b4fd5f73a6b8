"""The embed job on a real cluster: each content once, resume after kills, every core busy."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.onnx import OnnxTextEncoder
from rayrec.pipelines.embed import embed
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace
from tests.integration.conftest import embed_config, write_catalog

pytestmark = [pytest.mark.ray, pytest.mark.model]


def vectors_of(ws: Workspace, encoder_id: str) -> dict[bytes, np.ndarray]:
    catalog = ws.read_parquet("catalog", str(ws.latest("catalog")))
    hashes = catalog.column(CONTENT_HASH).combine_chunks()
    found = EmbeddingStore(ws, encoder_id).lookup(hashes)
    return dict(zip(hashes.to_pylist(), found, strict=True))


def rows_at_rest(ws: Workspace, encoder_id: str) -> int:
    return ws.read_parquet("embeddings", encoder_id, columns=[CONTENT_HASH]).num_rows


def test_equal_texts_are_embedded_once_and_a_second_run_embeds_nothing(cluster: str, ws: Workspace, tmp_path: Path):
    rows = ["item_id,title,price_cents", "a,Blue lamp,100", "b,Blue lamp,200", "c,Red lamp,300", "d,,400"]
    source = tmp_path / "items.csv"
    source.write_text("\n".join(rows))
    first = embed(embed_config(source), ws)
    assert (first.items, first.embedded, first.reused, first.quarantined) == (3, 2, 0, 1)
    again = embed(embed_config(source), ws)
    assert (again.embedded, again.reused, again.catalog) == (0, 2, first.catalog)
    source.write_text("\n".join(rows).replace("Red lamp", "Green lamp").replace("b,Blue lamp,200", "b,Blue lamp,999"))
    changed = embed(embed_config(source), ws)
    assert (changed.embedded, changed.reused) == (1, 1)
    counts = ws.manifest("catalog", changed.catalog)["counts"]
    assert (counts["changed"], counts["content_changed"]) == (2, 1)


def test_vectors_equal_those_of_the_encoder_alone(cluster: str, ws: Workspace, exported: Path, tmp_path: Path):
    summary = embed(embed_config(write_catalog(tmp_path / "items.csv", 40), block_rows=16), ws)
    shared = Workspace.open(exported)
    alone = OnnxTextEncoder(shared.local_copy("encoders", str(shared.latest("encoders"))))
    catalog = ws.read_parquet("catalog", summary.catalog)
    title = catalog.column("title")[7].as_py()
    brand = catalog.column("brand")[7].as_py()
    expected = alone.encode([f"{title}. {brand}"])[0]
    np.testing.assert_allclose(
        vectors_of(ws, summary.encoder_id)[catalog.column(CONTENT_HASH)[7].as_py()], expected, atol=1e-5
    )


def test_every_core_works_on_two_cpus(cluster: str, ws: Workspace, tmp_path: Path):
    summary = embed(embed_config(write_catalog(tmp_path / "items.csv", 1200), block_rows=64), ws)
    assert summary.embedded == 1200
    assert len(summary.workers) == 2
    assert min(summary.workers.values()) >= 0.25 * 1200


def test_a_killed_worker_costs_at_most_its_blocks(cluster: str, ws: Workspace, tmp_path: Path):
    killed: list[int] = []
    parts: list[int] = []

    def kill_once(done: int, total: int, rate: float) -> None:
        if killed or done < 256:
            return
        parts.append(rows_at_rest(ws, ws.names("embeddings")[0]))
        victim = next(pid for pid in embed_workers() if pid not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    source = write_catalog(tmp_path / "items.csv", 1500, words=30)
    summary = embed(embed_config(source, block_rows=64), ws, on_progress=kill_once)
    assert killed
    assert parts[0] < 1500, "the kill must come before the end"
    assert summary.embedded == 1500
    assert len(vectors_of(ws, summary.encoder_id)) == 1500
    # a block may be at rest twice: written, and killed before it could say so
    assert rows_at_rest(ws, summary.encoder_id) <= 1500 + 64


def embed_workers() -> list[int]:
    """Process ids of the pool's actors, which Ray names after what they run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith("ray::") and "EmbedWorker" in title:
                found.append(int(entry.name))
    return found


def test_a_killed_driver_resumes_where_it_was(cluster: str, ws: Workspace, exported: Path, tmp_path: Path):
    source = write_catalog(tmp_path / "items.csv", 1500, words=30)
    config = tmp_path / "embed.yaml"
    config.write_text(json.dumps({"source": {"path": str(source)}, "block_rows": 64}))
    command = [sys.executable, "-m", "rayrec.cli", "embed", "-w", ws.root, "-c", str(config), "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len([n for i in ws.names("embeddings") for n in ws.names("embeddings", i)]) < 4:
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    encoder_id = ws.names("embeddings")[0]
    settled = -1
    while settled != (now := rows_at_rest(ws, encoder_id)):  # orphaned workers may finish the block in hand
        settled = now
        time.sleep(3)
    present = len(EmbeddingStore(ws, encoder_id).present())
    assert 0 < present < 1500
    summary = embed(embed_config(source, block_rows=64), ws)
    assert (summary.embedded, summary.reused) == (1500 - present, present)
    untouched = Workspace.open(tmp_path / "untouched")
    os.symlink(exported / "encoders", f"{untouched.root}/encoders")
    whole = embed(embed_config(source, block_rows=64), untouched)
    expected, found = vectors_of(untouched, whole.encoder_id), vectors_of(ws, summary.encoder_id)
    assert expected.keys() == found.keys()
    assert max(float(np.abs(expected[key] - found[key]).max()) for key in expected) < 1e-5


def test_gpu_workers_run_torch_in_bf16_and_share_the_space(cluster: str, ws: Workspace, tmp_path: Path):
    source = write_catalog(tmp_path / "items.csv", 30)
    on_cpu = embed(embed_config(source), ws)
    on_gpu = embed(embed_config(source, gpus_per_worker=1), ws)
    assert on_gpu.encoder_id == on_cpu.encoder_id.replace("onnx-fp32", "torch-bf16")
    assert len(on_gpu.workers) == 1
    one, other = vectors_of(ws, on_cpu.encoder_id), vectors_of(ws, on_gpu.encoder_id)
    assert min(float(one[key] @ other[key]) for key in one) > 0.99


def test_bad_rows_are_set_aside_and_told(cluster: str, ws: Workspace, tmp_path: Path):
    source = tmp_path / "items.csv"
    source.write_bytes(
        b"item_id,title,price_cents\na,Lamp,nan\nb,\xff\xfe,1\nc,Chair,5\nc,Chair again,6\n,Desk,7\ne,Bed,8\n"
    )
    summary = embed(embed_config(source), ws)
    assert (summary.items, summary.quarantined) == (2, 4)
    aside = ws.read_parquet("quarantine", f"{summary.catalog}.parquet").to_pylist()
    assert [(r["row"], r["column"]) for r in aside] == [
        (0, "price_cents"),
        (1, "title"),
        (4, "item_id"),
        (3, "item_id"),
    ]
