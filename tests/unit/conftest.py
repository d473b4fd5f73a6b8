"""Unit tests run without Ray, and keep what they cache to themselves."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test starts Ray; it belongs in tests/integration")

    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
