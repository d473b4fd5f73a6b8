"""Going on training with what came since, against leaving the model as it is and against training it anew.

Complete Journey, split by time: a model is trained on the first part, as `rayrec train` does; then the rest comes. What
is held out is what `rayrec update` holds out: the last new basket of some shoppers, and of the first part the baskets
that judged the first model. Every model is blended with what is counted as the service blends it, at its own weight.

    python -m benchmarks.bench_update [--max-items 3000] [--part 0.85] [--replays 0,1] [--quick]
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from benchmarks import common
from benchmarks.bench_recommend import embed
from rayrec.config import RecommenderConfig, TrainConfig, UpdateConfig
from rayrec.data import catalog, complete_journey, events
from rayrec.data.held_out import HeldOut
from rayrec.data.histories import Histories
from rayrec.evaluation.protocol import Judged, Score, judge
from rayrec.evaluation.report import UpdateVerdict, gate_update
from rayrec.fitting.recommender import RecommenderTask
from rayrec.fitting.training import train
from rayrec.fitting.updates import Lesson
from rayrec.models import bundle
from rayrec.models.features import Content, FeatureSchema
from rayrec.models.recommender import Recommender
from rayrec.pipelines.fit import WORKER_ENV
from rayrec.pipelines.recommending import Shop, choose_weight, short, split
from rayrec.pipelines.updating import config_for
from rayrec.ranking.blend import Blend

SPACE = "journey"
EVERYTHING = 1e9


@dataclass(frozen=True)
class Journey:
    """A shop whose present model is in `directory`. known: events before it; weight, seconds: of that model."""

    shop: Shop
    content: Content
    histories: Histories
    known: np.ndarray
    held: HeldOut
    directory: Path
    weight: float
    seconds: float

    @property
    def ids(self) -> pa.Array:
        return self.shop.items.column("item_id").combine_chunks()


@dataclass(frozen=True)
class Outcome:
    """judged: slice -> how it did, as the service blends it; `new alone`, `old alone`: the model by itself."""

    judged: dict[str, Judged]
    weight: float
    seconds: float
    epochs: int


def trained_as(args: Any) -> TrainConfig:
    default = TrainConfig()
    return default.model_copy(
        update={
            "model": RecommenderConfig(dropout=0.2, length=100),
            "training": default.training.model_copy(update={"batch": 4_096, "seed": args.seed}),
            "loss": default.loss.model_copy(update={"target": "next_basket"}),
            "epochs": 1 if args.quick else args.epochs,
            "split": "time",
            "metric": "recall@10",
            "mask_seen": False,
            "judges": 300 if args.quick else args.judges,
        }
    )


def read(args: Any) -> tuple[pa.Table, pa.Table]:
    items, purchases = complete_journey.tables(args.max_items)
    everybody = np.sort(pc.unique(purchases.column("user_id")).to_numpy(zero_copy_only=False))
    n = 300 if args.quick else args.households
    some = np.random.default_rng(args.seed).permutation(everybody)[:n]
    purchases = purchases.filter(pc.is_in(purchases.column("user_id"), pa.array(some)))
    return catalog.seal(items), events.dedupe(purchases)


def first_model(items: pa.Table, table: pa.Table, config: TrainConfig, part: float, directory: Path) -> Journey:
    """Train on the first part of the events, as `rayrec train` does."""
    text = embed(items)
    shop = Shop(items, text, None, text, np.zeros((1, text.shape[1]), np.float32), SPACE)
    histories = Histories.of(table, items.column("item_id").combine_chunks(), sessions=True)
    ts = table.column("ts_us").to_numpy()
    known = ts < np.quantile(ts, part)
    before = histories.where(known[histories.sources])
    learned, valid, test = split(config, before)
    held = HeldOut.of_split(len(known), before, learned, valid, test)
    schema = FeatureSchema.fit(
        items, text.shape[1], 0, min_count=config.model.min_count, max_tokens=config.model.max_tokens
    )
    touched = np.bincount(learned.rows, minlength=items.num_rows) > 0
    torch.manual_seed(config.training.seed)
    model = Recommender(config.model, schema, touched, shop.queries.shape[1])
    content = schema.content(items, text, None)
    task = RecommenderTask(config, model, content, learned, valid)
    seconds, _ = fitted(task)
    bundle.write(model, schema, SPACE, items.column("item_id").combine_chunks(), directory)
    score = shop.scores(bundle.BundledModel.load(directory, space=SPACE))
    weight = choose_weight(shop, config, [(shop.counted(learned), valid)], score)
    return Journey(shop, content, histories, known, held, directory, weight, seconds)


def fitted(task: RecommenderTask) -> tuple[float, int]:
    """(seconds of training, best epoch)."""
    started = time.perf_counter()

    def told(progress: Any, _: Any) -> None:
        at = f"loss {progress.loss:.3f}, {progress.scores[-1][1]:.4f}, {time.perf_counter() - started:.0f} s"
        print(f"  epoch {progress.step // task.steps_an_epoch}: {at}", flush=True)

    progress = train(task, task.training(), report=told)
    task.tune()
    return time.perf_counter() - started, progress.best[0] // task.steps_an_epoch


def lesson_of(journey: Journey, config: TrainConfig, replay: float) -> Lesson:
    asked = UpdateConfig()
    return Lesson.of(
        journey.histories, journey.known, journey.held, config, replay=replay, held_out=asked.held_out, seed=asked.seed
    )


def go_on(journey: Journey, config: TrainConfig, lesson: Lesson, *, anew: bool) -> Outcome:
    """From the present model's weights; anew: from none."""
    touched = np.bincount(lesson.learned(before=False).rows, minlength=journey.shop.items.num_rows) > 0
    model, schema = bundle.restore(journey.directory, SPACE, journey.ids, touched)
    torch.manual_seed(config.training.seed)
    if anew:
        model = Recommender(config.model, schema, touched, journey.shop.queries.shape[1])
    task = RecommenderTask(config, model, journey.content, lesson.histories, lesson.valid, taught=lesson.taught)
    seconds, epochs = fitted(task)
    shop = journey.shop
    with tempfile.TemporaryDirectory() as local:
        bundle.write(model, schema, SPACE, journey.ids, Path(local))
        score = shop.scores(bundle.BundledModel.load(Path(local), space=SPACE))
    validation = [(shop.counted(lesson.learned(before=old)), cases) for old, cases in lesson.valid_by_slice()]
    weight = choose_weight(shop, config, validation, score, present=None if anew else journey.weight)
    return Outcome(served(journey, config, lesson, score, weight), weight, seconds, epochs)


