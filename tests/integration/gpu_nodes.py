"""The embed job on three Ray nodes of this machine: a head, and two with a logical GPU, of which one is killed.

A process of its own, since Ray's Cluster wants to be the only one: `python -m tests.integration.gpu_nodes CONFIG
WORKSPACE` embeds, then embeds once more into WORKSPACE-killed. The last line is a Told as JSON.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from rayrec.config import EmbedConfig
from rayrec.pipelines.embed import embed
from rayrec.workspace import Workspace

DETECT = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@dataclass
class Told:
    """whole, killed: summaries; nodes: the pids that embedded on each GPU node, by then; parts: written before the
    kill; victim: pids of the node that was killed."""

    whole: dict
    killed: dict
    nodes: list[list[int]]
    parts: list[str]
    victim: list[int]


def embedding(node: Node) -> list[psutil.Process]:
    """A node's actors of the pool."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if "EmbedWorker" in " ".join(child.cmdline())]


def main() -> None:
    config, root = EmbedConfig.load(sys.argv[1]), sys.argv[2]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": DETECT},
    )
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    seen: list[set[int]] = [set(), set()]
    victim: list[psutil.Process] = []
    parts: list[str] = []
    rest = Workspace.open(f"{root}-killed")

    def watch(done: int, total: int, rate: float) -> None:
        for node, pids in zip(nodes, seen, strict=True):
            pids.update(process.pid for process in embedding(node))

    def kill_once(done: int, total: int, rate: float) -> None:
        if victim or done < total // 5:
            return
        watch(done, total, rate)
        victim.extend(embedding(nodes[1]))
        id = rest.names("embeddings")[0]
        parts.extend(rest.names("embeddings", id))
        cluster.remove_node(nodes[1], allow_graceful=False)
        for process in victim:  # as a machine that loses power
            if process.is_running():
                process.kill()

    try:
        whole = embed(config, Workspace.open(root), address=cluster.address, on_progress=watch)
        if not rest.exists("encoders"):
            os.symlink(Path(root) / "encoders", rest.path("encoders"))
        killed = embed(config, rest, address=cluster.address, on_progress=kill_once)
    finally:
        cluster.shutdown()
    pids = [process.pid for process in victim]
    print(json.dumps(asdict(Told(whole.to_dict(), killed.to_dict(), [sorted(s) for s in seen], parts, pids))))


if __name__ == "__main__":
    main()
