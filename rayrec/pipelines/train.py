"""Training the fusion model on Ray Train: shoppers' events in, a bundle under models/ out, promoted by the gate.

A run is named by its config and data and checkpoints each epoch, as fitting does: a worker that dies is started
again from there. A bundle is always published, with what it scored; it answers only if it beats what is counted
(popularity, bought together, bought before), and the model that answers now, on events it never saw.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train

from rayrec import encoder_exports
from rayrec.config import ImagesConfig, TrainConfig
from rayrec.data.histories import Cases, Histories, leave_one_out, next_baskets
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.engine import fusion_weights
from rayrec.errors import NotFound, SchemaError
from rayrec.evaluation.protocol import Judged, Score, judge
from rayrec.evaluation.report import document, gate, page
from rayrec.models import bundle
from rayrec.models.features import FeatureSchema
from rayrec.pipelines.embed_pictures import picture_hashes
from rayrec.pipelines.fit import Progress, item_embeddings, newest_catalog, run, train_here
from rayrec.pipelines.index import find_pictures
from rayrec.pipelines.tracking import tracked
from rayrec.ranking.blend import WEIGHTS, Blend
from rayrec.retrieval.behavior import HISTORY, BehaviorIndex
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace

LEAST_CASES = 20
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
    events = ws.latest("events")
    if events is None:
        raise NotFound(f"no events in {ws.uri} yet; run 'rayrec index' with events, there is nothing to learn from")
    items_by, _ = encoder_exports.resolve(ws, config.encoder)
    embeddings = item_embeddings(ws, items_by)
    space = EncoderId.parse(embeddings).space
    images = None if config.images is None else find_pictures(ImagesConfig.model_validate(config.images), ws, space)
    pointer = ws.current()
    arguments = {
        "catalog": newest_catalog(ws),
        "events": events,
        "embeddings": embeddings,
        "images": images,
        "present": pointer.model,
    }

    def datasets() -> dict[str, Any]:
        return {"events": ray.data.read_parquet(ws.path("events", events), filesystem=ws.fs)}

    summary = TrainSummary(**run("train", _worker, config, arguments, ws, address, on_progress, datasets))
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
    items = ws.read_parquet("catalog", arguments["catalog"])
    text, image = item_vectors(ws, items, arguments["embeddings"], arguments["images"])
    item_ids = items.column("item_id").combine_chunks()
    histories = Histories.of(read_events(ray.train.get_dataset_shard("events")), item_ids)
    learned, valid, test = split(config, histories)
    queries = encode_queries(ws, arguments["embeddings"], histories)
    schema = FeatureSchema.fit(
        items,
        text.shape[1],
        0 if image is None else image.shape[1],
        min_count=config.model.min_count,
        max_tokens=config.model.max_tokens,
    )
    content = schema.content(items, text, image)
    known = np.bincount(learned.rows[learned.rows >= 0], minlength=len(item_ids)) > 0
    context = ray.train.get_context()
    torch.manual_seed(config.training.seed)
    model = Recommender(config.model, schema, known, queries.shape[1])
    task = RecommenderTask(
        config,
        model,
        content,
        learned,
        valid,
        queries,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
    )
    with tracked(config, ws, arguments["bundle"], first=context.get_world_rank() == 0) as log:
        progress = train_here(task, arguments, task.training(), log)
        task.tune()
        if context.get_world_rank() != 0:
            return
        with tempfile.TemporaryDirectory(prefix="rayrec-model-") as local:
            space = EncoderId.parse(arguments["embeddings"]).space
            bundle.write(model, schema, space, item_ids, Path(local))
            trained = bundle.BundledModel.load(Path(local), space=space)
            table = trained.items(items, text, image)

            def score(asked: Histories) -> np.ndarray:
                return trained.shoppers(asked, table, queries) @ table.T

            judged, weight = compare(ws, config, arguments, learned, valid, test, items, text, image, queries, score)
            opponents = {name: one.values[config.metric] for name, one in judged.items() if name != NEW}
            verdict = gate(config.metric, judged[NEW].values[config.metric], opponents)
            report = document(judged, config.metric)
            figures = {key: round(value, 5) for key, value in judged[NEW].figures().items()}
            log(progress.step, {f"test/{key}": value for key, value in figures.items()})
            epochs = progress.best[0] // max(1, task.steps_an_epoch)
            with ws.stage("models") as staged:
                staged.upload(Path(local), "")
                staged.write_bytes("report.html", page("Fusion model", report, verdict.to_dict()).encode())
                version = staged.publish(
                    {
                        "config": config.model_dump(mode="json"),
                        "catalog": arguments["catalog"],
                        "events": arguments["events"],
                        "encoder": {"space": space, "id": arguments["embeddings"], "images": arguments["images"]},
                        "fusion": fusion_weights(ws, arguments["present"]).model_dump(),
                        "recommender": {"weight": weight, "without_had": config.mask_seen, "epochs": epochs},
                        "verdict": verdict.to_dict(),
                        "report": report,
                    }
                )
    arguments["told"].put(
        {
            "model": version,
            "promoted": verdict.promoted,
            "verdict": verdict.to_dict(),
            "weight": weight,
            "figures": figures,
            "epochs": epochs,
        }
    )


def read_events(shard: Any) -> pa.Table:
    """EVENTS in order of time, then event_id."""
    tables = list(shard.iter_batches(batch_size=None, batch_format="pyarrow"))
    return pa.concat_tables(tables).sort_by([("ts_us", "ascending"), ("event_id", "ascending")])


def item_vectors(
    ws: Workspace, items: pa.Table, embeddings: str, images: Mapping[str, Any] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(text float32 (N, D), image float32 (N, D) or None) of a catalog."""
    text = EmbeddingStore(ws, embeddings).lookup(items.column(CONTENT_HASH).combine_chunks())
    if images is None:
        return text, None
    keys = picture_hashes(items.column("image_uri").combine_chunks())
    return text, EmbeddingStore(ws, images["id"]).find(keys)[0]


