"""Judging recommendations: what is held out, who is compared, and the report of what answers now."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec import encoder_exports
from rayrec.config import TrainConfig
from rayrec.data.held_out import FILE as HELD_OUT
from rayrec.data.held_out import HeldOut, cases_of
from rayrec.data.histories import Cases, Histories, leave_one_out, next_baskets
from rayrec.embedding_store import EmbeddingStore
from rayrec.encoders.base import EncoderId
from rayrec.encoders.item import fuse
from rayrec.errors import SchemaError
from rayrec.evaluation.metrics import bootstrap_ci_of_parts
from rayrec.evaluation.protocol import Judged, Score, judge
from rayrec.evaluation.report import document, page
from rayrec.models.bundle import BundledModel
from rayrec.pipelines.embed_pictures import picture_hashes
from rayrec.pipelines.event_log import newest_events, read_events
from rayrec.pipelines.fit import newest_catalog
from rayrec.pipelines.index import find_embeddings
from rayrec.ranking.blend import WEIGHTS, Blend
from rayrec.retrieval.behavior import HISTORY, BehaviorIndex
from rayrec.schema import CONTENT_HASH
from rayrec.workspace import Workspace

LEAST_CASES = 20
HALF_LIFE_DAYS = 90.0
_NEXT = (0.9, 0.95)
_WEIGHING = 3_000  # cases that choose a model's weight, kept for each weight tried


@dataclass(frozen=True)
class Shop:
    """A catalog as a model sees it: items ITEMS (N), text float32 (N, D), image (N, D) or None.

    vectors: float32 (N, D), text and image as the index fuses them; queries: float32 (Q, D), of what shoppers searched
    for; space: of all of these.
    """

    items: pa.Table
    text: np.ndarray
    image: np.ndarray | None
    vectors: np.ndarray
    queries: np.ndarray
    space: str

    @classmethod
    def read(
        cls,
        ws: Workspace,
        catalog: str,
        embeddings: str,
        images: Mapping[str, Any] | None,
        texts: Histories,
    ) -> "Shop":
        items = ws.read_parquet("catalog", catalog)
        text, image = EmbeddingStore(ws, embeddings).lookup(items.column(CONTENT_HASH).combine_chunks()), None
        vectors = text
        if images is not None:
            keys = picture_hashes(items.column("image_uri").combine_chunks())
            image = EmbeddingStore(ws, images["id"]).find(keys)[0]
            vectors = fuse(text, image, images["weight"])
        space = EncoderId.parse(embeddings).space
        queries = np.zeros((1, text.shape[1]), np.float32)
        if (texts.queries >= 0).any():
            encoder = encoder_exports.open_for(ws, {"export": space, "space": space})
            queries = encoder.encode([asked or "" for asked in texts.texts], "query")
        return cls(items, text, image, vectors, queries, space)

    def counted(self, learned: Histories) -> BehaviorIndex:
        """What shoppers did, of what was learned from."""
        return BehaviorIndex.of_histories(learned, self.items.num_rows, HALF_LIFE_DAYS)

    def scores(self, model: BundledModel) -> Score:
        """Of all items by a trained model."""
        table = model.items(self.items, self.text, self.image)
        return lambda histories: model.shoppers(histories, table, self.queries) @ table.T


def split(config: TrainConfig, histories: Histories) -> tuple[Histories, Cases, Cases]:
    """(to learn from, validation, test). Raises SchemaError if too few shoppers can be judged."""
    if config.split == "leave_one_out":
        learned, valid, test = leave_one_out(histories)
    else:
        first, second = (int(np.quantile(histories.ts_us, share)) if len(histories) else 0 for share in _NEXT)
        learned, valid = next_baskets(histories, first, second, every=True)
        _, test = next_baskets(histories, second, every=True)
    for name, cases in (("validation", valid), ("test", test)):
        if len(cases) < LEAST_CASES:
            raise SchemaError(
                f"{len(cases)} shoppers can be judged ({name}), at least {LEAST_CASES} are needed; "
                "leave_one_out asks for three items each, time for a basket in the last tenth of the time"
            )
    return learned, valid, test


def read_held_out(ws: Workspace, model: str) -> pa.Table:
    """What a trained model never learned to foresee, as data/held_out.py saves it.

    Models of before this was kept: what their split leaves out of their events, which say all of it. Raises NotFound.
    """
    manifest = ws.manifest("models", model)
    if HELD_OUT in manifest["files"]:
        return ws.read_parquet("models", model, HELD_OUT)
    events = read_events(ws, manifest["events"])
    histories = Histories.of(events, item_ids(ws, manifest["catalog"]), sessions=True)
    parts = split(TrainConfig.model_validate(manifest["config"]), histories)
    return HeldOut.of_split(events.num_rows, histories, *parts).table(event_ids(events))


def unseen(ws: Workspace, model: str | None, events: pa.Table, test: Cases) -> Cases:
    """Those cases that ask for nothing which a model learned to foresee.

    An updated model learned the last events of most shoppers, which a split leaves out for others. Where too few cases
    remain it is all of them, to the advantage of that model.
    """
    manifest = {} if model is None else ws.manifest("models", model)
    if model is None or "update" not in manifest:
        return test
    ids = event_ids(events)
    learned = pc.is_in(ids, ws.read_parquet("events", manifest["events"], columns=["event_id"]).column("event_id"))
    taught = learned.to_numpy(zero_copy_only=False) & ~HeldOut.read(read_held_out(ws, model), ids).held
    of_case = np.repeat(np.arange(len(test)), np.diff(test.wanted_start))
    left = np.setdiff1d(np.arange(len(test)), of_case[taught[test.places]])
    return test.take(left) if len(left) >= LEAST_CASES else test


def item_ids(ws: Workspace, catalog: str) -> pa.Array:
    return ws.read_parquet("catalog", catalog, columns=["item_id"]).column("item_id").combine_chunks()


def event_ids(events: pa.Table) -> pa.Array:
    return events.column("event_id").combine_chunks()


def short(cases: Cases) -> Cases:
    """With as much of each history as the service keeps."""
    return replace(cases, histories=cases.histories.last(HISTORY))


def choose_weight(
    shop: Shop,
    config: TrainConfig,
    parts: Sequence[tuple[BehaviorIndex, Cases]],
    score: Score,
    *,
    present: float | None = None,
) -> float:
    """Of a model's part beside what is counted: the best on validation cases, the smaller of equals.

    parts: cases, each with what was counted before them, for to what is counted later they would be long ago; all parts
    count alike. present: a weight that is kept unless another is better on them, clear of zero.
    """
    reached: dict[float, list[np.ndarray]] = {weight: [] for weight in sorted({*WEIGHTS, present or 0.0})}
    n = shop.items.num_rows
    for behavior, valid in parts:
        cases = short(valid.sample(min(config.judges, _WEIGHING), config.training.seed))
        blend = Blend(behavior, shop.vectors, score, without_had=config.mask_seen)
        for weight, values in reached.items():
            judged = judge(cases, blend.score(weight), n_items=n, mask_seen=config.mask_seen)
            values.append(judged.by_shopper(config.metric))
    best = max(reached, key=lambda weight: (np.mean([part.mean() for part in reached[weight]]), -weight))
    return best if present is None else kept_or_better(reached, present, best)


def kept_or_better(reached: Mapping[float, Sequence[np.ndarray]], kept: float, best: float) -> float:
    """The best if its gain over the one that is kept is clear of zero; reached: by shopper, of each part."""
    gains = [ours - theirs for ours, theirs in zip(reached[best], reached[kept], strict=True)]
    return best if bootstrap_ci_of_parts(gains)[0] > 0 else kept


def compare(
    ws: Workspace,
    shop: Shop,
    config: TrainConfig,
    present: str | None,
    learned: Histories,
    behavior: BehaviorIndex,
    test: Cases,
    models: Mapping[str, tuple[Score, float]],
) -> dict[str, Judged]:
    """How models do on the test as the service would use them, and beside them what is counted and the present model.

    behavior: of `learned`; models: name -> (scores, weight).
    """
    cases = short(test.sample(config.judges, config.training.seed))
    n = shop.items.num_rows

    def judged(score: Score) -> Judged:
        return judge(cases, score, n_items=n, learned=learned, mask_seen=config.mask_seen)

    def served(score: Score | None, weight: float) -> Judged:
        return judged(Blend(behavior, shop.vectors, score, without_had=config.mask_seen, keep=False).score(weight))

    found = {name: served(score, weight) for name, (score, weight) in models.items()}
    manifest = {} if present is None else ws.manifest("models", present)
    if present is not None and "recommender" in manifest and manifest["encoder"]["space"] == shop.space:
        model = BundledModel.load(ws.local_copy("models", present), space=shop.space)
        found["present model"] = served(shop.scores(model), manifest["recommender"]["weight"])
    found["counted"] = served(None, 0.0)
    found["popularity"] = judged(lambda histories: np.tile(behavior.popularity, (len(histories), 1)))
    found["bought together"] = judged(
        lambda histories: np.asarray((behavior.neighbours.T @ own_counts(histories, n).T).T, np.float32)
    )
    if not config.mask_seen:
        found["bought before"] = judged(lambda histories: own_counts(histories, n) + 1e-6 * behavior.popularity)
    return found


def own_counts(histories: Histories, n: int) -> np.ndarray:
    """float32 (H, n): how often each shopper had each item."""
    there = histories.rows >= 0
    h = np.repeat(np.arange(len(histories)), histories.lengths)[there]
    return np.bincount(h * n + histories.rows[there], minlength=len(histories) * n).reshape(-1, n).astype(np.float32)


def evaluate_recommendations(ws: Workspace, config: TrainConfig) -> tuple[str, dict[str, Any]]:
    """Judge what answers now on events that were held out of it; (directory of report.json and report.html, report).

    With a trained model, its own held-out events, catalog and events; without, the newest ones and the config's split.
    Raises NotFound without events.
    """
    pointer = ws.current()
    present = pointer.model
    manifest = None if present is None else ws.manifest("models", present)
    if manifest is not None and "recommender" in manifest:
        config = TrainConfig.model_validate(manifest["config"])
        catalog, events = manifest["catalog"], manifest["events"]
        embeddings, images = manifest["encoder"]["id"], manifest["encoder"]["images"]
    else:
        catalog, events = newest_catalog(ws), newest_events(ws)
        items_by, _ = encoder_exports.resolve(ws, config.encoder)
        embeddings, images = find_embeddings(encoder_exports.encoder_id(items_by).space, ws, catalog), None
    table = read_events(ws, events)
    histories = Histories.of(table, item_ids(ws, catalog), sessions=True)
    if manifest is not None and HELD_OUT in manifest["files"]:
        held = HeldOut.read(ws.read_parquet("models", str(present), HELD_OUT), event_ids(table))
        learned, test = histories.where(~held.held[histories.sources]), cases_of(histories, held.test)
    else:
        learned, _, test = split(config, histories)
    shop = Shop.read(ws, catalog, embeddings, images, histories)
    judged = compare(ws, shop, config, present, learned, shop.counted(learned), test, {})
    report = document(judged, config.metric)
    said = {"model": present, "catalog": catalog, "events": events, "split": config.split, **report}
    folder = f"recommendations-{pointer.generation:06d}"
    ws.write_bytes(json.dumps(said, indent=1).encode(), "reports", folder, "report.json")
    ws.write_bytes(page("Recommendations", report).encode(), "reports", folder, "report.html")
    return ws.path("reports", folder), said
