"""The fusion model on Ray Train: a killed worker, the gate, figures that go where they are asked to, rollback."""

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from rayrec import Engine
from rayrec.config import (
    EmbedConfig,
    IndexConfig,
    LossConfig,
    RecommenderConfig,
    SourceConfig,
    TrainConfig,
    TrainingConfig,
)
from rayrec.errors import NotFound
from rayrec.pipelines.embed import embed
from rayrec.pipelines.index import index
from rayrec.pipelines.recommending import evaluate_recommendations
from rayrec.pipelines.train import train
from rayrec.workspace import Workspace
from tests.integration.conftest import encoder_of

pytestmark = [pytest.mark.ray, pytest.mark.model]

ITEMS, SHOPPERS = 60, 300


@pytest.fixture
def ws(cluster: str, model: str, tmp_path: Path) -> Workspace:
    """After item i shoppers want item i + 1: nothing that is counted tells it, for all are as popular."""
    rng = np.random.default_rng(0)
    items = ["item_id,title,brand,price_cents", *(f"i{n:03d},thing {n},b{n % 4},{100 + n}" for n in range(ITEMS))]
    events = ["user_id,type,item_id,ts_us"]
    for shopper in range(SHOPPERS):
        first = int(rng.integers(ITEMS))
        for day in range(int(rng.integers(4, 9))):
            events.append(f"u{shopper:03d},purchase,i{(first + day) % ITEMS:03d},{day * 86_400_000_000 + shopper}")
    (tmp_path / "items.csv").write_text("\n".join(items))
    (tmp_path / "events.csv").write_text("\n".join(events))
    ws = Workspace.open(tmp_path / "ws")
    embed(EmbedConfig(source=SourceConfig(path=str(tmp_path / "items.csv")), encoder=encoder_of(model)), ws)
    index(IndexConfig(events=SourceConfig(path=str(tmp_path / "events.csv")), encoder=encoder_of(model)), ws)
    return ws


def config_of(model: str, *, epochs: int = 8, rate: float = 1e-2, **values: object) -> TrainConfig:
    form = RecommenderConfig(dim=16, length=10, dropout=0, content_dropout=0, id_dropout=0)
    training = TrainingConfig(
        batch=64, learning_rate=rate, warmup=0, weight_decay=0, max_gradient_norm=10, patience=99, dropout=0
    )
    return TrainConfig(
        encoder=encoder_of(model), model=form, loss=LossConfig(), training=training, epochs=epochs, **values
    )


def test_a_killed_worker_resumes_and_reaches_the_same_figures(ws: Workspace, model: str) -> None:
    undisturbed = train(config_of(model, workers=2, tracker="tensorboard"), ws)
    told: list[dict] = []
    killed: list[int] = []

    def kill_one(progress: dict) -> None:
        told.append(progress)
        if len(told) == 4 and not killed:
            workers = [p for p in psutil.process_iter(["cmdline"]) if _is_worker(p)]
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    summary = train(config_of(model, workers=2), ws, on_progress=kill_one)
    print(f"undisturbed {undisturbed}")
    print(f"killed {killed} after {told[3]['step']} steps, told {[p['step'] for p in told]}: {summary}")
    assert killed
    assert [p["step"] for p in told].count(told[0]["step"]) == 1  # not from the start
    assert told[-1]["step"] == told[-1]["steps"]
    # the same batches and the same seed: what differs is the order of sums over workers
    for name in ("hr@10", "ndcg@10"):
        assert summary.figures[name] == pytest.approx(undisturbed.figures[name], abs=0.02)
    assert undisturbed.promoted
    assert not summary.promoted  # the same again is no gain over the model that answers
    assert not ws.names("runs")
    assert any(Path(ws.path("tracking", "tensorboard")).rglob("events.*"))


def _is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in " ".join(process.info["cmdline"] or ())


def test_the_gate_refuses_a_worse_model_and_rollback_works(ws: Workspace, model: str) -> None:
    plain = Engine.open(ws).recommend(user_id="u000", k=10)
    good = train(config_of(model), ws)
    print(f"good: {good}")
    assert good.promoted
    assert ws.current().model == good.model
    personal = Engine.open(ws).recommend(user_id="u000", k=10, explain=True)
    assert [h.item_id for h in personal.hits] != [h.item_id for h in plain.hits]
    assert personal.versions["model"] == good.model
    folder, report = evaluate_recommendations(ws, TrainConfig())
    figures = {name: one["all"]["ndcg@10"] for name, one in report["models"].items()}
    print(f"evaluate: {figures}")
    assert figures["present model"] == pytest.approx(good.figures["ndcg@10"], abs=1e-3)
    assert figures["present model"] > figures["counted"]
    assert "<svg" in Path(folder, "report.html").read_text()
    bad = train(config_of(model, epochs=1, rate=1e-6), ws)
    print(f"bad: {bad}")
    assert not bad.promoted
    assert bad.verdict["promoted"] is False
    assert any(gain["opponent"] == "present model" and gain["ci95"][0] <= 0 for gain in bad.verdict["gains"])
    assert ws.current().model == good.model
    assert "<svg" in ws.read_bytes("models", bad.model, "report.html").decode()
    ws.rollback()
    again = Engine.open(ws).recommend(user_id="u000", k=10)
    assert [h.item_id for h in again.hits] == [h.item_id for h in plain.hits]


def test_without_events_there_is_nothing_to_learn_from(cluster: str, model: str, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,one\nb,two\n")
    ws = Workspace.open(tmp_path / "ws")
    embed(EmbedConfig(source=SourceConfig(path=str(tmp_path / "items.csv")), encoder=encoder_of(model)), ws)
    with pytest.raises(NotFound, match="no events"):
        train(config_of(model), ws)
