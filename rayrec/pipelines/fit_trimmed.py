"""Trimming the text encoder's layers for queries, on Ray Train; published in int8, and only if it is faithful."""

import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ray.train

from rayrec import encoder_exports
from rayrec.config import TrimConfig
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.errors import SchemaError
from rayrec.evaluation.fidelity import fidelity, top10_shares
from rayrec.pipelines.event_log import read_events
from rayrec.pipelines.fit import FitSummary, Progress, fit, item_embeddings, newest_catalog, publish, train_here
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace


def fit_trimmed(
    config: TrimConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> FitSummary:
    """Teach a student with fewer layers on the newest catalog's and events' words."""
    items_by, teacher = encoder_exports.resolve(ws, config.encoder)
    if teacher.model == "e5":
        raise SchemaError("encoder.model: e5 has an engine of its own and cannot be trimmed; name a directory")
    arguments = {
        "catalog": newest_catalog(ws),
        "events": ws.latest("events"),
        "embeddings": item_embeddings(ws, items_by),
        "base": items_by.model,
    }
    return fit("trimmed", _worker, config, arguments, ws, address, on_progress)


def _worker(arguments: dict[str, Any]) -> None:
    from rayrec.encoders.onnx import OnnxTextEncoder, write_export
    from rayrec.encoders.text import TextModel, load_torch
    from rayrec.fitting.training import judge
    from rayrec.fitting.trimming import TrimTask

    config: TrimConfig = arguments["config"]
    ws = Workspace.open(arguments["ws_uri"], create=False)
    _, teacher = encoder_exports.resolve(ws, config.encoder)  # to a directory of this node
    items = ws.read_parquet("catalog", arguments["catalog"])
    events = None if arguments["events"] is None else read_events(ws, arguments["events"])
    vectors = EmbeddingStore(ws, arguments["embeddings"]).lookup(items.column(CONTENT_HASH).combine_chunks())
    space = EncoderId.parse(arguments["embeddings"]).space
    rank = ray.train.get_context().get_world_rank()
    task = TrimTask(config.model_copy(update={"encoder": teacher}), space, items, events, rank=rank)
    before = top10_shares(task.wanted(), task.vectors(), vectors)
    progress = train_here(task, arguments, config.training)
    judge(task)
    with tempfile.TemporaryDirectory(prefix="rayrec-trim-") as local:
        model = TextModel.of(teacher.model_copy(update={"model": str(task.save(Path(local)))}))
        write_export(model, load_torch(model), "int8", Path(local) / "export")
        small = OnnxTextEncoder(Path(local) / "export").encode(task.judges, "query")
    report = fidelity(task.wanted(), small, vectors, task.answers())

    def write(directory: Path) -> dict[str, Any]:
        return {"model": task.save(directory).name, "base": arguments["base"]}

    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    name = f"{encoder_exports.FITTED}-{now}"
    after = top10_shares(task.wanted(), small, vectors)
    score = "top-10 overlap of held-out queries with the whole encoder, in int8"
    publish(ws, name, progress, before, after, score, write, arguments, report)
