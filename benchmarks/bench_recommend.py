"""Recommendation by full ranking: the fusion model against SASRec of RecTools, ALS, BPR and what is counted.

beauty, games: leave one out, seen items masked; each peer gets the wall clock that ours took to train. ALS and BPR
choose their settings on the validation cases within it, RecTools trains until it is over. games: HR@10 on the 6,000
users of the shipped candidate files too; --cold trains once more without a tenth of the items, and asks for those.
journey: the next basket by time, nothing masked, as the service blends it, against each shopper's own most bought.

RecTools needs an older NumPy, so it runs in an interpreter of its own, named by --rectools:

    python -m venv .peers && .peers/bin/pip install "RecTools[lightning]==0.19.0" torch
    python -m benchmarks.bench_recommend --dataset beauty --rectools .peers/bin/python

--strategy and --epochs change our model; --seeds N trains it N times and gives the interval over seeds, --average also
the mean of their scores.

    python -m benchmarks.bench_recommend --dataset beauty|games|journey [--quick] [--data DIR]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch

from benchmarks import common
from rayrec.config import EncoderConfig, RecommenderConfig, TrainConfig
from rayrec.data import catalog, complete_journey, events
from rayrec.data.histories import Cases, Histories, leave_one_out, next_baskets
from rayrec.encoders import onnx
from rayrec.evaluation.metrics import bootstrap_ci
from rayrec.evaluation.protocol import Judged, Score, judge, over_seeds
from rayrec.fitting.recommender import RecommenderTask
from rayrec.fitting.training import train
from rayrec.models.features import FeatureSchema
from rayrec.models.recommender import Recommender
from rayrec.pipelines.fit import WORKER_ENV
from rayrec.pipelines.recommending import own_counts, short
from rayrec.ranking.blend import WEIGHTS, Blend
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.schema import ITEMS

COLD_SHARE = 0.1
_EPOCHS = {"games": 14, "cold": 8, "journey": 3}
METRICS = ("hr@10", "ndcg@10", "recall@10", "recall@50", "coverage@10", "gini@10")


@dataclass(frozen=True)
class Set:
    """A dataset, split. only: places of test cases that a published figure is of, or None."""

    name: str
    items: pa.Table
    learned: Histories
    valid: Cases
    test: Cases
    mask_seen: bool
    metric: str
    only: np.ndarray | None = None

    @property
    def n(self) -> int:
        return self.items.num_rows

    def judge(self, score: Score, cases: Cases | None = None) -> Judged:
        return judge(
            self.test if cases is None else cases,
            score,
            n_items=self.n,
            learned=self.learned,
            mask_seen=self.mask_seen,
        )


def read_beauty(root: Path) -> Set:
    sequences = [
        [int(item) - 1 for item in line.split()[1:]]
        for line in (root / "amazon_beauty_s3rec" / "Beauty.txt").read_text().splitlines()
    ]
    table = pq.read_table(root / "amazon_beauty_s3rec" / "items.parquet").sort_by("item_id").to_pylist()
    attributes = json.loads((root / "amazon_beauty_s3rec" / "Beauty_item2attributes.json").read_text())
    rows = [
        {
            "item_id": f"{row['item_id']:05d}",
            "title": row["gram_lexical_id"].strip(),
            "attributes": [(f"a{number}", "yes") for number in attributes.get(str(row["item_id"]), [])],
        }
        for row in table
    ]
    learned, valid, test = leave_one_out(Histories.of_rows(sequences))
    return Set("beauty", pa.Table.from_pylist(rows, schema=ITEMS), learned, valid, test, True, "ndcg@10")


def read_games(root: Path) -> Set:
    folder = root / "amazon_games"
    table = pq.read_table(folder / "sequences_test.parquet").to_pylist()
    sequences = [[*map(int, row["history"].split()), row["target"]] for row in table]
    titles = pq.read_table(folder / "items.parquet").sort_by("item_id").column("title").to_pylist()
    items = pa.Table.from_pylist(
        [{"item_id": f"{row:05d}", "title": title} for row, title in enumerate(titles)], schema=ITEMS
    )
    asked = set(pq.read_table(folder / "candidates_sasrec.parquet").column("user_id").to_pylist())
    learned, valid, test = leave_one_out(Histories.of_rows(sequences))
    # of_rows names each history by its place
    only = np.array([case for case, user in enumerate(test.histories.users) if table[int(user)]["user_id"] in asked])
    return Set("games", items, learned, valid, test, True, "ndcg@10", only)


def read_journey(root: Path) -> Set:
    items, bought = complete_journey.tables(15_000)
    items = items.sort_by("item_id")
    histories = Histories.of(events.dedupe(bought), items.column("item_id").combine_chunks(), kinds=["purchase"])
    first, second = (int(np.quantile(histories.ts_us, share)) for share in (0.9, 0.95))
    learned, valid = next_baskets(histories, first, second)
    _, test = next_baskets(histories, second)
    return Set("journey", items, learned, short(valid), short(test), False, "recall@10")


READ = {"beauty": read_beauty, "games": read_games, "journey": read_journey}


def cold_of(data: Set, seed: int) -> Set:
    """The same without a tenth of the items in what is learned from; asked are the cases that want one of them."""
    cold = np.zeros(data.n, bool)
    cold[np.random.default_rng(seed).permutation(data.n)[: round(COLD_SHARE * data.n)]] = True

    def without(histories: Histories) -> Histories:
        kept = (histories.rows < 0) | ~cold[histories.rows]
        h = np.repeat(np.arange(len(histories)), histories.lengths)[kept]
        start = np.concatenate([[0], np.cumsum(np.bincount(h, minlength=len(histories)))]).astype(np.int64)
        parts = (histories.rows, histories.kinds, histories.ts_us, histories.baskets, histories.queries)
        return Histories(histories.users, start, *(part[kept] for part in parts), histories.texts)

    def cases(asked: Cases, wanted_cold: bool) -> Cases:
        chosen = np.flatnonzero(cold[asked.wanted] == wanted_cold)
        some = asked.take(chosen)
        return Cases(without(some.histories), some.wanted_start, some.wanted)

    return Set(
        "cold",
        data.items,
        without(data.learned),
        cases(data.valid, False),
        cases(data.test, True),
        data.mask_seen,
        data.metric,
    )


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


@dataclass
class Trained:
    score: Score
    train_s: float
    events_per_s: float
    peak_mib: float
    epochs: int


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


# -- peers ----------------------------------------------------------------------------------------


def matrix(histories: Histories, n: int) -> sp.csr_matrix:
    h = np.repeat(np.arange(len(histories)), histories.lengths)
    found = sp.csr_matrix((np.ones(len(h), np.float32), (h, histories.rows)), shape=(len(histories), n))
    found.sum_duplicates()
    return found


def als(data: Set, budget_s: float) -> Trained:
    """implicit's ALS, the best of a small grid on the validation cases."""
    from implicit.als import AlternatingLeastSquares

    started = time.perf_counter()
    learned = matrix(data.learned, data.n)
    best: tuple[float, Any] = (-1.0, None)
    for factors in (64, 128):
        for regularization in (0.01, 0.1, 1.0):
            for alpha in (1.0, 10.0):
                if time.perf_counter() - started > budget_s:
                    break
                model = AlternatingLeastSquares(
                    factors=factors, regularization=regularization, alpha=alpha, iterations=15, random_state=0
                )
                model.fit(learned, show_progress=False)
                score = factor_scores(model, data.n)
                reached = data.judge(score, data.valid.sample(2_000, 0)).figures()[data.metric]
                best = max(best, (reached, score), key=lambda told: told[0])
    return Trained(best[1], round(time.perf_counter() - started, 1), 0, 0, 0)


