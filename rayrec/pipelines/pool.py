"""A pool of actors that embeds blocks of rows on Ray Data.

The pool's actors are the only tasks of the job: there is no read or write task that could wait for a CPU
which they hold (Ray Data deadlocks on two CPUs that way). Each block ends in one atomic part file, so a
killed worker costs the blocks in its hands.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray

from rayrec.config import EmbedConfig
from rayrec.schema import CONTENT_HASH

log = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]
"""(rows done, rows to do, rows per second)"""


def run_blocks(
    worker: type, column: str, values: list[str], hashes: pa.Array, config: EmbedConfig, arguments: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Embed values (texts, or uris of pictures) on a pool of actors; yield what each block did, as it is done."""
    if not placeable(config, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
        log.warning(
            "no node has the %g CPUs and %g GPUs that a worker needs: waiting until the cluster adds one",
            config.cpus_per_worker,
            config.gpus_per_worker,
        )
    blocks = []
    for start in range(0, len(values), config.block_rows):
        part = slice(start, start + config.block_rows)
        blocks.append(pa.table({column: values[part], CONTENT_HASH: hashes[part]}))
    workers = min(config.workers or default_workers(config), len(blocks))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    dataset = ray.data.from_arrow(blocks).map_batches(
        worker,
        batch_size=config.block_rows,
        batch_format="pyarrow",
        fn_constructor_kwargs=arguments,
        # a block takes seconds, so one waiting block per actor hides the hand-over and leaves no queue behind
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from table.to_pylist()


def tally(
    blocks: Iterable[dict[str, Any]], to_do: int, on_progress: Progress | None
) -> tuple[int, dict[str, int], float]:
    """(rows done, rows per worker, seconds busy) of blocks as they are done."""
    done, per_worker, first, last = 0, dict[str, int](), math.inf, 0.0
    for block in blocks:
        done += block["rows"]
        per_worker[block["worker"]] = per_worker.get(block["worker"], 0) + block["rows"]
        first, last = min(first, block["started"]), max(last, block["ended"])
        if on_progress is not None:
            on_progress(done, to_do, done / max(last - first, 1e-9))
    return done, per_worker, max(0.0, last - first)


def default_workers(config: EmbedConfig) -> int:
    """One worker per CPU of the cluster, or as many as its GPUs hold."""
    resources = ray.cluster_resources()
    if config.gpus_per_worker:
        return max(1, int(resources.get("GPU", 0) / config.gpus_per_worker))
    return max(1, int(resources.get("CPU", 1)))


def placeable(config: EmbedConfig, nodes: list[dict[str, float]]) -> bool:
    """Whether any node, given what each has in all, can hold a worker."""
    needed = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes)


def hashes_of(block: pa.Table) -> pa.Array:
    """A block's content hashes as one array."""
    hashes = block.column(CONTENT_HASH).combine_chunks()
    return pa.concat_arrays(hashes.chunks) if isinstance(hashes, pa.ChunkedArray) else hashes


def worker_name() -> str:
    return f"{os.uname().nodename}:{os.getpid()}"