def encode_queries(ws: Workspace, embeddings: str, histories: Histories) -> np.ndarray:
    """float32 (Q, D) of what shoppers searched for; one row of zeros if nobody did."""
    space = EncoderId.parse(embeddings).space
    if not (histories.queries >= 0).any():
        dim = EmbeddingStore(ws, embeddings).lookup(EmbeddingStore(ws, embeddings).present()[:1]).shape[1]
        return np.zeros((1, dim), np.float32)
    encoder = encoder_exports.open_for(ws, {"export": space, "space": space})
    return encoder.encode([text or "" for text in histories.texts], "query")


def split(config: TrainConfig, histories: Histories) -> tuple[Histories, Cases, Cases]:
    """(to learn from, validation, test). Raises SchemaError if too few shoppers can be judged."""
    if config.split == "leave_one_out":
        learned, valid, test = leave_one_out(histories)
    else:
        first, second = (int(np.quantile(histories.ts_us, share)) for share in (0.9, 0.95))
        learned, valid = next_baskets(histories, first, second)
        _, test = next_baskets(histories, second)
    for name, cases in (("validation", valid), ("test", test)):
        if len(cases) < LEAST_CASES:
            raise SchemaError(
                f"{len(cases)} shoppers can be judged ({name}), at least {LEAST_CASES} are needed; "
                "leave_one_out asks for three items each, time for a basket in the last tenth of the time"
            )
    return learned, valid, test


def compare(
    ws: Workspace,
    config: TrainConfig,
    arguments: Mapping[str, Any],
    learned: Histories,
    valid: Cases,
    test: Cases,
    items: pa.Table,
    text: np.ndarray,
    image: np.ndarray | None,
    queries: np.ndarray,
    score: Score,
) -> tuple[dict[str, Judged], float]:
    """(how the new model, what is counted, and the present model do on the test, the weight chosen on validation)."""
    n = items.num_rows
    behavior = BehaviorIndex.of_histories(learned, n, 90.0)
    seed = config.training.seed
    valid, test = (short(cases.sample(config.judges, seed)) for cases in (valid, test))

    def judged(cases: Cases, scored: Score) -> Judged:
        return judge(cases, scored, n_items=n, learned=learned, mask_seen=config.mask_seen)

    blend = Blend(behavior, text, score, without_had=config.mask_seen)
    by_weight = {weight: judged(valid, blend.score(weight)).figures()[config.metric] for weight in WEIGHTS}
    weight = max(by_weight, key=lambda w: (by_weight[w], -w))
    on_test = Blend(behavior, text, score, without_had=config.mask_seen)
    found = {
        NEW: judged(test, on_test.score(weight)),
        "counted": judged(test, on_test.score(0.0)),
        "popularity": judged(test, lambda h: np.tile(behavior.popularity, (len(h), 1))),
        "bought together": judged(test, lambda h: together(behavior, h, n)),
    }
    if not config.mask_seen:
        found["bought before"] = judged(test, lambda h: own_counts(h, n) + 1e-6 * behavior.popularity)
    present = arguments["present"]
    if present is not None and "recommender" in (manifest := ws.manifest("models", present)):
        space = manifest["encoder"]["space"]
        if space == EncoderId.parse(arguments["embeddings"]).space:
            old = bundle.BundledModel.load(ws.local_copy("models", present), space=space)
            table = old.items(items, text, image)

            def as_now(asked: Histories) -> np.ndarray:
                return old.shoppers(asked, table, queries) @ table.T

            before = Blend(behavior, text, as_now, without_had=config.mask_seen)
            found["present model"] = judged(test, before.score(manifest["recommender"]["weight"]))
    return found, weight


def short(cases: Cases) -> Cases:
    """With as much of each history as the service keeps."""
    return Cases(cases.histories.last(HISTORY), cases.wanted_start, cases.wanted)


def own_counts(histories: Histories, n: int) -> np.ndarray:
    """float32 (H, n): how often each shopper had each item."""
    there = histories.rows >= 0
    h = np.repeat(np.arange(len(histories)), histories.lengths)[there]
    return np.bincount(h * n + histories.rows[there], minlength=len(histories) * n).reshape(-1, n).astype(np.float32)


def together(behavior: BehaviorIndex, histories: Histories, n: int) -> np.ndarray:
    """float32 (H, n): how strongly each item goes with what each shopper had."""
    return np.asarray((behavior.neighbours.T @ own_counts(histories, n).T).T, np.float32)
