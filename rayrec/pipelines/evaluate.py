"""Search quality on rated queries: words, vectors, both, and both with fitted weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pyarrow import fs as pafs

from rayrec.config import FusionWeights
from rayrec.data import readers
from rayrec.engine import Engine
from rayrec.errors import SchemaError
from rayrec.evaluation import fusion
from rayrec.evaluation.metrics import bootstrap_ci, judged, ndcg
from rayrec.request import MODES
from rayrec.workspace import ENVELOPE, Workspace

SEEDS = 20
Judgements = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Relevance:
    """Figures over the rated queries with a relevant item; differences are paired, by query, to words alone.

    ndcg10: full catalog, unrated items 0. rated_only: the rated items alone, ranked. out_of_fold: mean nDCG@10
    of fitted weights on unseen queries, per seed.
    """

    queries: int
    ndcg10: dict[str, float]
    rated_only: dict[str, float]
    judged10: dict[str, float]
    hybrid_minus_bm25: float
    hybrid_minus_bm25_ci95: tuple[float, float]
    out_of_fold: list[float]
    fitted_gain_ci95: tuple[float, float]
    fitted: FusionWeights

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fitted": self.fitted.model_dump()}


def read_judgements(filesystem: pafs.FileSystem, path: str) -> Judgements:
    """query -> item id -> rating, of a file with the columns query, docid (or item_id) and rating."""
    found: Judgements = {}
    for raw in readers.read(filesystem, path):
        names = raw.table.column_names
        item = "docid" if "docid" in names else "item_id"
        if missing := {"query", item, "rating"} - set(names):
            raise SchemaError(f"{path}: no column {sorted(missing)}; judgements have query, docid and rating")
        columns = (raw.table.column(name).to_pylist() for name in ("query", item, "rating"))
        for query, docid, rating in zip(*columns, strict=True):
            try:
                found.setdefault(_text(query), {})[_text(docid)] = float(_text(rating))
            except ValueError as error:
                raise SchemaError(f"{path}: rating {_text(rating)!r} of {_text(query)!r} is no number") from error
    return {query: rated for query, rated in found.items() if max(rated.values()) > 0}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def relevance(engine: Engine, judgements: Judgements, *, seeds: int = SEEDS) -> Relevance:
    """Judge the engine on rated queries. Raises SchemaError if there are fewer than ten."""
    queries = sorted(judgements)
    if len(queries) < 10:
        raise SchemaError(f"{len(queries)} rated queries with a relevant item; at least 10 are needed")
    full: dict[str, np.ndarray] = {}
    rated: dict[str, np.ndarray] = {}
    share: dict[str, float] = {}
    for mode in MODES:
        tops = _tops(engine, queries, mode)
        full[mode] = np.array([ndcg(tops[q], judgements[q]) for q in queries])
        share[mode] = float(np.mean([judged(tops[q], judgements[q]) for q in queries]))
        rated[mode] = np.array([ndcg(_among(engine, q, mode, list(judgements[q])), judgements[q]) for q in queries])
    row_of = engine.columns.rows
    by_row = [
        {row_of.get(item, -1 - n): rating for n, (item, rating) in enumerate(judgements[q].items())} for q in queries
    ]
    grid = fusion.score_grid([engine.retrieve(q)[0] for q in queries], by_row)
    by_seed = [fusion.out_of_fold(grid, seed) for seed in range(seeds)]
    difference = full["hybrid"] - full["lexical"]
    present = engine.weights.model_copy(update={"signals": {}})
    gain = np.mean(by_seed, axis=0) - grid[fusion.GRID.index(present)]
    return Relevance(
        queries=len(queries),
        ndcg10=_named(full),
        rated_only=_named(rated),
        judged10={name: round(share[mode], 3) for name, mode in _NAMES.items()},
        hybrid_minus_bm25=round(float(difference.mean()), 4),
        hybrid_minus_bm25_ci95=_rounded(bootstrap_ci(difference)),
        out_of_fold=[round(float(scores.mean()), 4) for scores in by_seed],
        fitted_gain_ci95=_rounded(bootstrap_ci(gain)),
        fitted=fusion.GRID[fusion.fit(grid)],
    )


def ndcg_by_query(engine: Engine, judgements: Judgements, mode: str) -> np.ndarray:
    """nDCG@10 of each rated query (Q,), in their order: what a paired comparison of two engines needs."""
    tops = _tops(engine, sorted(judgements), mode)
    return np.array([ndcg(top, judgements[query]) for query, top in tops.items()])


def _tops(engine: Engine, queries: list[str], mode: str) -> dict[str, list[str]]:
    return {q: [h.item_id for h in engine.search(q, k=10, mode=mode).hits] for q in queries}


_NAMES = {"bm25": "lexical", "dense": "dense", "hybrid": "hybrid"}


def _named(scores: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: round(float(scores[mode].mean()), 4) for name, mode in _NAMES.items()}


def _rounded(interval: tuple[float, float]) -> tuple[float, float]:
    return round(interval[0], 4), round(interval[1], 4)


def _among(engine: Engine, query: str, mode: str, item_ids: list[str]) -> list[str]:
    """Only these items, as the engine ranks them; those it would never return come last."""
    found = [h.item_id for h in engine.search(query, k=1000, mode=mode, filters={"item_id": item_ids}).hits]
    return found + [item for item in item_ids if item not in set(found)]


def publish_weights(ws: Workspace, engine: Engine, result: Relevance) -> tuple[str, bool]:
    """Save fitted weights as a model version; promote them if they beat the present ones on unseen queries.

    A trained recommender that answers now goes on answering. Returns (version, promoted). The gate: the 95 % interval
    of the paired out-of-fold gain is clear of zero.
    """
    fitted = result.fitted.model_copy(update={"signals": engine.weights.signals})
    version = publish_fusion(ws, engine.versions, fitted, {"relevance.json": result.to_dict()})
    better = result.fitted_gain_ci95[0] > 0
    if better:
        ws.promote(model=version)
    return version, better


def publish_fusion(
    ws: Workspace, versions: Mapping[str, Any], weights: FusionWeights, reports: Mapping[str, Any]
) -> str:
    """A model version with other weights for searches, and the recommender of the model that answers now.

    versions: of the index and model that answer; reports: name of a JSON file -> what it says.
    """
    index, present = (versions[kind] for kind in ("index", "model"))
    with ws.stage("models") as staged:
        said: dict[str, Any] = {}
        if present is not None and "recommender" in (before := ws.manifest("models", str(present))):
            for name in set(before["files"]) - set(reports):
                staged.write_bytes(name, ws.read_bytes("models", str(present), name))
            said = {key: value for key, value in before.items() if key not in ENVELOPE}
        for name, report in reports.items():
            staged.write_bytes(name, json.dumps(report).encode())
        encoder = said.get("encoder") or ws.manifest("indexes", str(index))["encoder"]
        return staged.publish({**said, "encoder": encoder, "fusion": weights.model_dump()})
