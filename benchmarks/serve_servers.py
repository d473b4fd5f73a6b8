"""The servers that bench_serve compares: started on loopback one at a time, watched, and ended whole."""

import contextlib
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data import catalog
from rayrec.retrieval.shards import attribute_words

_ROOT = Path(__file__).parents[1]
_READY_S = 120.0
_STOP_S = 40.0
_PORTS = range(21_000, 32_000)  # Ray's workers take 10,002 to 19,999
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Kind:
    """How to start one server. command: {port} stands for the port. workers: that /healthz has to show.

    counts: whether /metrics tells of degraded answers.
    """

    command: Sequence[str]
    environment: dict[str, str]
    workers: int = 1
    counts: bool = True


def service(config: Path, workspace: str, topology: str) -> Kind:
    """rayrec as its command line starts it."""
    arguments = ["serve", "-w", workspace, "-c", str(config), "--topology", topology, "--port", "{port}"]
    return Kind([sys.executable, "-m", "rayrec.cli", *arguments], {})


def service_on_defaults(config: Path) -> Kind:
    """rayrec on Ray Serve's own settings; serve_defaults.py says how."""
    return Kind([sys.executable, "-m", "benchmarks.serve_defaults", str(config), "{port}"], {})


def peer(
    data: Path, key_sha256: str, workers: int, *, tuned: bool, cached_vectors: int, cached_candidates: int
) -> Kind:
    """peer_server.py under uvicorn. data: what `write_peer_data` made."""
    server = ["uvicorn", "benchmarks.peer_server:create_app", "--factory", "--workers", str(workers)]
    options = ["--host", "127.0.0.1", "--port", "{port}", "--no-access-log", "--log-level", "warning"]
    environment = {
        **_ONE_THREAD,
        "TOKENIZERS_PARALLELISM": "false",
        "PEER_DATA": str(data),
        "PEER_TUNED": str(int(tuned)),
        "PEER_KEY_SHA256": key_sha256,
        "PEER_VECTORS": str(cached_vectors),
        "PEER_CANDIDATES": str(cached_candidates),
    }
    return Kind([sys.executable, "-m", *server, *options], environment, workers, counts=False)


def write_peer_data(items: pa.Table, vectors: np.ndarray, directory: Path) -> None:
    """ITEMS with the texts of their words, and their vectors float32 (N, D), as plain files."""
    directory.mkdir()
    np.save(directory / "vectors.npy", vectors)
    table = items.append_column("text", pa.array(catalog.item_texts(items)))
    table = table.append_column("words", pa.array(attribute_words(items.column("attributes"))))
    pq.write_table(table, directory / "items.parquet")


class Server:
    """A server that runs inside the block. Raises RuntimeError with the end of its log if it does not come up."""

    def __init__(self, kind: Kind, log: Path):
        self._kind = kind
        self._log = log
        port = _free_port()
        self._command = [part.format(port=port) if part == "{port}" else part for part in kind.command]
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> "Server":
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=_ROOT,
                env={**os.environ, **self._kind.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its server
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_S
        seen: set[bytes] = set()
        while len(seen) < self._kind.workers:
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = self._log.read_text(errors="replace")[-2_000:]
                raise RuntimeError(f"{' '.join(self._command[:4])} did not come up; the end of its log:\n{end}")
            try:
                status, body = self.get("/healthz")
            except (OSError, http.client.HTTPException):
                status, body = 0, b""
            if status == 200:
                seen.add(body)
            time.sleep(0.1)

    def _stop(self) -> None:
        """SIGTERM to the process that was started; what of its tree outlives it by long is killed, pid by pid."""
        tree = self._tree()
        self._process.terminate()
        _, left = psutil.wait_procs(tree, timeout=_STOP_S)
        for process in left:
            process.kill()  # psutil does not mistake a new process of the same pid for it
        psutil.wait_procs(left, timeout=_STOP_S)

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def pid(self) -> int:
        return self._process.pid

    # -- asking it --------------------------------------------------------------------------------

    def get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def search(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Raises RuntimeError for any answer that is not 200."""
        with contextlib.closing(http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)) as connection:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            connection.request("POST", "/v1/search", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{body}: {answer.status} {content[:500]!r}")
        return json.loads(content)

    def degraded(self) -> int:
        """Answers so far that had to do without a part, and requests refused."""
        if not self._kind.counts:
            return 0
        time.sleep(1.5)  # replicas report every second
        status, text = self.get("/metrics")
        if status != 200 or b"rayrec_requests_total" not in text:
            raise RuntimeError(f"/metrics: {status} {text[:500]!r}")
        lines = [line for line in text.decode().splitlines() if line.startswith("rayrec_degraded_total")]
        return sum(int(float(line.rpartition(" ")[2])) for line in lines)

    def memory_mib(self) -> tuple[int, int]:
        """(resident, proportional) set sizes of all its processes, Ray's own included, added up."""
        rss = pss = 0
        for process in self._tree():
            try:
                info = process.memory_full_info()
            except psutil.NoSuchProcess:
                continue
            rss, pss = rss + info.rss, pss + info.pss
        return rss >> 20, pss >> 20


def _free_port() -> int:
    """Below the ports that the system hands out by itself, of which Ray takes dozens while it starts."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port in {_PORTS}")
