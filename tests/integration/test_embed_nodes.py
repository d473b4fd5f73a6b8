"""The embed job on a cluster of nodes: its workers are where the GPUs are, and a node that dies takes no vector."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.embedding_store import EmbeddingStore
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace
from tests.fakes import make_tiny_model
from tests.integration.conftest import write_catalog

pytestmark = pytest.mark.ray

ROWS, BLOCK = 3_000, 32
IN_FLIGHT = 2  # blocks that a worker of the pool has at a time


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """What `gpu_nodes` told, and its undisturbed workspace."""
    root = tmp_path_factory.mktemp("nodes")
    config = {
        "source": {"path": str(write_catalog(root / "items.csv", ROWS, words=40))},
        "encoder": {"model": str(make_tiny_model(root / "tiny", "bert"))},
        "gpus_per_worker": 1,
        "block_rows": BLOCK,
    }
    (root / "embed.yaml").write_text(json.dumps(config))
    short = tempfile.mkdtemp(prefix="rn", dir="/tmp")  # Ray's sockets are below it, and have 107 characters
    command = [sys.executable, "-m", "tests.integration.gpu_nodes", str(root / "embed.yaml"), str(root / "ws")]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"RAY_TMPDIR": short, "RAY_agent_register_timeout_ms": "100000"}  # three nodes start slowly on few cores
    with open(root / "out.log", "w") as out, open(root / "err.log", "w") as err:
        run = subprocess.Popen(command, env=env, stdout=out, stderr=err, start_new_session=True)
    try:
        assert run.wait(480) == 0, (root / "err.log").read_text()[-3000:]
        yield json.loads((root / "out.log").read_text().splitlines()[-1]), root / "ws"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        shutil.rmtree(short, ignore_errors=True)


@dataclass
class Vectors:
    """What is at rest in a workspace: the parts' keys, and the vectors of the catalog's contents."""

    parts: dict[str, list[bytes]]
    present: set[bytes]
    catalog: pa.Array
    vectors: np.ndarray

    @classmethod
    def of(cls, root: Path, id: str) -> "Vectors":
        ws = Workspace.open(root)
        hashes = ws.read_parquet("catalog", str(ws.latest("catalog"))).column(CONTENT_HASH).combine_chunks()
        store = EmbeddingStore(ws, id)
        parts = {
            name: ws.read_parquet("embeddings", id, name).column(CONTENT_HASH).to_pylist()
            for name in ws.names("embeddings", id)
        }
        return cls(parts, set(store.present().to_pylist()), hashes, store.lookup(hashes))

    @property
    def rows(self) -> int:
        return sum(map(len, self.parts.values()))


def pids(summary: dict[str, Any]) -> set[int]:
    return {int(name.rpartition(":")[2]) for name in summary["workers"]}


def test_every_block_is_embedded_where_a_gpu_is(ran: tuple[dict[str, Any], Path]):
    told, root = ran
    whole = told["whole"]
    assert whole["encoder_id"].endswith(".torch-bf16")
    assert (whole["embedded"], sum(whole["workers"].values())) == (ROWS, ROWS)
    first, second = (set(node) for node in told["nodes"])
    assert len(pids(whole) & first) == 1
    assert len(pids(whole) & second) == 1
    assert pids(whole) <= first | second
    assert Vectors.of(root, whole["encoder_id"]).rows == ROWS


def test_a_killed_node_costs_the_blocks_in_its_hands(ran: tuple[dict[str, Any], Path]):
    told, root = ran
    killed = told["killed"]
    whole, after = (Vectors.of(Path(f"{root}{end}"), killed["encoder_id"]) for end in ("", "-killed"))
    assert told["victim"]
    assert ROWS // 5 <= BLOCK * len(told["parts"]) < ROWS, "the kill must come in the middle"
    assert killed["embedded"] == ROWS
    assert after.present == set(after.catalog.to_pylist())
    assert len(after.present) == ROWS
    assert after.rows - ROWS <= IN_FLIGHT * BLOCK
    written = [key for name in told["parts"] for key in after.parts[name]]
    later = {key for name in after.parts.keys() - set(told["parts"]) for key in after.parts[name]}
    assert len(written) == len(set(written))
    assert len(later & set(written)) <= IN_FLIGHT * BLOCK
    assert after.catalog.equals(whole.catalog)
    np.testing.assert_allclose(after.vectors, whole.vectors, atol=1e-6)
