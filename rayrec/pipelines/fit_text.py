"""Fitting the text encoder, on Ray Train."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ray.train

from rayrec import encoder_exports
from rayrec.config import FitTextConfig
from rayrec.embedding_store import EmbeddingStore
from rayrec.errors import SchemaError
from rayrec.pipelines.event_log import read_events
from rayrec.pipelines.fit import FitSummary, Progress, fit, item_embeddings, newest_catalog, publish, train_here
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace


def fit_text(
    config: FitTextConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> FitSummary:
    """Fit the text encoder to the newest catalog and events. Raises NotFound without embeddings of the encoder."""
    if config.encoder.model in (encoder_exports.FITTED, "e5"):
        raise SchemaError(f"encoder.model: {config.encoder.model} cannot be fitted; name a transformers directory")
    catalog = newest_catalog(ws)
    arguments = {"catalog": catalog, "events": ws.latest("events"), "embeddings": item_embeddings(ws, config.encoder)}
    return fit("text", _fit_text_worker, config, arguments, ws, address, on_progress)


def _fit_text_worker(arguments: dict[str, Any]) -> None:
    from rayrec.fitting.text import TextTask
    from rayrec.fitting.training import judge

    config: FitTextConfig = arguments["config"]
    ws = Workspace.open(arguments["ws_uri"], create=False)
    items = ws.read_parquet("catalog", arguments["catalog"])
    events = None if arguments["events"] is None else read_events(ws, arguments["events"])
    vectors = EmbeddingStore(ws, arguments["embeddings"]).lookup(items.column(CONTENT_HASH).combine_chunks())
    rank = ray.train.get_context().get_world_rank()
    task = TextTask(config, items, vectors, events, rank=rank)
    judge(task)
    before = task.ndcg
    progress = train_here(task, arguments, config.training)
    task.soften()
    judge(task)

    def write(local: Path) -> dict[str, Any]:
        merged = task.save(local)
        return {"model": merged.name, "base": config.encoder.model if config.side == "query" else None}

    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    name = f"{encoder_exports.FITTED}-{now}"
    publish(ws, name, progress, before, task.ndcg, "ndcg@10 of held-out queries", write, arguments)
