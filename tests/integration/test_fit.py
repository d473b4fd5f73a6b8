"""Fitting encoders on Ray Train: what is better is promoted and answers, what is not is kept from it."""

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from rayrec import Engine, encoder_exports
from rayrec.config import (
    EmbedConfig,
    FitTextConfig,
    IndexConfig,
    SourceConfig,
    TrainingConfig,
    TrimConfig,
)
from rayrec.errors import IncompatibleArtifact, NotFound
from rayrec.pipelines import fidelity
from rayrec.pipelines.embed import embed
from rayrec.pipelines.fit_text import fit_text
from rayrec.pipelines.fit_trimmed import fit_trimmed
from rayrec.pipelines.index import index
from rayrec.workspace import Workspace
from tests.integration.conftest import encoder_of

pytestmark = [pytest.mark.ray, pytest.mark.model]

WORDS = ["usb", "c", "cable", "frozen", "pizza", "thin", "crust", "with", "four", "cheeses", "red", "blue", "shoe"]


@pytest.fixture
def ws(cluster: str, model: str, tmp_path: Path) -> Workspace:
    """800 items of three words of thirteen, embedded by a random tiny model."""
    rng = np.random.default_rng(0)
    rows = ["item_id,title", *(f"i{n:03d},{' '.join(rng.choice(WORDS, 3, replace=False))}" for n in range(800))]
    (tmp_path / "items.csv").write_text("\n".join(rows))
    ws = Workspace.open(tmp_path / "ws")
    embed(EmbedConfig(source=SourceConfig(path=str(tmp_path / "items.csv")), encoder=encoder_of(model)), ws)
    return ws


def training(**values: object) -> TrainingConfig:
    defaults = {"steps": 120, "batch": 64, "learning_rate": 0.003, "evaluate_every": 40, "dropout": 0}
    return TrainingConfig.model_validate({**defaults, **values})


def fit_config(model: str, **values: object) -> FitTextConfig:
    # pairs of thirteen words are few queries, so many of them judge
    defaults = {"encoder": encoder_of(model), "training": training(), "held_out": 0.3, "rank": 16, "share": 1.0}
    return FitTextConfig.model_validate({**defaults, **values})


def test_a_fit_survives_a_kill_is_promoted_and_answers_in_the_space_of_its_base(ws: Workspace, model: str) -> None:
    told: list[dict] = []
    killed: list[int] = []

    def kill_one(progress: dict) -> None:
        told.append(progress)
        if progress["step"] == 80 and not killed:
            workers = [p for p in psutil.process_iter(["cmdline"]) if _is_worker(p)]
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)

    summary = fit_text(fit_config(model, workers=2), ws, on_progress=kill_one)
    steps = [p["step"] for p in told]
    print(f"fit: worker {killed} killed after step 80, told {steps}: {summary}")
    assert killed
    assert steps[:2] == [40, 80]
    assert steps[-1] == 120
    assert steps.count(40) == 1  # from a checkpoint: the last, or the one before if Ray had not noted the last yet
    assert summary.promoted
    assert summary.gain_ci95[0] > 0
    assert not ws.names("runs")  # checkpoints of a finished run
    index(IndexConfig(encoder=encoder_of("fitted")), ws)
    manifest = ws.manifest("indexes", str(ws.current().index))
    plain = encoder_exports.encoder_id(encoder_of(model))
    assert manifest["encoder"]["id"] == str(plain)  # items kept their vectors
    assert manifest["encoder"]["query_id"].startswith(f"{plain}-query-")
    engine = Engine.open(ws)
    assert engine.encoder.id.space == plain.space
    assert str(engine.encoder.id) == manifest["encoder"]["query_id"]
    assert engine.search("usb cable", mode="dense", k=5).hits
    again = embed(EmbedConfig(encoder=encoder_of("fitted")), ws)
    assert again.embedded == 0


def _is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in " ".join(process.info["cmdline"] or ())


def test_what_gains_nothing_is_not_promoted_and_cannot_be_used(ws: Workspace, model: str) -> None:
    nothing = training(steps=2, learning_rate=1e-9, evaluate_every=1)
    summary = fit_text(fit_config(model, training=nothing), ws)
    print(f"no gain: {summary}")
    assert not summary.promoted
    assert summary.version in ws.versions("encoders")
    with pytest.raises(NotFound, match="no fitted text encoder was promoted"):
        index(IndexConfig(encoder=encoder_of("fitted")), ws)


def test_a_student_of_fewer_layers_is_published_with_its_fidelity(ws: Workspace, model: str) -> None:
    config = TrimConfig(encoder=encoder_of(model), layers=1, training=training(batch=64), held_out=0.4)
    summary = fit_trimmed(config, ws)
    print(f"trimmed: {summary}")
    assert summary.fidelity is not None
    assert summary.promoted == summary.fidelity["faithful"]
    assert summary.after > summary.before


def test_int8_is_used_if_it_is_faithful_and_refused_if_not(
    ws: Workspace, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = encoder_of(model, precision="int8")
    monkeypatch.setattr("rayrec.evaluation.fidelity.MIN_OVERLAP", 0.5)  # random texts are close to each other
    summary = embed(EmbedConfig(encoder=small), ws)
    report = fidelity.check(ws, small, ws.read_parquet("catalog", str(ws.latest("catalog"))))
    print(f"int8: {report}")
    assert report is not None
    assert report["faithful"]
    assert summary.encoder_id.endswith(".onnx-int8")
    assert summary.reused == 0
    assert 400 < summary.embedded < 800  # some titles are equal
    index(IndexConfig(encoder=small), ws)
    assert Engine.open(ws).encoder.id.variant == "onnx-int8"
    ws.fs.delete_file(ws.path("reports", f"fidelity-{encoder_exports.encoder_id(small)}.json"))
    monkeypatch.setattr("rayrec.evaluation.fidelity.MIN_OVERLAP", 1.01)
    with pytest.raises(IncompatibleArtifact, match="use precision: fp32"):
        index(IndexConfig(encoder=small), ws)
