"""One switch for where the figures of a run go: TensorBoard, MLflow, Weights & Biases, or nowhere.

Without a server named in the environment (MLFLOW_TRACKING_URI, WANDB_MODE=online), they are files of the workspace.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from rayrec.config import TrainConfig
from rayrec.errors import SchemaError
from rayrec.workspace import Workspace

Log = Callable[[int, dict[str, float]], None]
"""(step, figures by name)"""
FOLDER = "tracking"
_EXTRA = "install it with: pip install 'rayrec[tracking]'"


@contextlib.contextmanager
def tracked(config: TrainConfig, ws: Workspace, run: str, *, first: bool = True) -> Iterator[Log]:
    """A log for the block, by `config.tracker`; of the first worker alone. Raises SchemaError without its package."""
    if config.tracker == "none" or not first:
        yield lambda step, figures: None
        return
    if not ws.is_local:
        raise SchemaError(f"tracker: {config.tracker} writes files, and {ws.uri} is not a directory; set it to none")
    folder = ws.path(FOLDER, config.tracker)
    os.makedirs(folder, exist_ok=True)
    opened = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}[config.tracker]
    try:
        log, close = opened(folder, run, config.model_dump(mode="json"))
    except ImportError as error:
        raise SchemaError(f"tracker: {config.tracker} is not installed ({error}); {_EXTRA}") from error
    try:
        yield log
    finally:
        close()


def _tensorboard(folder: str, run: str, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    import json

    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(f"{folder}/{run}")
    writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _mlflow(folder: str, run: str, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("rayrec")
    active = mlflow.start_run(run_name=run)
    mlflow.log_params(_flat(config))

    def log(step: int, figures: dict[str, float]) -> None:
        named = {name.replace("@", "_at_"): value for name, value in figures.items()}  # it refuses an @
        mlflow.log_metrics(named, step=step, run_id=active.info.run_id)

    return log, mlflow.end_run


def _wandb(folder: str, run: str, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    active = wandb.init(project="rayrec", name=run, config=config, dir=folder)

    def log(step: int, figures: dict[str, float]) -> None:
        active.log(figures, step=step)

    return log, active.finish


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
