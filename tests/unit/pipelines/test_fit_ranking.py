"""From a shop's events to what its searches weigh: clicks as shoppers make them, and baskets where there are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec import encoder_exports
from rayrec.config import FitRankingConfig, FusionWeights, SourceConfig
from rayrec.engine import Engine
from rayrec.errors import NotFound, SchemaError
from rayrec.pipelines import fit_ranking as pipeline
from rayrec.pipelines.fit_ranking import fit_ranking
from rayrec.pipelines.index import publish_events
from rayrec.workspace import Workspace
from tests.fakes import (
    DAY_US,
    NOUNS,
    NOW_US,
    FakeEncoder,
    build_engine,
    make_catalog,
    make_events,
    publish_index,
    publish_model,
)

SEEN = 1 / np.arange(1, 11)
QUERIES = [
    f"{adjective} {noun}" for adjective in ("small", "large", "organic") for both in NOUNS.values() for noun in both
]
CONFIG = FitRankingConfig(least=50, answers=1_000, held_back=0.9)


@pytest.fixture(autouse=True)
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_exports, "open_for", lambda ws, encoder, **_: FakeEncoder())
    monkeypatch.setattr(encoder_exports, "open_images", lambda ws, encoder: None)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build_engine(tmp_path_factory.mktemp("shop"), make_catalog())


def clicks(engine: Engine, likes: Any, answers: int = 500) -> list[dict[str, Any]]:
    """Events of shoppers who look at place p of what they are shown 1 time in p, and click what they like.

    likes: item -> chance of a click by who sees it.
    """
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for answer in range(answers):
        query = QUERIES[rng.integers(len(QUERIES))]
        hits = engine.search(query, k=30).hits
        noisy = sorted(hits, key=lambda hit: -(hit.score + 0.05 * rng.gumbel()))[: len(SEEN)]
        ts_us = NOW_US - (answers - answer) * DAY_US // 50
        about = {"user_id": f"u{answer % 40}", "request_id": f"r{answer}"}
        shown = [hit.item_id for hit in noisy]
        records.append({**about, "type": "search", "query": query, "shown": shown, "ts_us": ts_us})
        for place, hit in enumerate(noisy):
            if rng.random() < SEEN[place] * likes(hit.item):
                act = {**about, "item_id": hit.item_id, "ts_us": ts_us + place + 1, "position": place + 1}
                records.append({**act, "type": "click"})
                if rng.random() < 0.3:
                    records.append({**act, "type": "purchase"})
    return records


def shop(root: Path, records: list[dict[str, Any]]) -> Workspace:
    ws = Workspace.open(root)
    events = make_events(records).sort_by("ts_us")
    publish_events(events, SourceConfig(path="events"), ws)
    ws.promote(index=publish_index(ws, make_catalog(), events))
    return ws


def cheap(item: dict[str, Any]) -> float:
    return 0.9 if (item["price_cents"] or 1_000) < 600 else 0.15


@pytest.fixture(scope="module")
def thrifty(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose shoppers click what is cheap."""
    root = tmp_path_factory.mktemp("thrifty")
    shop(root, clicks(engine, cheap))
    return root


def copy(root: Path, tmp_path: Path) -> Workspace:
    import shutil

    shutil.copytree(root, tmp_path / "ws")
    return Workspace.open(tmp_path / "ws")


def test_a_shop_of_thrifty_shoppers_shows_cheap_items_first(thrifty: Path, tmp_path: Path) -> None:
    ws = copy(thrifty, tmp_path)
    told: list[int] = []

    found = fit_ranking(CONFIG, ws, on_progress=lambda done, total, rate: told.append(done))

    assert found.promoted
    assert found.source == "clicks"
    assert found.signals["price"] < -0.05
    assert found.seen[:5] == pytest.approx(SEEN[:5], abs=0.12)
    assert found.ndcg["fitted"] > max(found.ndcg["fused ranks"], found.ndcg["words alone"])
    assert told[-1] == found.answers
    before, after = Engine.load(ws, ws.current().index, None), Engine.open(ws)
    assert after.versions["model"] == found.model == ws.current().model

    def price(engine: Engine, query: str) -> float:
        return np.mean([hit.item["price_cents"] or 1_000 for hit in engine.search(query, k=5).hits])

    assert np.mean([price(after, q) for q in QUERIES]) < 0.8 * np.mean([price(before, q) for q in QUERIES])


def test_again_on_the_same_events_nothing_is_better_than_what_answers(thrifty: Path, tmp_path: Path) -> None:
    ws = copy(thrifty, tmp_path)
    first = fit_ranking(CONFIG, ws)

    again = fit_ranking(CONFIG, ws)

    assert not again.promoted
    assert {gain["opponent"] for gain in again.verdict["gains"]} == {"fused ranks", "words alone", "present weights"}
    assert ws.current().model == first.model


def test_clicks_that_follow_the_order_shown_change_nothing(engine: Engine, tmp_path: Path) -> None:
    ws = shop(tmp_path / "ws", clicks(engine, lambda item: 0.5))

    found = fit_ranking(CONFIG, ws)

    assert not found.promoted
    assert ws.current().model is None


