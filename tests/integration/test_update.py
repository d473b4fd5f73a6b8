"""The model that answers learns what came since: through a kill, from the service's own log, and only once."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rayrec import Engine
from rayrec.config import (
    EmbedConfig,
    IndexConfig,
    RecommenderConfig,
    SourceConfig,
    TrainConfig,
    TrainingConfig,
    UpdateConfig,
)
from rayrec.pipelines.embed import embed
from rayrec.pipelines.event_log import newest_events, read_events
from rayrec.pipelines.index import index
from rayrec.pipelines.recommending import evaluate_recommendations, read_held_out
from rayrec.pipelines.train import train
from rayrec.pipelines.update import update
from rayrec.store import file_in, open_store
from rayrec.workspace import Workspace
from tests.integration.conftest import encoder_of

pytestmark = [pytest.mark.ray, pytest.mark.model]

DAY_US = 86_400_000_000
OLD, ITEMS, SHOPPERS = 40, 60, 300


def acts(first_item: int, items: int, day: int, first_shopper: int) -> list[dict[str, Any]]:
    """After each of some items shoppers buy the next, around: a few days of each shopper."""
    rng = np.random.default_rng(day)
    found = []
    for shopper in range(first_shopper, first_shopper + SHOPPERS):
        begin = int(rng.integers(items))
        for place in range(int(rng.integers(4, 9))):
            found.append(
                {
                    "event_id": f"{day}-{shopper}-{place}",
                    "user_id": f"u{shopper:03d}",
                    "type": "purchase",
                    "item_id": f"i{first_item + (begin + place) % items:03d}",
                    "ts_us": (day + place) * DAY_US + shopper,
                }
            )
    return found


@pytest.fixture
def ws(cluster: str, model: str, tmp_path: Path) -> Workspace:
    """A shop of 60 items, of which shoppers touched the first 40."""
    titles = [f"i{n:03d},thing {n},b{n % 4},{100 + n}" for n in range(ITEMS)]
    (tmp_path / "items.csv").write_text("\n".join(["item_id,title,brand,price_cents", *titles]))
    rows = [",".join(str(value) for value in act.values()) for act in acts(0, OLD, day=0, first_shopper=0)]
    (tmp_path / "events.csv").write_text("\n".join(["event_id,user_id,type,item_id,ts_us", *rows]))
    ws = Workspace.open(tmp_path / "ws")
    embed(EmbedConfig(source=SourceConfig(path=str(tmp_path / "items.csv")), encoder=encoder_of(model)), ws)
    index(IndexConfig(events=SourceConfig(path=str(tmp_path / "events.csv")), encoder=encoder_of(model)), ws)
    return ws


def train_config(model: str) -> TrainConfig:
    return TrainConfig(
        encoder=encoder_of(model),
        model=RecommenderConfig(dim=16, length=10, dropout=0, content_dropout=0, id_dropout=0),
        training=TrainingConfig(
            batch=64, learning_rate=1e-2, warmup=0, weight_decay=0, max_gradient_norm=10, patience=99, dropout=0
        ),
        epochs=8,
    )


def test_new_events_are_learned_once_through_a_kill_and_nothing_is_forgotten(ws: Workspace, model: str) -> None:
    trained = train(train_config(model), ws)
    assert trained.promoted
    assert ws.manifest("models", trained.model)["events_offset"] == 0
    config = UpdateConfig(epochs=8, learning_rate=5e-3, patience=99)
    assert update(config, ws).reason == "no new events since the model that answers"

    store = open_store(file_in(ws.root))
    late = {"event_id": "late", "user_id": "stranger", "type": "purchase", "item_id": "i001", "ts_us": 5}
    store.append([*acts(OLD, ITEMS - OLD, day=20, first_shopper=SHOPPERS), late])
    end = store.end()
    few = update(config.model_copy(update={"least": 10_000}), ws)
    assert (few.promoted, few.model, few.new_events) == (False, None, end)
    assert few.reason == f"{end} new events, fewer than 10000"
    unjudged = update(config.model_copy(update={"held_out": 0.01}), ws)
    assert (unjudged.promoted, unjudged.model) == (False, None)
    assert unjudged.reason.endswith("new cases to judge by, at least 20 are needed")
    told: list[dict[str, Any]] = []
    killed: list[int] = []

    def kill(progress: dict[str, Any]) -> None:
        told.append(progress)
        if len(told) == 3:
            killed.extend(p.pid for p in psutil.process_iter(["cmdline"]) if _is_worker(p))
            os.kill(killed[0], signal.SIGKILL)

    done = update(config, ws, on_progress=kill)
    print(f"killed {killed}, told {[p['step'] for p in told]}: {done}")
    assert killed
    assert [p["step"] for p in told].count(told[0]["step"]) == 1  # not from the start
    assert done.promoted
    assert done.new_events == done.events_offset == end
    assert ws.current().model == done.model
    manifest = ws.manifest("models", str(done.model))
    assert (manifest["events"], manifest["events_offset"]) == (newest_events(ws), end)
    assert manifest["update"]["present"] == trained.model
    assert 0 < done.replayed < 2 * end
    # the old slice is what `train` held out, so the model that answered does there as it did then
    assert done.figures["old"]["before"] == pytest.approx(trained.figures["ndcg@10"], abs=1e-4)
    assert done.figures["new"]["after"] > done.figures["new"]["before"] + 0.3
    lost = done.verdict["forgetting"]["lost"]
    assert lost == pytest.approx(1 - done.figures["old"]["after"] / done.figures["old"]["before"], abs=1e-3)
    assert lost <= 0.02
    assert {"new events", "old events"} <= set(manifest["report"]["models"]["updated model"])
    assert "Gate: promoted" in ws.read_bytes("models", str(done.model), "report.html").decode()
    held = set(read_held_out(ws, str(done.model)).column("event_id").to_pylist())
    assert held > set(read_held_out(ws, trained.model).column("event_id").to_pylist())
    known = read_events(ws, newest_events(ws)).column("event_id").to_pylist()
    assert held < set(known)

    assert Engine.open(ws).recommend(user_id="u000", k=3).versions["model"] == done.model
    _, report = evaluate_recommendations(ws, TrainConfig())
    judged = report["models"]["present model"]["all"]
    assert judged["cases"] == sum(
        manifest["report"]["models"]["updated model"][f"{name} events"]["cases"] for name in ("new", "old")
    )
    again = update(config, ws)
    assert (again.promoted, again.model, again.new_events) == (False, None, 0)
    assert ws.current().model == done.model
    assert not ws.names("runs")


def _is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in " ".join(process.info["cmdline"] or ())
