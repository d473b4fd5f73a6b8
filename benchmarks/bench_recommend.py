"""Recommendation by full ranking: the fusion model against SASRec of RecTools, ALS, BPR and what is counted.

beauty, games: leave one out, seen items masked; each peer gets the wall clock that ours took to train. ALS and BPR
choose their settings on the validation cases within it, RecTools trains until it is over. games: HR@10 on the 6,000
users of the shipped candidate files too; --cold trains once more without a tenth of the items, and asks for those.
journey: the next basket by time, nothing masked, as the service blends it, against each shopper's own most bought.

RecTools needs an older NumPy, so it runs in an interpreter of its own, named by --rectools:

    python -m venv .peers && .peers/bin/pip install "RecTools[torch]==0.19.0"
    python -m benchmarks.bench_recommend --dataset beauty --rectools .peers/bin/python

--strategy and --epochs change our model; --seeds N trains it N times and gives the interval over seeds, --average also
the mean of their scores.

    python -m benchmarks.bench_recommend --dataset beauty|games|journey [--quick] [--data DIR]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch

from benchmarks import common
from benchmarks.recommend_peers import Trained, peers_of
from benchmarks.recommend_sets import READ, Set, cold_of
from rayrec.config import EncoderConfig, RecommenderConfig, TrainConfig
from rayrec.data import catalog
from rayrec.data.histories import Histories
from rayrec.encoders import onnx
from rayrec.evaluation.metrics import bootstrap_ci
from rayrec.evaluation.protocol import Judged, Score, over_seeds
from rayrec.fitting.recommender import RecommenderTask
from rayrec.fitting.training import train
from rayrec.models.features import FeatureSchema
from rayrec.models.recommender import Recommender
from rayrec.pipelines.fit import WORKER_ENV
from rayrec.pipelines.recommending import own_counts
from rayrec.ranking.blend import WEIGHTS, Blend
from rayrec.retrieval.behavior import BehaviorIndex

_EPOCHS = {"games": 14, "cold": 8, "journey": 3}
METRICS = ("hr@10", "ndcg@10", "recall@10", "recall@50", "coverage@10", "gini@10")


def embed(items: pa.Table) -> np.ndarray:
    with tempfile.TemporaryDirectory() as directory:
        onnx.export(EncoderConfig(), Path(directory))
        return onnx.OnnxTextEncoder(directory, threads=len(os.sched_getaffinity(0))).encode(catalog.item_texts(items))


def config_of(data: Set, args: Any, strategy: str, seed: int) -> TrainConfig:
    default = TrainConfig()
    form: dict[str, Any] = {"strategy": strategy}
    if strategy == "id":
        form |= {"price": False}
    if data.name == "journey":
        form |= {"dropout": 0.2, "length": 100}
    if data.name in ("games", "cold"):
        form |= {"dim": 128, "heads": 2}
    epochs = args.epochs or (1 if args.quick else _EPOCHS.get(data.name, default.epochs))
    return default.model_copy(
        update={
            "model": RecommenderConfig(**form),
            "training": default.training.model_copy(
                update={"seed": seed, **({"batch": 4_096} if data.name == "journey" else {})}
            ),
            "epochs": epochs,
            "loss": default.loss.model_copy(
                update={"target": "next_basket" if data.name == "journey" else "next_item"}
            ),
            "metric": data.metric,
            "mask_seen": data.mask_seen,
        }
    )


def fit(data: Set, config: TrainConfig, text: np.ndarray) -> Trained:
    """Train as the service does, in this process on all its cores."""
    schema = FeatureSchema.fit(
        data.items, text.shape[1], 0, min_count=config.model.min_count, max_tokens=config.model.max_tokens
    )
    known = np.bincount(data.learned.rows, minlength=data.n) > 0
    torch.manual_seed(config.training.seed)
    model = Recommender(config.model, schema, known, text.shape[1])
    task = RecommenderTask(config, model, schema.content(data.items, text, None), data.learned, data.valid)
    started = time.perf_counter()
    peak, seen = 0.0, 0

    def told(progress: Any, _: Any) -> None:
        nonlocal peak, seen
        peak = max(peak, psutil.Process().memory_info().rss / 2**20)
        seen = progress.step // task.steps_an_epoch
        at = f"{progress.scores[-1][1]:.4f}, best {progress.best[1]:.4f}"
        print(f"  epoch {seen}: loss {progress.loss:.3f}, {data.metric} {at}, {time.perf_counter() - started:.0f} s")
        sys.stdout.flush()

    progress = train(task, task.training(), report=told)
    task.tune()
    seconds = time.perf_counter() - started
    return Trained(
        task.scorer(),
        round(seconds, 1),
        round(seen * task.positions / seconds),
        round(peak),
        progress.best[0] // task.steps_an_epoch,
    )


def averaged(scores: list[Score]) -> Score:
    """The mean of several models' scores, each scaled to deviation 1 per shopper."""

    def score(histories: Histories) -> np.ndarray:
        found = [one(histories) for one in scores]
        return np.mean([(s - s.mean(1, keepdims=True)) / (s.std(1, keepdims=True) + 1e-9) for s in found], axis=0)

    return score


