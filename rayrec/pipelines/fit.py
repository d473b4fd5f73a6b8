"""Fitting encoders on Ray Train: the shop's data in, a bundle under encoders/ out, promoted only if it is better.

A run is named by its config and data, and checkpoints into the workspace at each evaluation: a worker that
dies is started again from there by Ray, and a job that died continues when it is started again. A bundle is
always published, with what it scored; `promoted` says whether `fitted` may stand for it.
"""

import hashlib
import json
import os
import queue
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.queue import Queue

from rayrec import encoder_exports
from rayrec.config import FitImagesConfig, FitTextConfig, TrainConfig, TrainingConfig, TrimConfig, UpdateConfig
from rayrec.errors import NotFound
from rayrec.evaluation.fidelity import Fidelity
from rayrec.evaluation.metrics import bootstrap_ci
from rayrec.pipelines.cluster import connected
from rayrec.pipelines.index import find_embeddings
from rayrec.workspace import Workspace

Progress = Callable[[dict[str, Any]], None]
"""Told after each evaluation: step, steps, loss, score, best."""

MAX_FAILURES = 3
WORKER_ENV = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait by spinning take the core from whom they wait for
    # a third of a step's time went into handing memory back to the system and taking it again
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


@dataclass(frozen=True)
class FitSummary:
    """version: under encoders/. before, after: the score on held-out data, with the gain's 95 % interval.

    fidelity: of a student, to the encoder it stands for.
    """

    version: str
    promoted: bool
    score: str
    before: float
    after: float
    gain_ci95: tuple[float, float]
    steps: int
    seconds: float
    fidelity: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def newest_catalog(ws: Workspace) -> str:
    catalog = ws.latest("catalog")
    if catalog is None:
        raise NotFound(f"no catalog in {ws.uri} yet; run 'rayrec embed' first")
    return catalog


def item_embeddings(ws: Workspace, encoder: Any) -> str:
    """The encoder id whose vectors the items have."""
    return find_embeddings(encoder_exports.encoder_id(encoder).space, ws, newest_catalog(ws))


def fit(
    kind: str,
    worker: Callable[[dict[str, Any]], None],
    config: FitTextConfig | FitImagesConfig | TrimConfig,
    arguments: dict[str, Any],
    ws: Workspace,
    address: str | None,
    on_progress: Progress | None,
) -> FitSummary:
    """Fit an encoder; `worker` publishes it."""
    return FitSummary(**run(f"fit-{kind}", worker, config, arguments, ws, address, on_progress))


def run(
    kind: str,
    worker: Callable[[dict[str, Any]], None],
    config: FitTextConfig | FitImagesConfig | TrimConfig | TrainConfig | UpdateConfig,
    arguments: dict[str, Any],
    ws: Workspace,
    address: str | None,
    on_progress: Progress | None,
    datasets: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Run `worker` on Ray Train until it tells what it published; that, and the seconds it took.

    arguments: what the run is of, beside the config; they name it. datasets: of Ray Data, each whole for each worker.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
    what = json.dumps([kind, config.model_dump(mode="json"), arguments], sort_keys=True)
    name = f"{kind}-{hashlib.blake2b(what.encode(), digest_size=6).hexdigest()}"
    started = time.perf_counter()
    with connected(address):
        told = Queue(actor_options={"num_cpus": 0})
        # one worker has nobody to talk to, and torch's store would listen on all interfaces for it
        trainer_of = DataParallelTrainer if config.workers == 1 else ray.train.torch.TorchTrainer
        trainer = trainer_of(
            worker,
            train_loop_config={**arguments, "config": config, "ws_uri": ws.uri, "told": told, "bundle": name},
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.workers,
                use_gpu=bool(config.gpus_per_worker),
                resources_per_worker={
                    "CPU": config.cpus_per_worker,
                    **({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
                },
            ),
            datasets=datasets(),
            dataset_config=ray.train.DataConfig(datasets_to_split=[]),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=ws.path("runs"),
                storage_filesystem=ws.fs,
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                worker_runtime_env={"env_vars": WORKER_ENV},
            ),
        )
        summary: dict[str, Any] = {}
        with ThreadPoolExecutor(1) as aside:
            fitting = aside.submit(trainer.fit)
            while not fitting.done() or not told.empty():
                try:
                    message = told.get(timeout=0.5)
                except queue.Empty:
                    continue
                if "step" not in message:
                    summary = message
                elif on_progress is not None:
                    on_progress(message)
            fitting.result()
        told.shutdown(force=True)
    ws.fs.delete_dir(ws.path("runs", name))
    return {**summary, "seconds": round(time.perf_counter() - started, 1)}


class Team:
    """The workers of a Ray Train run, over torch.distributed."""

    def average(self, gradients: Sequence[Any]) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            for gradient in gradients:
                dist.all_reduce(gradient)
                gradient.div_(dist.get_world_size())

    def agree(self, score: float) -> float:
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            return score
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shared = torch.tensor([score], dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return float(shared)


def train_here(
    task: Any,
    arguments: dict[str, Any],
    training: TrainingConfig,
    log: Callable[[int, dict[str, float]], None] | None = None,
) -> Any:
    """Run the loop in a Ray Train worker: resume, checkpoint, report. log: told the figures of each evaluation."""
    import torch

    from rayrec.fitting.training import train

    context = ray.train.get_context()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    resume = None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as directory:
            resume = torch.load(Path(directory) / "state.pt", weights_only=True)

    def report(progress: Any, state: dict[str, Any]) -> None:
        step, score = progress.scores[-1]
        told = {"step": step, "steps": progress.steps, "loss": progress.loss, "score": score, "best": progress.best[1]}
        if context.get_world_rank() == 0:
            with tempfile.TemporaryDirectory() as local:
                torch.save(state, Path(local) / "state.pt")
                ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(local))
            arguments["told"].put(told)
            if log is not None:
                log(step, {"loss": progress.loss, "score": score})
        else:
            ray.train.report(told)

    return train(task, training, report=report, resume=resume, team=Team())


def publish(
    ws: Workspace,
    name: str,
    progress: Any,
    before: np.ndarray,
    after: np.ndarray,
    score: str,
    write: Callable[[Path], dict[str, Any]],
    arguments: dict[str, Any],
    fidelity: Fidelity | None = None,
) -> None:
    """Judge, publish and tell the driver, on the first worker.

    Promoted is what is better on held-out data, clear of zero; a student, what is faithful.
    """
    if ray.train.get_context().get_world_rank() != 0:
        return
    low, high = bootstrap_ci(after.astype(float) - before.astype(float))
    summary = {
        "promoted": low > 0 if fidelity is None else fidelity.faithful(),
        "score": score,
        "before": round(float(before.mean()), 4),
        "after": round(float(after.mean()), 4),
        "gain_ci95": (round(low, 4), round(high, 4)),
        "steps": progress.best[0],
        "fidelity": None if fidelity is None else fidelity.to_dict(),
    }
    with tempfile.TemporaryDirectory(prefix="rayrec-fit-") as local, ws.stage("encoders", name=name) as staged:
        said = write(Path(local))
        staged.upload(Path(local), "")
        version = staged.publish({**said, **summary, "config": arguments["config"].model_dump(mode="json")})
    arguments["told"].put({"version": version, **summary})
