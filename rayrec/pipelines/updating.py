"""The training of an update, in a worker of Ray Train: from the present model's bundle to another, judged beside it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train

from rayrec.config import TrainConfig, UpdateConfig
from rayrec.data.held_out import HeldOut
from rayrec.data.histories import Histories
from rayrec.evaluation.protocol import Judged, Score
from rayrec.evaluation.report import document_of, gate_update
from rayrec.models import bundle
from rayrec.models.features import FeatureSchema
from rayrec.pipelines.fit import train_here
from rayrec.pipelines.recommending import (
    LEAST_CASES,
    Shop,
    choose_weight,
    compare,
    event_ids,
    item_ids,
    read_held_out,
)
from rayrec.pipelines.tracking import tracked
from rayrec.pipelines.train import Made, gathered, publish
from rayrec.workspace import Workspace

UPDATED, PRESENT = "updated model", "present model"
_SLOWER = 0.25  # of the rate a model was trained with, if none is given


def made_of(config: UpdateConfig, present: str) -> dict[str, Any]:
    """What the manifest of an updated model says of how it came to be."""
    return {"present": present, "config": config.model_dump(mode="json")}


def config_for(config: UpdateConfig, trained: TrainConfig) -> TrainConfig:
    """How the model is trained on: as it was, but slower, for fewer epochs, and where this config says."""
    training = trained.training.model_copy(
        update={
            "learning_rate": config.learning_rate or _SLOWER * trained.training.learning_rate,
            "patience": config.patience,
        }
    )
    where = {
        name: getattr(config, name) for name in ("epochs", "tracker", "workers", "cpus_per_worker", "gpus_per_worker")
    }
    return trained.model_copy(update={"training": training, **where})


def worker(arguments: dict[str, Any]) -> None:
    asked: UpdateConfig = arguments["config"]
    config = config_for(asked, TrainConfig.model_validate(arguments["trained"]))
    ws = Workspace.open(arguments["ws_uri"], create=False)
    ids = item_ids(ws, arguments["catalog"])
    events = gathered(ray.train.get_dataset_shard("events"))
    lesson = _lesson(ws, asked, config, arguments["present"], events, ids)
    first = ray.train.get_context().get_world_rank() == 0
    if (lacking := lesson.lacking(LEAST_CASES)) is not None:
        if first:
            arguments["told"].put({"promoted": False, "reason": lacking})
        return
    shop = Shop.read(ws, arguments["catalog"], arguments["embeddings"], arguments["images"], lesson.histories)
    task, schema = _task(ws, config, arguments["present"], lesson, shop, ids)
    with tracked(config, ws, arguments["bundle"], first=first) as log:
        progress = train_here(task, arguments, task.training(), log)
        task.tune()
        if not first:
            return
        with tempfile.TemporaryDirectory(prefix="rayrec-model-") as local:
            bundle.write(task.module, schema, shop.space, ids, Path(local))
            epochs = progress.best[0] // max(1, task.steps_an_epoch)
            told = _published(ws, arguments, config, lesson, shop, event_ids(events), Path(local), epochs)
        log(progress.step, {f"test/{name}": values["after"] for name, values in told["figures"].items()})
    arguments["told"].put(told)


def _lesson(
    ws: Workspace, asked: UpdateConfig, config: TrainConfig, present: str, events: pa.Table, ids: pa.Array
) -> Any:
    from rayrec.fitting.updates import Lesson

    knew = ws.read_parquet("events", ws.manifest("models", present)["events"], columns=["event_id"]).column("event_id")
    return Lesson.of(
        Histories.of(events, ids, sessions=True),
        pc.is_in(event_ids(events), value_set=knew).to_numpy(zero_copy_only=False),
        HeldOut.read(read_held_out(ws, present), event_ids(events)),
        config,
        replay=asked.replay,
        held_out=asked.held_out,
        seed=asked.seed,
    )


def _task(
    ws: Workspace, config: TrainConfig, present: str, lesson: Any, shop: Shop, ids: pa.Array
) -> tuple[Any, FeatureSchema]:
    """To go on from the present model's weights. Its features stay its own: other ones would not fit them."""
    import torch

    from rayrec.fitting.recommender import RecommenderTask

    learned = lesson.learned(before=False)
    touched = np.bincount(learned.rows[learned.rows >= 0], minlength=len(ids)) > 0
    model, schema = bundle.restore(ws.local_copy("models", present), shop.space, ids, touched)
    content = schema.content(shop.items, shop.text, shop.image)
    torch.manual_seed(config.training.seed)
    context = ray.train.get_context()
    task = RecommenderTask(
        config,
        model,
        content,
        lesson.histories,
        lesson.valid,
        shop.queries,
        taught=lesson.taught,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    return task, schema


def _published(
    ws: Workspace,
    arguments: dict[str, Any],
    config: TrainConfig,
    lesson: Any,
    shop: Shop,
    ids: pa.Array,
    local: Path,
    epochs: int,
) -> dict[str, Any]:
    """Judge the bundle in `local` on both slices and publish it; what the driver is told. ids: of the events."""
    asked, present = arguments["config"], arguments["present"]
    score = shop.scores(bundle.BundledModel.load(local, space=shop.space))
    learned = lesson.learned(before=False)
    validation = [(shop.counted(lesson.learned(before=before)), cases) for before, cases in lesson.valid_by_slice()]
    kept = ws.manifest("models", present)["recommender"]["weight"]
    weight = choose_weight(shop, config, validation, score, present=kept)
    slices = judged_on_both(ws, shop, config, present, lesson, score, weight)
    ours, theirs = ({name: slices[name][who] for name in slices} for who in (UPDATED, PRESENT))

    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        return ours[name].by_shopper(config.metric), theirs[name].by_shopper(config.metric)

    verdict = gate_update(config.metric, pair("new"), pair("old"), asked.max_forgetting)
    made = Made(
        weight,
        epochs,
        int(learned.ts_us.max()),
        lesson.old.joined(lesson.fresh).table(ids),
        document_of({f"{name} events": judged for name, judged in slices.items()}, config.metric),
        verdict.to_dict(),
    )
    # what it was trained with stays its config, so that rates do not fall from update to update
    trained = TrainConfig.model_validate(arguments["trained"])
    version = publish(ws, arguments, trained, local, made, "Updated fusion model", update=made_of(asked, present))
    figures = {name: {"before": _figure(theirs[name], config), "after": _figure(ours[name], config)} for name in slices}
    return {
        "promoted": verdict.promoted,
        "reason": verdict.reason,
        "model": version,
        "replayed": lesson.replayed,
        "weight": weight,
        "figures": figures,
        "verdict": made.verdict,
        "epochs": epochs,
    }


def judged_on_both(
    ws: Workspace, shop: Shop, config: TrainConfig, present: str, lesson: Any, score: Score, weight: float
) -> dict[str, dict[str, Judged]]:
    """slice -> who -> how it did. What is counted, on the old slice, is as it was before the new events."""
    slices = {}
    for name, test in (("new", lesson.new_test), ("old", lesson.old_test)):
        learned = lesson.learned(before=name == "old")
        behavior = shop.counted(learned)
        slices[name] = compare(ws, shop, config, present, learned, behavior, test, {UPDATED: (score, weight)})
    return slices


def _figure(judged: Judged, config: TrainConfig) -> float:
    return round(judged.figures()[config.metric], 5)
