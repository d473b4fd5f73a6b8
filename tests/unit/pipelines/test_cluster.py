"""Connecting to Ray leaves alone what was there before."""

import signal
from typing import Any

import pytest

from rayrec.pipelines import cluster
from rayrec.pipelines.schedule import until_stopped


def test_who_listens_to_sigterm_goes_on_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:  # as ray.init does
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("exits"))

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with until_stopped() as stop, cluster.connected():
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