def factor_scores(model: Any, n: int) -> Score:
    factors = np.asarray(model.item_factors)

    def score(histories: Histories) -> np.ndarray:
        users = model.recalculate_user(np.arange(len(histories)), matrix(histories, n))
        return users @ factors.T

    return score


def bpr(data: Set, budget_s: float) -> Trained:
    """implicit's BPR; a shopper is known by name."""
    from implicit.bpr import BayesianPersonalizedRanking

    started = time.perf_counter()
    learned = matrix(data.learned, data.n)
    row_of = {user: row for row, user in enumerate(data.learned.users)}
    best: tuple[float, Any] = (-1.0, None)
    for factors in (64, 128):
        for rate in (0.01, 0.05):
            if time.perf_counter() - started > budget_s:
                break
            model = BayesianPersonalizedRanking(
                factors=factors, learning_rate=rate, regularization=0.01, iterations=100, random_state=0
            )
            model.fit(learned, show_progress=False)
            users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)

            def score(histories: Histories, users: np.ndarray = users, items: np.ndarray = items) -> np.ndarray:
                return users[[row_of[user] for user in histories.users]] @ items.T

            reached = data.judge(score, data.valid.sample(2_000, 0)).figures()[data.metric]
            best = max(best, (reached, score), key=lambda told: told[0])
    return Trained(best[1], round(time.perf_counter() - started, 1), 0, 0, 0)


