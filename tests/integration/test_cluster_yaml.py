"""cluster.yaml: Ray's own schema takes it, and its node types scale a real embed job up and down."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.cluster_utils import AutoscalingCluster

from rayrec.embedding_store import EmbeddingStore
from rayrec.workspace import Workspace
from tests.integration.conftest import write_catalog
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.model]
CLUSTER = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
RAY = str(Path(sys.executable).with_name("ray"))


class FakeNodes(AutoscalingCluster):
    """Ray's AutoscalingCluster, except that it ends only what it started.

    Its own start() and shutdown() call `ray stop --force`, which would end every cluster on the machine; and
    the wheel lacks the example.yaml that it reads.
    """

    def __init__(self, head_resources: dict[str, int], worker_types: dict[str, Any], log: Path, **config: Any):
        self.port = free_port()
        self._log = log
        super().__init__(head_resources, worker_types, **config)

    def _generate_config(
        self, head_resources: dict, worker_node_types: dict, autoscaler_v2: bool = False, **config: Any
    ):
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        empty: dict[str, list[str]] = {f"{name}_commands": [] for name in commands}
        empty["cluster_synced_files"] = []
        provider = {
            "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "gcs_address": f"127.0.0.1:{self.port}",
        }  # fmt: skip
        return {
            "cluster_name": "fake", "provider": provider, "auth": {}, "docker": {}, "file_mounts": {},
            "file_mounts_sync_continuously": False, "head_node_type": "ray.head.default",
            "available_node_types": {**worker_node_types, "ray.head.default": head}, **empty, **config,
        }  # fmt: skip

    def start(self) -> None:
        config = self._log.with_suffix(".json")
        config.write_text(json.dumps(self._config))
        command = [
            RAY, "start", "--head", "--block", f"--port={self.port}", "--node-ip-address=127.0.0.1",
            f"--num-cpus={self._head_resources['CPU']}", f"--autoscaling-config={config}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={free_port()}", "--disable-usage-stats",
        ]  # fmt: skip
        env = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "token"}
        env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
        with open(self._log, "w") as out:
            self._process = subprocess.Popen(
                command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while "--block" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, self._log.read_text()[-2000:]
            time.sleep(0.5)

    def shutdown(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(45)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def test_rays_own_validator_accepts_it():
    validate_config(prepare_config(CLUSTER))


def test_every_node_type_the_readme_names_is_there():
    types = CLUSTER["available_node_types"]
    assert set(types) == {"head", "cpu_worker", "gpu_worker"}
    assert types["gpu_worker"]["resources"]["GPU"] == 1
    assert types[CLUSTER["head_node_type"]]["max_workers"] == 0
    assert all(t["min_workers"] <= t["max_workers"] for t in types.values())


@pytest.fixture
def fake_nodes(tmp_path: Path) -> Iterator[FakeNodes]:
    types = {
        name: {
            "resources": {**described["resources"], "CPU": 2},
            "min_workers": described["min_workers"],
            "max_workers": described["max_workers"],
            "node_config": {},
        }
        for name, described in CLUSTER["available_node_types"].items()
        if name != CLUSTER["head_node_type"]
    }
    cluster = FakeNodes(
        {"CPU": 2}, types, tmp_path / "head.log", max_workers=2, upscaling_speed=1.0, idle_timeout_minutes=0.1
    )
    cluster.start()
    yield cluster
    cluster.shutdown()


WATCH = """
import json, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
while True:
    alive = [n for n in ray.nodes() if n["Alive"]]
    print(json.dumps([len(alive), sum(n["Resources"].get("CPU", 0) for n in alive)]), flush=True)
    time.sleep(1)
"""


def test_more_work_than_one_node_adds_a_node_and_idleness_removes_it(
    fake_nodes: FakeNodes, ws: Workspace, tmp_path: Path
):
    address = f"127.0.0.1:{fake_nodes.port}"
    env = {**os.environ, "RAY_AUTH_MODE": "token"}
    config = tmp_path / "embed.yaml"
    config.write_text(
        json.dumps(
            {
                "source": {"path": str(write_catalog(tmp_path / "items.csv", 2000, words=40))},
                "workers": 4,
                "cpus_per_worker": 1,
                "block_rows": 64,
            }
        )
    )
    seen = tmp_path / "nodes.log"
    with open(seen, "w") as out:
        watcher = subprocess.Popen([sys.executable, "-c", WATCH, address], stdout=out, env=env)
    try:
        command = [sys.executable, "-m", "rayrec.cli", "embed", "-w", ws.root, "-c", str(config), "--json"]
        done = subprocess.run(
            [*command, "--address", address], capture_output=True, text=True, env=env, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        summary = json.loads(done.stdout.strip().splitlines()[-1])
        assert summary["embedded"] == 2000
        assert len(EmbeddingStore(ws, summary["encoder_id"]).present()) == 2000
        assert max(nodes for nodes, _ in counts(seen)) >= 2
        deadline = time.monotonic() + 120
        while counts(seen)[-1][0] > 1:
            assert time.monotonic() < deadline, seen.read_text()[-500:]
            time.sleep(1)
    finally:
        watcher.kill()
        watcher.wait()
    print("embed job:", done.stdout.strip(), "nodes over time:", [nodes for nodes, _ in counts(seen)])


def counts(path: Path) -> list[list[float]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]
