"""One switch, three trackers: each writes what it was told, offline."""

import sqlite3
import subprocess
import sys

import pytest

from rayrec.config import TrainConfig
from rayrec.errors import SchemaError
from rayrec.pipelines.tracking import tracked
from rayrec.workspace import Workspace


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "ws")


def run(ws, tracker):
    with tracked(TrainConfig(tracker=tracker), ws, "train-1") as log:
        log(1, {"loss": 2.5, "test/ndcg@10": 0.25})
        log(2, {"loss": 1.5})


def run_elsewhere(ws, tracker):
    """In a process of its own: they keep global state, and warn of their own dependencies."""
    script = (
        "import sys; from tests.unit.pipelines.test_tracking import run; from rayrec.workspace import Workspace; "
        "run(Workspace.open(sys.argv[1]), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, ws.uri, tracker], check=True, capture_output=True)


def test_nothing_is_written_by_default_or_by_another_worker(ws):
    run(ws, "none")
    with tracked(TrainConfig(tracker="tensorboard"), ws, "train-1", first=False) as log:
        log(1, {"loss": 1.0})
    assert not ws.names("tracking")


def test_tensorboard(ws):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(ws, "tensorboard")
    read = EventAccumulator(ws.path("tracking", "tensorboard", "train-1"))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    assert read.Scalars("test/ndcg@10")[0].value == 0.25


def test_mlflow(ws, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_elsewhere(ws, "mlflow")
    found = sqlite3.connect(ws.path("tracking", "mlflow", "mlflow.db"))
    rows = found.execute("select key, step, value from metrics order by key, step").fetchall()
    assert rows == [("loss", 1, 2.5), ("loss", 2, 1.5), ("test/ndcg_at_10", 1, 0.25)]
    assert ("model.dim", "64") in found.execute("select key, value from params").fetchall()


def test_wandb_offline(ws, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run_elsewhere(ws, "wandb")
    (folder,) = [name for name in ws.names("tracking", "wandb", "wandb") if name.startswith("offline-run-")]
    assert any(name.endswith(".wandb") for name in ws.names("tracking", "wandb", "wandb", folder))


def test_a_tracker_that_is_not_installed_says_how_to_get_it(ws, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SchemaError, match=r"rayrec\[tracking\]"):
        run(ws, "tensorboard")
