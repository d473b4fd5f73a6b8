"""From the runs of bench_serve to its rows and figures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.serve_load import Point

CONNECTIONS = (1, 32)


@dataclass(frozen=True)
class Run:
    """One server, started once and loaded by one stream. degraded, failed: answers, of all points together."""

    points: dict[int, Point]
    rss_mib: int
    pss_mib: int
    degraded: int
    failed: int
    repeated: bool


Runs = dict[str, dict[str, list[Run]]]
"""table -> server -> its runs, a trial each"""


def median_point(runs: Sequence[Run], connections: int) -> Point:
    """The median trial by requests a second; of two, the slower one."""
    ranked = sorted((run.points[connections] for run in runs), key=lambda point: point.rps)
    return ranked[(len(ranked) - 1) // 2]


def row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """A row of a table; latencies in ms."""
    told = figures(runs)
    values: dict[str, Any] = {"server": name}
    for connections in CONNECTIONS:
        point = told[f"c{connections}"]
        values |= {f"c{connections} {each}": point[f"{each}_ms"] for each in ("p50", "p95", "p99")}
        values[f"c{connections} rps"] = point["rps"]
    values |= {"RSS MiB": told["rss_mib"], "PSS MiB": told["pss_mib"]}
    return {**values, "failed": told["failed"], "degraded": told["degraded"]}


def figures(runs: Sequence[Run]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for connections in CONNECTIONS:
        point = median_point(runs, connections)
        told[f"c{connections}"] = {
            "p50_ms": point.p50_ms,
            "p95_ms": point.p95_ms,
            "p99_ms": point.p99_ms,
            "rps": point.rps,
            "rps_trials": [run.points[connections].rps for run in runs],
        }
    return {
        **told,
        "rss_mib": round(statistics.median(run.rss_mib for run in runs)),
        "pss_mib": round(statistics.median(run.pss_mib for run in runs)),
        "failed": sum(run.failed for run in runs),
        "degraded": sum(run.degraded for run in runs),
    }


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """fused over each peer: requests a second at 32 connections, median latency at one."""
    fused = table["fused"]
    told = {}
    for name, suffix in (("peer", ""), ("tuned", "_tuned")):
        told[f"c32_rps{suffix}"] = round(fused["c32"]["rps"] / table[name]["c32"]["rps"], 3)
        told[f"c1_p50{suffix}"] = round(fused["c1"]["p50_ms"] / table[name]["c1"]["p50_ms"], 3)
    return told
