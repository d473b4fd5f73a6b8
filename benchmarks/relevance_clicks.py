"""What bench_relevance learns from simulated clicks: shoppers who like what is rated high, and look at place p 1 in p.

The clicks are on four fifths of the rated queries; the ranking fitted to them is judged by the ratings of the rest.
"""

from typing import Any

import numpy as np

from rayrec import Engine
from rayrec.evaluation.click_simulator import simulate
from rayrec.evaluation.metrics import bootstrap_ci, ndcg
from rayrec.fitting import clicks
from rayrec.pipelines.evaluate import Judgements
from rayrec.ranking import scoring

SEEN = 1 / np.arange(1, 21)
SHUFFLE = 0.05
SIGNALS = ("bm25", "cosine")


def learned_from_clicks(engine: Engine, judgements: Judgements, answers: int, seeds: int) -> dict[str, Any]:
    """nDCG@10 out of fold, its paired gain over the fused ranks, and how well the shares of places are recovered."""
    queries = sorted(judgements)
    x, rows, liked, buys = [], [], [], []
    for query in queries:
        probe, scored = engine.weighed(query)
        assert probe is not None
        signals = engine.scorer.query_signals(probe, scored.candidates)
        x.append(np.stack([scoring.total(scored.parts), *(signals[name] for name in SIGNALS)], 1))
        ids = [record["item_id"] for record in engine.columns.records(scored.candidates.rows)]
        rating = np.array([judgements[query].get(item, 0.0) for item in ids])
        rows.append(ids)
        liked.append(0.05 + 0.8 * (2**rating - 1) / 7)
        buys.append(0.1 + 0.1 * rating)

    def judged(ranking: clicks.Ranking | None, q: int) -> float:
        scores = x[q][:, 0] if ranking is None else ranking.score(x[q])
        order = np.argsort(-scores, kind="stable")[:10]
        return ndcg([rows[q][place] for place in order], judgements[queries[q]])

    fused = np.array([judged(None, q) for q in range(len(queries))])
    after: dict[str, list[np.ndarray]] = {"corrected": [], "not corrected": []}
    error: list[float] = []
    weights: list[np.ndarray] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        found = {name: np.zeros(len(queries)) for name in after}
        for fold in np.array_split(rng.permutation(len(queries)), 5):
            rest = np.setdiff1d(np.arange(len(queries)), fold)
            logged = simulate(
                *([each[q] for q in rest] for each in (x, liked, buys)), SEEN, answers, rng, shuffle=SHUFFLE
            )
            ranked = {"corrected": clicks.fit_best(logged, seed)}
            ranked["not corrected"] = clicks.fit(logged, clicks.RIDGES[0], by_place=False)
            for name, ranking in ranked.items():
                found[name][fold] = [judged(ranking, q) for q in fold]
            seen = clicks.fit(logged, clicks.RIDGES[0]).seen
            error.append(float(np.abs(seen - SEEN[: len(seen)]).max()))
            if ranked["corrected"] is not None:
                weights.append(ranked["corrected"].weights)
        for name, values in found.items():
            after[name].append(values)
    gain = np.mean(after["corrected"], 0) - fused
    return {
        "answers": answers,
        "fused": round(float(fused.mean()), 4),
        "by_seed": [round(float(values.mean()), 4) for values in after["corrected"]],
        "not_corrected_by_seed": [round(float(values.mean()), 4) for values in after["not corrected"]],
        "gain": round(float(gain.mean()), 4),
        "gain_ci95": [round(edge, 4) for edge in bootstrap_ci(gain)],
        "seen_error": round(max(error), 4),
        "learned": f"{len(weights)} of {5 * seeds}",
        "weights": dict(zip(SIGNALS, np.mean(weights, 0).round(3).tolist(), strict=True)) if weights else {},
    }
