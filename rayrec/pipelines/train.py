"""Training the fusion model on Ray Train: shoppers' events in, a bundle under models/ out, promoted by the gate.

A run is named by its config and data and checkpoints each epoch, as fitting does: a worker that dies is started
again from there. A bundle is always published, with what it scored; it answers only if it beats what is counted
(popularity, bought together, bought before), and the model that answers now, on events it never saw.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train

from rayrec import encoder_exports
from rayrec.config import TrainConfig
from rayrec.data.events import dedupe
from rayrec.data.held_out import FILE as HELD_OUT
from rayrec.data.held_out import HeldOut
from rayrec.data.histories import Histories
from rayrec.encoders.base import EncoderId
from rayrec.engine import fusion_weights
from rayrec.evaluation.report import document, gate, page
from rayrec.models import bundle
from rayrec.models.features import FeatureSchema
from rayrec.pipelines.event_log import newest_events
from rayrec.pipelines.fit import Progress, item_embeddings, newest_catalog, run, train_here
from rayrec.pipelines.index import find_pictures
from rayrec.pipelines.recommending import (
    Shop,
    choose_weight,
    compare,
    event_ids,
    item_ids,
    split,
    unseen,
)
from rayrec.pipelines.tracking import tracked
from rayrec.schema import EVENTS, validate
from rayrec.workspace import Workspace

NEW = "new model"


@dataclass(frozen=True)
class TrainSummary:
    """model: a version under models/. verdict: of the gate; weight: of the model beside what is counted."""

    model: str
    promoted: bool
    verdict: dict[str, Any]
    weight: float
    figures: dict[str, float]
    epochs: int
    seconds: float
    generation: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(
    config: TrainConfig, ws: Workspace, *, address: str | None = None, on_progress: Progress | None = None
) -> TrainSummary:
    """Train on the newest catalog and events; promote what passes the gate, beside the index that answers."""
    events = newest_events(ws)
    items_by, _ = encoder_exports.resolve(ws, config.encoder)
    embeddings = item_embeddings(ws, items_by)
    space = EncoderId.parse(embeddings).space
    images = None if config.images is None else find_pictures(config.images, ws, space)
    pointer = ws.current()
    arguments = {
        "catalog": newest_catalog(ws),
        "events": events,
        "embeddings": embeddings,
        "images": images,
        "present": pointer.model,
    }

    told = run("train", _worker, config, arguments, ws, address, on_progress, lambda: datasets_of(ws, events))
    summary = TrainSummary(**told)
    if not summary.promoted or pointer.index is None:
        return summary
    generation = ws.promote(model=summary.model).generation
    return TrainSummary(**{**summary.to_dict(), "generation": generation})


def _worker(arguments: dict[str, Any]) -> None:
    import torch

    from rayrec.fitting.recommender import RecommenderTask
    from rayrec.models.recommender import Recommender

    config: TrainConfig = arguments["config"]
    ws = Workspace.open(arguments["ws_uri"], create=False)
    ids = item_ids(ws, arguments["catalog"])
    events = gathered(ray.train.get_dataset_shard("events"))
    histories = Histories.of(events, ids, sessions=True)
    learned, valid, test = split(config, histories)
    held = HeldOut.of_split(events.num_rows, histories, learned, valid, test)
    shop = Shop.read(ws, arguments["catalog"], arguments["embeddings"], arguments["images"], histories)
    schema = FeatureSchema.fit(
        shop.items,
        shop.text.shape[1],
        0 if shop.image is None else shop.image.shape[1],
        min_count=config.model.min_count,
        max_tokens=config.model.max_tokens,
    )
    content = schema.content(shop.items, shop.text, shop.image)
    known = np.bincount(learned.rows[learned.rows >= 0], minlength=len(ids)) > 0
    context = ray.train.get_context()
    torch.manual_seed(config.training.seed)
    model = Recommender(config.model, schema, known, shop.queries.shape[1])
    task = RecommenderTask(
        config,
        model,
        content,
        learned,
        valid,
        shop.queries,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    with tracked(config, ws, arguments["bundle"], first=context.get_world_rank() == 0) as log:
        progress = train_here(task, arguments, task.training(), log)
        task.tune()
        if context.get_world_rank() != 0:
            return
        with tempfile.TemporaryDirectory(prefix="rayrec-model-") as local:
            bundle.write(model, schema, shop.space, ids, Path(local))
            score = shop.scores(bundle.BundledModel.load(Path(local), space=shop.space))
            behavior = shop.counted(learned)
            weight = choose_weight(shop, config, [(behavior, valid)], score)
            fair = unseen(ws, arguments["present"], events, test)
            judged = compare(ws, shop, config, arguments["present"], learned, behavior, fair, {NEW: (score, weight)})
            opponents = {name: one.by_shopper(config.metric) for name, one in judged.items() if name != NEW}
            verdict = gate(config.metric, judged[NEW].by_shopper(config.metric), opponents)
            figures = {key: round(value, 5) for key, value in judged[NEW].figures().items()}
            log(progress.step, {f"test/{key}": value for key, value in figures.items()})
            made = Made(
                weight,
                progress.best[0] // max(1, task.steps_an_epoch),
                int(learned.ts_us.max()),
                held.table(event_ids(events)),
                document(judged, config.metric),
                verdict.to_dict(),
            )
            version = publish(ws, arguments, config, Path(local), made, "Fusion model")
    arguments["told"].put(
        {
            "model": version,
            "promoted": verdict.promoted,
            "verdict": made.verdict,
            "weight": weight,
            "figures": figures,
            "epochs": made.epochs,
        }
    )


@dataclass(frozen=True)
class Made:
    """What a run says of the model that it made. held_out: as data/held_out.py saves it; report: of `document`."""

    weight: float
    epochs: int
    learned_until_us: int
    held_out: pa.Table
    report: dict[str, Any]
    verdict: dict[str, Any]


def publish(
    ws: Workspace, arguments: dict[str, Any], config: TrainConfig, local: Path, made: Made, title: str, **more: Any
) -> str:
    """A version under models/ of the bundle in `local`, which says of what it was made and up to which event.

    arguments: catalog, events, embeddings, images, present. more: for the manifest.
    """
    pq.write_table(made.held_out, local / HELD_OUT)
    with ws.stage("models") as staged:
        staged.upload(local, "")
        staged.write_bytes("report.json", json.dumps(made.report, indent=1).encode())
        staged.write_bytes("report.html", page(title, made.report, made.verdict).encode())
        return staged.publish(
            {
                "config": config.model_dump(mode="json"),
                "catalog": arguments["catalog"],
                "events": arguments["events"],
                "events_offset": ws.manifest("events", arguments["events"]).get("log_offset", 0),
                "encoder": {
                    "space": EncoderId.parse(arguments["embeddings"]).space,
                    "id": arguments["embeddings"],
                    "images": arguments["images"],
                },
                "fusion": fusion_weights(ws, arguments["present"]).model_dump(),
                "recommender": {
                    "weight": made.weight,
                    "without_had": config.mask_seen,
                    "epochs": made.epochs,
                    "learned_until_us": made.learned_until_us,
                },
                "verdict": made.verdict,
                "report": made.report,
                **more,
            }
        )


def datasets_of(ws: Workspace, events: str) -> dict[str, Any]:
    """A version of events, for the workers of a run."""
    return {"events": ray.data.read_parquet(ws.path("events", events), filesystem=ws.fs)}


def gathered(shard: Any) -> pa.Table:
    """EVENTS of a dataset's shard in order of time, each once."""
    tables = [
        validate(table, EVENTS, "events") for table in shard.iter_batches(batch_size=None, batch_format="pyarrow")
    ]
    return dedupe(pa.concat_tables(tables))