def test_without_clicks_baskets_tell_that_shoppers_want_what_they_had(tmp_path: Path) -> None:
    items = make_catalog()
    ids = [row["item_id"] for row in items.to_pylist() if len(row["category"] or []) > 1]
    rng = np.random.default_rng(0)
    own = {user: rng.choice(ids, 12, replace=False) for user in range(120)}
    records = [
        {"user_id": f"u{user}", "item_id": item, "ts_us": NOW_US - day * DAY_US, "session_id": f"{user}-{day}"}
        for day in range(20, 0, -1)
        for user in own
        for item in rng.choice(own[user], 4, replace=False)
    ]
    ws = shop(tmp_path / "ws", records)

    found = fit_ranking(FitRankingConfig(answers=300, held_back=0.2), ws)

    assert found.source == "baskets"
    assert found.seen == [1.0]
    assert found.signals["repeat"] > 0.2
    assert found.promoted
    user = "u7"
    query = make_catalog().filter(items.column("item_id").combine_chunks().to_numpy(zero_copy_only=False) == own[7][0])
    category = query.column("category")[0].as_py()[-1].lower()
    mine, anyones = (Engine.open(ws).search(category, k=5, user_id=who).hits for who in (user, None))
    assert len({h.item_id for h in mine} & set(own[7])) > len({h.item_id for h in anyones} & set(own[7]))


def test_a_history_ends_before_the_answer(thrifty: Path, engine: Engine) -> None:
    ws = Workspace.open(thrifty)
    events = ws.read_parquet("events", ws.latest("events"))
    as_of, histories, since_us = pipeline.as_of(ws, ws.current().index, None, FusionWeights(), events, 0.5)

    answers = list(pipeline.from_clicks(events, histories, as_of, since_us))

    assert 200 < len(answers) < 300
    assert all((answer.history.ts_us < answer.ts_us).all() and answer.ts_us >= since_us for answer in answers)
    assert any(answer.clicked & set(answer.history.rows.tolist()) for answer in answers)  # of another answer, before
    newest = max(answers, key=lambda answer: answer.ts_us)
    assert len(newest.history.rows) > 5
    assert as_of.scorer.behavior.now_us < since_us
    assert as_of.weights.signals == {}


def test_a_trained_model_is_heard_only_about_what_it_did_not_learn(thrifty: Path, tmp_path: Path) -> None:
    ws = copy(thrifty, tmp_path)
    ws.promote(model=publish_model(ws, make_catalog()))
    assert "learned" not in fit_ranking(CONFIG, ws).signals

    until_us = NOW_US - 8 * DAY_US
    ws.promote(model=publish_model(ws, make_catalog(), learned_until_us=until_us))
    found = fit_ranking(CONFIG, ws)

    assert "learned" in found.signals
    assert found.answers < 410  # the last eight of ten days
    said = ws.manifest("models", str(found.model))
    assert said["recommender"]["learned_until_us"] == until_us
    assert FusionWeights.model_validate(said["fusion"]).signals == found.signals
    assert len(Engine.load(ws, str(ws.current().index), found.model).recommend(user_id="u1").hits) > 0


def test_a_model_that_learned_until_the_end_is_left_out_rather_than_nothing_learned(
    thrifty: Path, tmp_path: Path
) -> None:
    ws = copy(thrifty, tmp_path)
    ws.promote(model=publish_model(ws, make_catalog(), learned_until_us=NOW_US - 1))

    found = fit_ranking(CONFIG, ws)

    assert found.promoted
    assert "learned" not in found.signals


def test_too_little_says_what_is_needed(thrifty: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"answers \(clicks\) that somebody clicked in, at least 9000 are needed"):
        fit_ranking(FitRankingConfig(source="clicks", least=9_000), Workspace.open(thrifty))
    with pytest.raises(NotFound, match="no index answers"):
        fit_ranking(FitRankingConfig(), Workspace.open(tmp_path / "empty"))


def test_items_that_left_the_catalog_keep_the_place_of_the_others(engine: Engine, tmp_path: Path) -> None:
    known = [hit.item_id for hit in engine.search("frozen pizza", k=3).hits]
    search = {"type": "search", "query": "frozen pizza", "request_id": "r", "shown": [known[0], "gone", known[2]]}
    click = {"type": "click", "item_id": known[2], "request_id": "r"}
    ws = shop(tmp_path / "ws", [{"item_id": known[0], "ts_us": NOW_US - DAY_US}, search, click])
    events = ws.read_parquet("events", ws.latest("events"))
    as_of, histories, since_us = pipeline.as_of(ws, ws.current().index, None, FusionWeights(), events, 0.5)

    _, shown = pipeline.impressions(as_of, list(pipeline.from_clicks(events, histories, as_of, since_us)), 50)

    assert shown.place.tolist() == [1, 3]
    assert shown.clicked.tolist() == [False, True]
    assert not shown.bought.any()
