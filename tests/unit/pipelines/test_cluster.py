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
    # ray.shutdown puts the default back beneath Python, which does not notice; here only that it is set again counts
    set_again: list[int] = []
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: monkeypatch.setattr(signal, "signal", noting))

    def noting(number: int, handler: Any, set_signal: Any = signal.signal) -> Any:
        set_again.append(number)
        return set_signal(number, handler)

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with until_stopped() as stop, cluster.connected():
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert set_again == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]  # after the end of Ray, then by until_stopped