def rectools(data: Set, python: str, budget_s: float) -> Trained:
    """RecTools' SASRec of the same size, in another interpreter, stopped at the wall clock."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        test = data.test.histories
        np.savez(
            folder / "in.npz",
            learned_start=data.learned.start,
            learned_rows=data.learned.rows,
            valid_start=data.valid.histories.start,
            valid_rows=data.valid.histories.rows,
            valid_wanted=data.valid.wanted,
            test_start=test.start,
            test_rows=test.rows,
        )
        script = Path(__file__).with_name("peer_rectools.py")
        done = subprocess.run(
            [python, str(script), str(folder), str(budget_s)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"RecTools failed: {done.stderr[-2000:]}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        top = np.load(folder / "top.npy")
    place = {user: case for case, user in enumerate(test.users)}

    def score(histories: Histories) -> np.ndarray:
        out = np.full((len(histories), data.n), -np.inf, np.float32)
        for h, user in enumerate(histories.users):
            shown = top[place[user]]
            shown = shown[shown >= 0]
            out[h, shown] = -np.arange(len(shown))
        return out

    return Trained(score, said["train_s"], said["events_per_s"], said["peak_mib"], said["epochs"])


# -- the run --------------------------------------------------------------------------------------


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

    def by_text(histories: Histories) -> np.ndarray:
        return (
            np.stack([text[h.rows].mean(0) if len(h.rows) else np.zeros(text.shape[1]) for h in each(histories)])
            @ text.T
        )

    def last_text(histories: Histories) -> np.ndarray:
        return (
            np.stack([text[h.rows[-1]] if len(h.rows) else np.zeros(text.shape[1]) for h in each(histories)]) @ text.T
        )

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
    gain = found["served"].values["recall@10"] - found["own most bought"].values["recall@10"]
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
    for name, fit_peer in ({} if args.no_peers else peers_of(data, args, runs[0].train_s)).items():
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


def peers_of(data: Set, args: Any, budget_s: float) -> dict[str, Callable[[], Trained]]:
    popularity = np.bincount(data.learned.rows, minlength=data.n).astype(np.float32)
    found: dict[str, Callable[[], Trained]] = {
        "popularity": lambda: Trained(lambda h: np.tile(popularity, (len(h), 1)), 0, 0, 0, 0),
        "als": lambda: als(data, budget_s),
        "bpr": lambda: bpr(data, budget_s),
    }
    if args.rectools:
        found["rectools_sasrec"] = lambda: rectools(data, args.rectools, budget_s)
    return found


if __name__ == "__main__":
    main()
