"""Fitting what a search weighs: shoppers' clicks and purchases in, weights of the signals out, promoted by the gate.

Signals are reckoned as they were before each answer: what shoppers did later, that very purchase included, would tell
on itself. So counts are of the events before the newest part of the time, a shopper's history ends at the answer, and a
trained model is only heard about events that it did not learn from.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec import encoder_exports
from rayrec.config import FitRankingConfig, FusionWeights, Signal
from rayrec.data.histories import Histories, next_baskets
from rayrec.engine import Engine, fusion_weights
from rayrec.errors import NotFound, SchemaError
from rayrec.evaluation.report import gate
from rayrec.fitting.clicks import Impressions, choose
from rayrec.pipelines.evaluate import publish_fusion
from rayrec.pipelines.event_log import newest_events, read_events
from rayrec.pipelines.pool import Progress
from rayrec.ranking import scoring
from rayrec.retrieval.base import top_k
from rayrec.retrieval.behavior import BehaviorIndex
from rayrec.scorer import PERSONAL
from rayrec.shoppers import Did
from rayrec.workspace import Workspace

SIGNALS: tuple[Signal, ...] = get_args(Signal)
METRIC = "ndcg"
FUSED, WORDS, PRESENT = "fused ranks", "words alone", "present weights"
_ACTS = ("view", "click", "add_to_cart", "purchase")


@dataclass(frozen=True)
class RankingSummary:
    """model: a version under models/, None where nothing was worth publishing. signals: name -> weight.

    answers, queries: that were learned from; seen: how often each place is looked at, from the first. ndcg: of queries
    that were not learned from, by the fitted weights and by their rivals.
    """

    model: str | None
    promoted: bool
    source: str
    answers: int
    queries: int
    signals: dict[Signal, float]
    seen: list[float]
    ndcg: dict[str, float]
    verdict: dict[str, Any]
    seconds: float
    generation: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """One answer: to what query, who asked when, after which history; what was shown, best first, None for the best
    that would be; what was clicked and bought of it.
    """

    query: str
    history: Histories
    ts_us: int
    shown: list[int] | None
    clicked: frozenset[int]
    bought: frozenset[int]


def fit_ranking(config: FitRankingConfig, ws: Workspace, *, on_progress: Progress | None = None) -> RankingSummary:
    """Learn from the newest events; promote beside the index that answers. on_progress: told answers done.

    Raises NotFound without an index or events, SchemaError if there is too little to learn from.
    """
    started = time.perf_counter()
    pointer = ws.current()
    if pointer.index is None:
        raise NotFound(f"no index answers in {ws.uri} yet; run 'rayrec index' first")
    events = read_events(ws, newest_events(ws))
    weights = fusion_weights(ws, pointer.model)
    fused = weights.model_copy(update={"signals": {}})
    engine, histories, since_us = as_of(ws, pointer.index, pointer.model, fused, events, config.held_back)
    source, asked = answers(config, events, histories, engine, since_us)
    if engine.scorer.learns and told(asked) < config.least:  # the model learned until too late to be heard
        engine, histories, since_us = as_of(ws, pointer.index, None, fused, events, config.held_back)
        source, asked = answers(config, events, histories, engine, since_us)
    if told(asked) < config.least:
        raise SchemaError(
            f"{told(asked)} answers ({source}) that somebody clicked in, at least {config.least} are needed: searches "
            "must have query, request_id and shown, clicks on them their request_id; or categories and purchases"
        )
    rng = np.random.default_rng(config.seed)
    asked = [asked[i] for i in rng.permutation(len(asked))[: config.answers]]
    names, shown = impressions(engine, asked, config.shown, on_progress)
    present = np.array([weights.signals.get(name, 0.0) for name in names])
    rivals = {FUSED: shown.x[:, 0], WORDS: shown.x[:, 1 + names.index("bm25")]}
    if present.any():
        rivals[PRESENT] = shown.x[:, 0] + shown.x[:, 1:] @ present
    fitted = choose(shown, rivals, config.seed)
    verdict = gate(METRIC, fitted.after, fitted.rivals)
    signals: dict[Signal, float] = {}
    seen: list[float] = []
    if fitted.ranking is not None:
        signals = {name: round(float(w), 5) for name, w in zip(names, fitted.ranking.weights, strict=True)}
        seen = [round(float(share), 4) for share in fitted.ranking.seen]
    summary = RankingSummary(
        None,
        verdict.promoted and bool(signals),
        source,
        len(np.unique(shown.answer)),
        len(fitted.queries),
        signals,
        seen,
        {name: round(float(ndcg.mean()), 4) for name, ndcg in {"fitted": fitted.after, **fitted.rivals}.items()},
        verdict.to_dict(),
        round(time.perf_counter() - started, 1),
    )
    if not signals:
        return summary
    new = FusionWeights(**{**weights.model_dump(), "signals": signals})
    version = publish_fusion(ws, vars(pointer), new, {"ranking.json": summary.to_dict()})
    generation = ws.promote(model=version).generation if summary.promoted else None
    return replace(summary, model=version, generation=generation)


def answers(
    config: FitRankingConfig, events: pa.Table, histories: Histories, engine: Engine, since_us: int
) -> tuple[str, list[Asked]]:
    """(where from, answers since a moment)."""
    clicks = [] if config.source == "baskets" else list(from_clicks(events, histories, engine, since_us))
    if config.source == "clicks" or told(clicks) >= config.least:
        return "clicks", clicks
    return "baskets", list(from_baskets(histories, engine, since_us))


def told(asked: list[Asked]) -> int:
    """Answers that somebody clicked in."""
    return sum(bool(answer.clicked) for answer in asked)


def as_of(
    ws: Workspace, index: str, model: str | None, weights: FusionWeights, events: pa.Table, held_back: float
) -> tuple[Engine, Histories, int]:
    """(the engine as if only events before a moment were known, everybody's histories, that moment).

    The engine orders by `weights`. A trained model sets the moment, if it says until when it learned; of
    one that does not say, nothing is taken.
    """
    manifest = {} if model is None else ws.manifest("models", model)
    until = manifest.get("recommender", {}).get("learned_until_us")
    ts = events.column("ts_us").to_numpy()
    since_us = int(np.quantile(ts, 1 - held_back)) if until is None else until + 1
    ids = ws.read_parquet("indexes", index, "items.parquet", columns=["item_id"]).column("item_id").combine_chunks()
    half_life = ws.manifest("indexes", index)["config"]["half_life_days"]
    before = BehaviorIndex.build(events.filter(pa.array(ts < since_us)), ids, half_life)
    histories = Histories.of(events, ids).compact()
    asked = before.asked
    if histories.texts and until is not None:
        asked = encoder_exports.open_for(ws, ws.manifest("indexes", index)["encoder"]).encode(histories.texts, "query")
    behavior = replace(before, histories=histories, asked=asked)
    engine = Engine.load(ws, index, None if until is None else model, weights=weights, behavior=behavior)
    return engine, histories, since_us


def from_clicks(events: pa.Table, histories: Histories, engine: Engine, since_us: int) -> Iterator[Asked]:
    """Answers to searches since a moment, and what shoppers did with them."""
    row_of = engine.columns.rows
    newer = events.filter(pc.greater_equal(events.column("ts_us"), since_us))
    newer = newer.filter(pc.is_valid(newer.column("request_id")))
    did: dict[str, dict[str, set[int]]] = {}
    acts = newer.filter(pc.is_in(newer.column("type"), pa.array(_ACTS)))
    for request_id, kind, item_id in zip(
        *(acts.column(name).to_pylist() for name in ("request_id", "type", "item_id")), strict=True
    ):
        if item_id in row_of:
            of_answer = did.setdefault(request_id, {"clicked": set(), "bought": set()})
            of_answer["clicked"].add(row_of[item_id])
            if kind == "purchase":
                of_answer["bought"].add(row_of[item_id])
    searches = newer.filter(pc.and_(pc.equal(newer.column("type"), "search"), pc.is_valid(newer.column("shown"))))
    for search in searches.to_pylist():
        if not search["query"]:
            continue
        shown = [row_of.get(item_id, -1) for item_id in search["shown"]]
        reactions = did.get(search["request_id"], {"clicked": set(), "bought": set()})
        yield Asked(
            search["query"],
            until(histories.of_user(search["user_id"] or ""), search["ts_us"]),
            search["ts_us"],
            shown,
            frozenset(reactions["clicked"]),
            frozenset(reactions["bought"]),
        )


def until(history: Histories, ts_us: int) -> Histories:
    """One shopper's events before a moment."""
    before = np.array([int(np.searchsorted(history.ts_us, ts_us))])
    return history.window(np.array([0]), np.array([0]), before)


def from_baskets(histories: Histories, engine: Engine, since_us: int) -> Iterator[Asked]:
    """For each shopper's first basket since a moment: its items' categories, as if they had been searched for."""
    categories = engine.columns.items.column("category").to_pylist()
    _, cases = next_baskets(histories, since_us)
    for case in range(len(cases)):
        wanted: dict[str, set[int]] = {}
        for row in cases.wanted[cases.wanted_start[case] : cases.wanted_start[case + 1]]:
            path = [name for name in categories[row] or () if name]
            if path:
                wanted.setdefault(path[-1].lower(), set()).add(int(row))
        history = cases.histories.take(np.array([case])) if wanted else None
        for query, rows in sorted(wanted.items()):
            assert history is not None
            yield Asked(query, history, since_us, None, frozenset(rows), frozenset(rows))


def impressions(
    engine: Engine, asked: list[Asked], shown: int, on_progress: Progress | None = None
) -> tuple[list[Signal], Impressions]:
    """(names of the signals that there are, impressions of what was shown, or of the best `shown`)."""
    pictures = engine.shards.contents()[1]
    numbers: dict[str, int] = {}
    parts: list[tuple[np.ndarray, ...]] = []
    absent = {"image"} if pictures is None else set()
    absent |= set() if engine.scorer.learns else {"learned"}
    names = [name for name in SIGNALS if name not in absent]
    began = time.perf_counter()
    for number, answer in enumerate(asked):
        if on_progress is not None:
            on_progress(number + 1, len(asked), (number + 1) / (time.perf_counter() - began))
        probe, scored = engine.weighed(answer.query)
        if probe is None:
            continue
        fused = scoring.total(scored.parts)
        best = top_k(fused, PERSONAL)
        rows = scored.candidates.rows[best]
        found: Mapping[str, np.ndarray] = {
            **{
                name: values[best]
                for name, values in engine.scorer.query_signals(probe, scored.candidates, pictures).items()
            },
            **engine.scorer.shopper_signals(Did(answer.history, engine.scorer.behavior.asked, answer.ts_us), rows),
        }
        x = np.stack([fused[best], *(found.get(name, np.zeros(len(best))) for name in names)], 1)
        if answer.shown is None:
            at, place = np.arange(min(shown, len(best))), np.zeros(min(shown, len(best)), np.int64)
        else:
            of_row = {row: i for i, row in enumerate(rows.tolist())}
            pairs = [(of_row[row], p + 1) for p, row in enumerate(answer.shown) if row in of_row]
            at, place = np.array(pairs, np.int64).reshape(-1, 2).T
        clicked = np.isin(rows[at], list(answer.clicked))
        bought = np.isin(rows[at], list(answer.bought))
        size, query = len(at), numbers.setdefault(answer.query, len(numbers))
        parts.append((x[at], place, clicked, bought, np.full(size, number), np.full(size, query)))
    return names, Impressions(*(np.concatenate(each) for each in zip(*parts, strict=True)))
