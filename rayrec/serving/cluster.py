"""A Ray cluster on this machine as the service wants it: fast, on loopback, with a token.

All of it has to be in the environment before Ray starts, so this is the place that starts it.
"""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rayrec.errors import RayrecError
from rayrec.serving.loopback import NODE_IS_LOCAL

# with Serve's defaults half as many requests are answered (benchmarks: bench_serve, row `defaults`)
FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # every route only reads, or is idempotent: a request whose replica died goes to another one
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "8",  # a dead replica's pooled connections may each cost one
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "60",
    # a replica that is to go keeps answering for as long as the proxy may not know it, which is a second or two
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a datagram a request, of what our own metrics count as well
}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_worker_niceness": "0",  # by default Ray's workers yield to every other process
}


def fast_path() -> dict[str, str]:
    """What a cluster that serves is to be started with, anywhere. Raises RayrecError if we are not installed whole."""
    beside = os.path.dirname(sys.executable)
    program = shutil.which("rayrec-haproxy", path=beside) or shutil.which("rayrec-haproxy")
    if program is None:
        raise RayrecError("the program rayrec-haproxy is not installed beside this Python; run: pip install rayrec")
    return {**FAST_PATH, "RAY_SERVE_HAPROXY_BINARY_PATH": program}


def environment(directory: Path) -> dict[str, str]:
    """What the processes of a cluster on this machine are to find, for the fast path and to stay on loopback.

    directory: private to this cluster, for HAProxy's files.
    """
    return {
        **confined(),
        **fast_path(),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }


def confined() -> dict[str, str]:
    """Settings of a cluster that nobody else reaches: on loopback, behind a token."""
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    return {**_QUIET, **NODE_IS_LOCAL, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def local_cluster(
    *, num_cpus: int | None = None, dashboard_port: int | None = None, fast_path: bool = True
) -> Iterator[None]:
    """A cluster of one node inside the block. num_cpus: of Ray's count, by default the machine's.

    dashboard_port: with Ray's dashboard there; without it none is started. fast_path=False: as Ray Serve is by
    default, to measure what it brings. Raises RayrecError if Ray Serve was imported already: it reads its settings
    once.
    """
    if "ray.serve" in sys.modules:
        raise RayrecError("Ray Serve was imported before its settings were made; start the cluster first")
    # Ray adds a node's id of 56 characters, and a socket's path may have 107 in all, so not under a long TMPDIR
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as private:
        os.environ.update(environment(Path(private)) if fast_path else confined())
        import ray

        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=dashboard_port is not None,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard_port,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            yield
        finally:  # Serve goes with its cluster; its own shutdown would wait half a minute for connections to drain
            ray.shutdown()
