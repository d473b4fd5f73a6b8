"""Scoring candidates for one shopper on one core: the trained model's part, and beside it everything that is counted.

A model of the default form over made-up items; what it has learned does not change what it costs. Each request is of
another shopper with a full history, so nothing is kept from one to the next.

    python -m benchmarks.bench_score [--quick] [--items 20000] [--candidates 500]
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks import common
from rayrec.config import RecommenderConfig
from rayrec.data.histories import DAY_US, Histories
from rayrec.models import bundle
from rayrec.models.features import FeatureSchema
from rayrec.models.recommender import Recommender
from rayrec.ranking import scoring
from rayrec.retrieval.base import top_k
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.schema import ITEMS

DIM, SPACE, LENGTH = 384, "bench", 50


def made_up(items: int, shoppers: int, seed: int) -> tuple[pa.Table, np.ndarray, Histories]:
    rng = np.random.default_rng(seed)
    rows = [
        {"item_id": f"{i:07}", "title": str(i), "brand": f"b{i % 500}", "price_cents": int(rng.integers(100, 10_000))}
        for i in range(items)
    ]
    text = rng.normal(size=(items, DIM)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    popular = (items * rng.random((shoppers, LENGTH)) ** 3).astype(np.int64)
    return pa.Table.from_pylist(rows, schema=ITEMS), text, Histories.of_rows(popular.tolist())


def quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--candidates", type=int, default=500)
    args = parser.parse_args()
    requests = 300 if args.quick else 3_000
    torch.set_num_threads(1)
    items, text, histories = made_up(args.items, requests, args.seed)
    schema = FeatureSchema.fit(items, DIM, 0, min_count=5, max_tokens=20_000)
    model = Recommender(RecommenderConfig(), schema, np.ones(args.items, bool), DIM)
    with tempfile.TemporaryDirectory() as directory:
        bundle.write(model, schema, SPACE, items.column("item_id"), Path(directory))
        answering = bundle.BundledModel.load(Path(directory), space=SPACE)
        table = answering.items(items, text, None)
    behavior = BehaviorIndex.of_histories(histories, args.items, 90.0)
    rng = np.random.default_rng(args.seed)
    candidates = rng.integers(0, args.items, (requests, args.candidates))
    one_by_one = [histories.take(np.array([h])) for h in range(requests)]
    alone, retrieved, whole = [], [], []
    for place, history in enumerate(one_by_one):
        started = time.perf_counter()
        shopper = answering.shoppers(history, table)[0]
        scores = table[candidates[place]] @ shopper
        top_k(scores, 24)
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        everything = table @ answering.shoppers(history, table)[0]
        top_k(everything, args.candidates)
        retrieved.append(time.perf_counter() - started)
        taste = scoring.Taste.of(history.rows, (behavior.now_us - history.ts_us) / DAY_US, lambda rows: text[rows])
        _, parts = scoring.recommend(
            taste,
            candidates[place, :200],
            behavior,
            lambda rows, taste=taste: text[rows] @ taste.vector,
            None,
            scoring.Learned(everything, 1.0),
        )
        top_k(scoring.total(parts), 24)
        whole.append(time.perf_counter() - started)
    rows_of = {
        f"model, {args.candidates} candidates": quantiles(alone),
        f"model, the whole catalog of {args.items}": quantiles(retrieved),
        "model and what is counted, its own candidates": quantiles(whole),
    }
    common.show("one shopper, one core", [{"what": name, **found} for name, found in rows_of.items()])
    common.finish(
        {
            **common.environment(["onnxruntime", "numpy"]),
            "seed": args.seed,
            "requests": requests,
            "candidates": args.candidates,
            **quantiles(alone),
            "whole_catalog": quantiles(retrieved),
            "with_counted": quantiles(whole),
        }
    )


if __name__ == "__main__":
    main()
