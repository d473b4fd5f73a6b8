"""Bringing the service up: what Ray Serve says failed, and what only lost a replica on the way."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from rayrec.config import ServeConfig
from rayrec.errors import RayrecError
from rayrec.serving import app, local
from tests.ports import free_port

LOST = "A replica's health check failed. This deployment will be UNHEALTHY until the replica recovers."


@pytest.fixture
def deploying(monkeypatch: pytest.MonkeyPatch):
    """A deployment that fails with a message, and what the application's status is each time it is asked."""

    def make(message: str, statuses: list[str]) -> None:
        def run(*_: Any, **__: Any) -> None:
            raise RuntimeError("Deploying application rayrec failed")

        def status() -> Any:
            now = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            deployment = SimpleNamespace(message=message)
            application = SimpleNamespace(status=now, message="", deployments={"Gateway": deployment})
            return SimpleNamespace(applications={local.APP: application})

        monkeypatch.setattr(serve, "start", lambda **_: None)
        monkeypatch.setattr(serve, "run", run)
        monkeypatch.setattr(serve, "status", status)
        monkeypatch.setattr(app, "build", lambda config: None)
        monkeypatch.setattr(local, "answers", lambda host, port: True)

    return make


def test_a_replica_lost_on_the_way_is_waited_for(deploying, tmp_path) -> None:
    deploying(LOST, ["DEPLOY_FAILED", "DEPLOY_FAILED", "RUNNING"])
    port = free_port()
    assert local.deploy(ServeConfig(workspace=str(tmp_path)), port=port) == f"http://127.0.0.1:{port}"


def test_one_that_never_comes_back_is_told(deploying, tmp_path) -> None:
    deploying(LOST, ["DEPLOY_FAILED"])
    with pytest.raises(RayrecError, match="did not come up: A replica's health check failed"):
        local.deploy(ServeConfig(workspace=str(tmp_path)), port=free_port(), wait_s=0.5)


def test_a_replica_that_cannot_start_is_told_at_once(deploying, tmp_path) -> None:
    deploying("NotFound: no index answers", ["DEPLOY_FAILED", "RUNNING"])
    with pytest.raises(RayrecError, match="did not come up: NotFound: no index answers"):
        local.deploy(ServeConfig(workspace=str(tmp_path)), port=free_port())
