"""The service on a cluster that this process is connected to: deploy it, and wait until it answers over HTTP."""

import contextlib
import http.client
import logging
import socket
import time

from rayrec.config import ServeConfig
from rayrec.errors import RayrecError

APP = "rayrec"
_READY_S = 180.0
_LOST_REPLICA = "health check failed"


def deploy(config: ServeConfig, *, host: str = "127.0.0.1", port: int = 8000, wait_s: float = _READY_S) -> str:
    """Run the application at host:port and return its URL once it answers.

    Ray is imported here, not above: its settings come before it. Raises RayrecError if the port is taken, or
    the application does not come up; its reason is Ray Serve's.
    """
    from ray import serve

    from rayrec.serving.app import build

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    check_port(host, port)
    serve.start(http_options={"host": host, "port": port})
    deadline = time.monotonic() + wait_s
    try:
        serve.run(build(config), name=APP, route_prefix="/")
    except RuntimeError as error:
        # a replica that dies while the others still start is one that Ray Serve replaces, though it says it failed
        if _LOST_REPLICA not in (reason := _reason() or str(error)) or not _recovers(deadline):
            raise RayrecError(f"the service did not come up: {reason}") from error
    reach = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    while not answers(reach, port):
        if time.monotonic() > deadline:
            raise RayrecError(f"the service does not answer at {reach}:{port} after {wait_s:.0f} s")
        time.sleep(0.2)
    return f"http://{reach}:{port}"


def _recovers(deadline: float) -> bool:
    from ray import serve

    while time.monotonic() < deadline:
        application = serve.status().applications.get(APP)
        if application is not None and application.status == "RUNNING":
            return True
        time.sleep(0.2)
    return False


def answers(host: str, port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status in (200, 401)
        except (OSError, http.client.HTTPException):
            return False


def check_port(host: str, port: int) -> None:
    """Raises RayrecError if something listens there already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RayrecError(f"port {port} at {host} cannot be had ({error.strerror}); give another --port") from error


def _reason() -> str | None:
    """What the deployments that failed say."""
    from ray import serve

    application = serve.status().applications.get(APP)
    if application is None:
        return None
    told = [deployment.message for deployment in application.deployments.values() if deployment.message]
    lines = [line for text in told for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else application.message
