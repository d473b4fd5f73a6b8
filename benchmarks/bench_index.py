"""Dense indexes: build time, recall@10 against exact search, queries per second, bytes; and under filters.

The vectors are real title embeddings and mixtures of them: each further vector is a random pair of real
ones, blended, plus noise, so that neighbourhoods stay like a catalog's. Queries are held out. One thread
answers one query at a time; all cores build. hnswlib is the peer, with the same M and efforts.

    python -m benchmarks.bench_index [--quick]
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import hnswlib
import numpy as np

from benchmarks import common
from rayrec import encoder_exports
from rayrec.config import EncoderConfig
from rayrec.data import catalog, complete_journey
from rayrec.encoders.onnx import OnnxTextEncoder
from rayrec.retrieval import dense
from rayrec.retrieval.dense import DenseIndex
from rayrec.workspace import Workspace

_SHARES = (0.5, 0.1, 0.01, 0.001)
_K = 10


def vectors(n: int, queries: int, real: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n, D) and (queries, D), L2-normalised."""
    rng = np.random.default_rng(seed)
    texts = sorted(set(catalog.item_texts(complete_journey.tables()[0])))
    texts = [texts[i] for i in rng.permutation(len(texts))[: real + queries]]
    with tempfile.TemporaryDirectory() as root:
        ws = Workspace.open(root)
        directory = ws.local_copy("encoders", encoder_exports.ensure(ws, EncoderConfig()))
        found = OnnxTextEncoder(directory, threads=len(os.sched_getaffinity(0))).encode(texts)
    held, real_ones = found[:queries], found[queries:]
    pairs = rng.integers(0, len(real_ones), (2, n - len(real_ones)))
    blend = rng.uniform(0.5, 1.0, (n - len(real_ones), 1)).astype(np.float32)
    mixed = blend * real_ones[pairs[0]] + (1 - blend) * real_ones[pairs[1]]
    mixed += rng.normal(0, 0.3 / np.sqrt(mixed.shape[1]), mixed.shape).astype(np.float32)
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.concatenate([real_ones, mixed]), held


def exact(base: np.ndarray, queries: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Rows (Q, K) by brute force."""
    scores = queries @ base.T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    top = np.argpartition(-scores, _K, axis=1)[:, :_K]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1), 1)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(t)) / _K for f, t in zip(found.tolist(), truth.tolist(), strict=True)]))


def rate(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Queries per second, one at a time; the median of three passes."""
    search(queries[:1])
    passes = []
    for _ in range(3):
        started = time.perf_counter()
        for query in queries:
            search(query[None])
        passes.append(len(queries) / (time.perf_counter() - started))
    return float(np.median(passes))


def measure(kind: str, base: np.ndarray, queries: np.ndarray, masks: dict[float, np.ndarray], truths: dict) -> dict:
    started = time.perf_counter()
    index = DenseIndex.build(base, kind, threads=len(os.sched_getaffinity(0)))
    build_s = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        index.save(Path(directory))
        size = sum(file.stat().st_size for file in Path(directory).iterdir())
    row = {
        "index": kind,
        "build_s": round(build_s, 1),
        "mib": round(size / 2**20),
        "recall10": round(recall(index.search(queries, _K).rows, truths[1.0]), 4),
        "qps": round(rate(lambda q: index.search(q, _K), queries)),
    }
    for share, mask in masks.items():
        found = np.concatenate([index.search(query[None], _K, mask).rows for query in queries])
        row[f"recall10_at_{share:.1%}"] = round(recall(found, truths[share]), 4)
        row[f"qps_at_{share:.1%}"] = round(rate(lambda q, mask=mask: index.search(q, _K, mask), queries[:100]))
    return row


def peer(base: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    index = hnswlib.Index(space="ip", dim=base.shape[1])
    started = time.perf_counter()
    index.init_index(len(base), M=dense._HNSW_M, ef_construction=dense._EF_BUILD, random_seed=1)
    index.add_items(base, num_threads=len(os.sched_getaffinity(0)))
    build_s = time.perf_counter() - started
    index.set_ef(dense._EF_SEARCH)
    index.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        index.save_index(f"{directory}/index")
        size = os.path.getsize(f"{directory}/index")
    return {
        "index": "hnswlib (peer)",
        "build_s": round(build_s, 1),
        "mib": round(size / 2**20),
        "recall10": round(recall(index.knn_query(queries, _K)[0].astype(np.int64), truth), 4),
        "qps": round(rate(lambda q: index.knn_query(q, _K), queries)),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--n", type=int, default=None, help="vectors (default 200,000; quick 20,000)")
    args = parser.parse_args()
    n = args.n or (20_000 if args.quick else 200_000)
    base, queries = vectors(n, 200, min(10_000, n // 2), args.seed)
    rng = np.random.default_rng(args.seed + 1)
    masks = {share: rng.random(n) < share for share in _SHARES}
    truths = {1.0: exact(base, queries), **{share: exact(base, queries, mask) for share, mask in masks.items()}}
    rows = [measure(kind, base, queries, masks, truths) for kind in ("flat", "hnsw", "ivfpq")]
    rows.append(peer(base, queries, truths[1.0]))
    plain = ("index", "build_s", "mib", "recall10", "qps")
    common.show(f"{n} vectors of {base.shape[1]}, {len(queries)} queries", [{k: row[k] for k in plain} for row in rows])
    filtered = [{k: v for k, v in row.items() if k == "index" or "_at_" in k} for row in rows[:3]]
    common.show("under a filter that keeps a share of the items", filtered)
    common.finish({**common.environment(["faiss-cpu", "hnswlib"]), "seed": args.seed, "n": n, "indexes": rows})


if __name__ == "__main__":
    main()