def row(name: str, data: Set, judged: Judged, trained: Trained | None) -> dict[str, Any]:
    figures = judged.figures()
    found = {"model": name, **{metric: round(figures[metric], 4) for metric in METRICS}}
    if trained is not None:
        found |= {
            "train_s": trained.train_s,
            "events_per_s": trained.events_per_s,
            "peak_mib": trained.peak_mib,
            "epochs": trained.epochs,
        }
    else:
        found |= dict.fromkeys(("train_s", "events_per_s", "peak_mib", "epochs"), 0)
    return found


def key_figures(judged: Judged, trained: Trained | None) -> dict[str, Any]:
    figures = judged.figures()
    found = {
        "hr10": round(figures["hr@10"], 4),
        "ndcg10": round(figures["ndcg@10"], 4),
        "recall10": round(figures["recall@10"], 4),
    }
    if trained is not None:
        found |= {"train_s": trained.train_s, "events_per_s": trained.events_per_s, "peak_mib": trained.peak_mib}
    return found


def cold_rows(data: Set, args: Any, text: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Recall@50 of items that nobody touched while learning: ours, text alone, popularity."""
    cold = cold_of(data, args.seed)
    print(f"cold items: {len(cold.test)} cases", flush=True)
    trained = fit(cold, config_of(cold, args, args.strategy or "weighted", args.seed), text)
    popularity = np.bincount(cold.learned.rows, minlength=cold.n).astype(np.float32)

    def by_text(histories: Histories, last: int = 1_000) -> np.ndarray:
        of = [text[h.rows[-last:]].mean(0) if len(h.rows) else np.zeros(text.shape[1]) for h in each(histories)]
        return np.stack(of) @ text.T

    scores: dict[str, Score] = {
        "fusion": trained.score,
        "text, mean of history": by_text,
        "text, last item": lambda histories: by_text(histories, 1),
        "popularity": lambda histories: np.tile(popularity, (len(histories), 1)),
    }
    warm = np.bincount(cold.learned.rows, minlength=cold.n) > 0

    def among_new(score: Score) -> Score:
        return lambda histories: np.where(warm, -np.inf, score(histories))

    rows, found = [], {}
    for name, score in scores.items():
        judged, shelf = cold.judge(score), cold.judge(among_new(score))
        rows.append(row(name, cold, judged, trained if name == "fusion" else None))
        rows.append(row(f"{name}, among new items", cold, shelf, None))
        found[name] = {
            "recall50": round(judged.figures()["recall@50"], 4),
            "ci95": [round(v, 4) for v in judged.ci95("recall@50")],
            "among_new_recall50": round(shelf.figures()["recall@50"], 4),
        }
    return rows, found


def each(histories: Histories) -> list[Histories]:
    return [histories.take(np.array([h])) for h in range(len(histories))]


def journey(data: Set, trained: Trained, text: np.ndarray) -> tuple[dict[str, Judged], dict[str, Any]]:
    """The service's blend of counted and learned, its weight chosen on the validation baskets."""
    behavior = BehaviorIndex.of_histories(data.learned, data.n, 90.0)
    blend = Blend(behavior, text, trained.score, without_had=False)
    by_weight = {w: data.judge(blend.score(w), data.valid).figures()[data.metric] for w in WEIGHTS}
    weight = max(by_weight, key=lambda w: (by_weight[w], -w))
    on_test = Blend(behavior, text, trained.score, without_had=False)
    popularity = behavior.popularity
    found = {
        "served": data.judge(on_test.score(weight)),
        "counted alone": data.judge(on_test.score(0.0)),
        "model alone": data.judge(trained.score),
        "own most bought": data.judge(lambda h: own_counts(h, data.n) + 1e-6 * popularity),
        "popularity": data.judge(lambda h: np.tile(popularity, (len(h), 1))),
    }
    gain = found["served"].by_shopper("recall@10") - found["own most bought"].by_shopper("recall@10")
    return found, {
        "recall10": round(found["served"].figures()["recall@10"], 4),
        "recall10_ci95": [round(v, 4) for v in found["served"].ci95("recall@10")],
        "repeat_baseline": round(found["own most bought"].figures()["recall@10"], 4),
        "gain_ci95": [round(v, 4) for v in bootstrap_ci(gain)],
        "weight": weight,
        "by_weight": {str(w): round(value, 4) for w, value in by_weight.items()},
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--dataset", choices=sorted(READ), default="beauty")
    parser.add_argument("--strategy", default=None, help="of the fusion; default: id (beauty), weighted (others)")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--average", action="store_true", help="also average the models of all seeds")
    parser.add_argument("--rectools", default=None, help="a Python that has RecTools")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--cold", action="store_true", help="games: also the row of cold items")
    args = parser.parse_args()
    if not WORKER_ENV.items() <= os.environ.items():  # memory is handled as in a training worker
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.bench_recommend", *sys.argv[1:]],
            {**os.environ, **WORKER_ENV},
        )
    if args.dataset != "journey" and not args.data.exists():
        raise SystemExit(f"{args.data} is not there; give --data")
    if args.rectools:  # found out before the training, not after it
        subprocess.run(
            [args.rectools, "-c", "from rectools.models import SASRecModel; import pytorch_lightning"], check=True
        )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = READ[args.dataset](args.data)
    if args.quick:
        some = np.arange(min(len(data.test), 2_000))
        data = Set(data.name, data.items, data.learned, data.valid, data.test.take(some), data.mask_seen, data.metric)
    strategy = args.strategy or ("id" if args.dataset == "beauty" else "weighted")
    text = embed(data.items)
    runs = []
    for seed in range(args.seed, args.seed + args.seeds):
        print(f"{data.name}: {strategy}, seed {seed}", flush=True)
        runs.append(fit(data, config_of(data, args, strategy, seed), text))
    last: dict[str, Any] = {
        **common.environment(["torch", "numpy", "ray"]),
        "dataset": data.name,
        "strategy": strategy,
        "seed": args.seed,
        "seeds": args.seeds,
    }
    if data.name == "journey":
        judged, figures = journey(data, runs[0], text)
        rows = [row(name, data, one, runs[0] if name == "served" else None) for name, one in judged.items()]
        common.show("journey: the next basket", rows)
        common.finish({**last, **figures, "train_s": runs[0].train_s, "cases": len(data.test)})
        return
    ours = [data.judge(run.score) for run in runs]
    rows = [row(f"fusion, seed {args.seed + i}", data, one, runs[i]) for i, one in enumerate(ours)]
    if args.average and len(runs) > 1:
        mean = data.judge(averaged([run.score for run in runs]))
        rows.append(row(f"{len(runs)} models averaged", data, mean, None))
        last["averaged"] = key_figures(mean, None)
    peers: dict[str, Any] = {}
    for name, fit_peer in ({} if args.no_peers else peers_of(data, args.rectools, runs[0].train_s)).items():
        print(f"{data.name}: {name}", flush=True)
        peer = fit_peer()
        one = data.judge(peer.score)
        rows.append(row(name, data, one, peer))
        peers[name] = key_figures(one, peer)
    common.show(f"{data.name}: {len(data.test)} shoppers, {data.n} items, full ranking", rows)
    common.show(f"{data.name}: fusion by slice", ours[0].table())
    for metric, key in (("hr@10", "hr10"), ("ndcg@10", "ndcg10")):
        by_seed = [one.figures()[metric] for one in ours]
        mean_of, interval = over_seeds(by_seed)
        last[key] = round(mean_of, 4)
        last[f"{key}_ci95"] = [round(v, 4) for v in (interval or ours[0].ci95(metric))]
        last[f"{key}_by_seed"] = [round(v, 4) for v in by_seed]
    if data.only is not None:
        last["hr10_of_6000"] = round(float(ours[0].values["hr@10"][data.only].mean()), 4)
    if args.cold:
        cold, last["cold"] = cold_rows(data, args, text)
        common.show("items held out of training", cold)
        last["cold_recall50"] = last["cold"]["fusion"]["recall50"]
    common.finish(
        {
            **last,
            "train_s": runs[0].train_s,
            "events_per_s": runs[0].events_per_s,
            "peak_mib": runs[0].peak_mib,
            "peers": peers,
        }
    )


if __name__ == "__main__":
    main()