def served(journey: Journey, config: TrainConfig, lesson: Lesson, score: Score, weight: float) -> dict[str, Judged]:
    """On both slices, as the service would blend it and alone."""
    shop, judged = journey.shop, {}
    for name, test in (("new", lesson.new_test), ("old", lesson.old_test)):
        behavior = shop.counted(lesson.learned(before=name == "old"))
        blend = Blend(behavior, shop.vectors, score, without_had=False, keep=False)
        cases = short(test.sample(config.judges, config.training.seed))
        judged[name] = judge(cases, blend.score(weight), n_items=shop.items.num_rows, mask_seen=False)
        judged[f"{name} alone"] = judge(cases, score, n_items=shop.items.num_rows, mask_seen=False)
    return judged


def against(present: Outcome, other: Outcome, metric: str) -> UpdateVerdict:
    def both(part: str) -> tuple[np.ndarray, np.ndarray]:
        return other.judged[part].by_shopper(metric), present.judged[part].by_shopper(metric)

    return gate_update(metric, both("new"), both("old"), UpdateConfig().max_forgetting)


def row(name: str, outcome: Outcome, verdict: UpdateVerdict | None, metric: str) -> dict[str, Any]:
    figures = {part: round(judged.figures()[metric], 4) for part, judged in outcome.judged.items()}
    said: dict[str, Any] = {"model": name, **figures, "gain_new": "", "lost_old": "", "gate": ""}
    if verdict is not None:
        gain, forgetting = verdict.gains[0], verdict.forgetting
        said |= {
            "gain_new": f"{gain.gain:+.4f} [{gain.ci95[0]:+.4f}, {gain.ci95[1]:+.4f}]",
            "lost_old": f"{forgetting.lost:+.2%} [{forgetting.ci95[0]:+.2%}, {forgetting.ci95[1]:+.2%}]",
            "gate": "promoted" if verdict.promoted else "refused",
        }
    return {**said, "weight": outcome.weight, "epochs": outcome.epochs, "train_s": round(outcome.seconds, 1)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--max-items", type=int, default=3_000)
    parser.add_argument("--households", type=int, default=2_469, help="of 2,469, drawn at random")
    parser.add_argument("--part", type=float, default=0.85, help="of the events, the first ones: before the update")
    parser.add_argument("--replays", default="0,1")
    parser.add_argument("--epochs", type=int, default=3, help="of the first model and of the one trained anew")
    parser.add_argument("--judges", type=int, default=2_000)
    args = parser.parse_args()
    if not WORKER_ENV.items() <= os.environ.items():  # memory is handled as in a training worker
        again = [sys.executable, "-m", "benchmarks.bench_update", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **WORKER_ENV})
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = trained_as(args)
    items, table = read(args)
    with tempfile.TemporaryDirectory() as local:
        print(f"first part: {items.num_rows} items, {table.num_rows} events", flush=True)
        journey = first_model(items, table, config, args.part, Path(local))
        lessons = {replay: lesson_of(journey, config, replay) for replay in map(float, args.replays.split(","))}
        all_of = lesson_of(journey, config, EVERYTHING)
        score = journey.shop.scores(bundle.BundledModel.load(journey.directory, space=SPACE))
        there = served(journey, config, all_of, score, journey.weight)
        present = Outcome(there, journey.weight, journey.seconds, args.epochs)
        slower = config_for(UpdateConfig(), config)
        outcomes = {}
        for replay, lesson in lessons.items():
            print(f"update, replay {replay:g}: {int(lesson.taught.sum())} events", flush=True)
            outcomes[f"update, replay {replay:g}"] = go_on(journey, slower, lesson, anew=False)
        print(f"anew: {int(all_of.taught.sum())} events", flush=True)
        outcomes["trained anew"] = go_on(journey, config, all_of, anew=True)
    verdicts = {name: against(present, one, config.metric) for name, one in outcomes.items()}
    rows = [row("present", present, None, config.metric)]
    rows += [row(name, one, verdicts[name], config.metric) for name, one in outcomes.items()]
    cases = {part: len(present.judged[part].shoppers) for part in ("new", "old")}
    common.show(f"{config.metric} on held-out baskets, {cases['new']} new and {cases['old']} old", rows)
    common.finish(
        {
            **common.environment(["torch", "numpy"]),
            "seed": args.seed,
            "items": items.num_rows,
            "households": len(journey.histories),
            "events": table.num_rows,
            "new_events": int((~journey.known).sum()),
            "cases": cases,
            "rows": {one.pop("model"): one for one in rows},
            "verdicts": {name: verdict.to_dict() for name, verdict in verdicts.items()},
        }
    )


if __name__ == "__main__":
    main()
