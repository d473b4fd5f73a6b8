"""The service as a user starts it, in a process of its own, and what tests ask of it."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rayrec.serving.auth import Keys
from rayrec.workspace import Workspace
from tests.ports import free_port

Check = Callable[[int, dict[str, Any]], str | None]
"""(request number, answer) -> what is wrong with it, or None"""


@dataclass
class Service:
    process: subprocess.Popen
    url: str
    port: int
    log: Path
    ws: Workspace
    key: str

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> "Told":
        """One request over a connection of its own, with the admin key unless `authorization` is given."""
        with self.connection() as connection:
            return ask(connection, method, path, body, {"authorization": f"Bearer {self.key}", **(headers or {})})

    def search(self, query: str, **more: Any) -> dict[str, Any]:
        told = self.ask("POST", "/v1/search", {"query": query, **more})
        assert told.status == 200, told
        return told.json

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            yield connection

    def tree(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Processes of a deployment's replicas."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                if f"ServeReplica:rayrec:{deployment}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """A metric's sum over all lines with these labels."""
        text = self.ask("GET", "/metrics").body.decode()
        total = 0.0
        for line in text.splitlines():
            if re.match(rf"{name}(\{{|\s)", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        if self.process.poll() is None:
            self.process.kill()


@dataclass
class Told:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, headers: Any = None) -> Told:
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, raw, headers or {})
    answer = connection.getresponse()
    return Told(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


@contextlib.contextmanager
def running(ws: Workspace, log: Path, settings: dict[str, Any], *arguments: str) -> Iterator[Service]:
    """`rayrec serve` on a free port, once it answers."""
    port = free_port()
    config = log.with_suffix(".yaml")
    config.write_text(json.dumps({"workspace": ws.uri, **settings}))
    command = [sys.executable, "-m", "rayrec.cli", "serve", "-w", ws.uri, "-c", str(config), "--port", str(port)]
    with start([*command, *arguments], log, ws, port) as service:
        yield service


@contextlib.contextmanager
def start(command: list[str], log: Path, ws: Workspace, port: int, wait_s: float = 240) -> Iterator[Service]:
    """A command that serves at `port` and says so."""
    key = Keys(ws).create("admin", "tests")[1]
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ))
    service = Service(process, f"http://127.0.0.1:{port}", port, log, ws, key)
    try:
        deadline = time.monotonic() + wait_s
        while "/docs" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield service
    finally:
        service.stop()


@dataclass
class Load:
    """What became of many requests: statuses, what was wrong with answers, replicas and versions that answered."""

    statuses: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    indexes: Counter = field(default_factory=Counter)
    replicas: Counter = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return sum(self.statuses.values()) + len(self.broken)


@contextlib.contextmanager
def load(service: Service, bodies: list[dict[str, Any]], total: int, check: Check, threads: int = 8) -> Iterator[Load]:
    """`total` searches from keep-alive connections while the block runs; the block waits for them at its end.

    bodies: asked in turn. A connection that breaks is counted and opened again.
    """
    result = Load()
    lock = threading.Lock()
    numbers = iter(range(total))
    headers = {"authorization": f"Bearer {service.key}", "content-type": "application/json"}
    raw = [json.dumps(body).encode() for body in bodies]

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                connection.close()
                return
            try:
                told = ask(connection, "POST", "/v1/search", raw[number % len(raw)], headers)
                answer = told.json
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                with lock:
                    result.broken.append(f"{number}: {type(error).__name__}")
                continue
            fault = check(number, answer) if told.status == 200 else None
            with lock:
                result.statuses[told.status] += 1
                if told.status == 200:
                    result.indexes[answer["versions"]["index"]] += 1
                    result.replicas[answer["versions"]["replica"]] += 1
                if fault is not None:
                    result.wrong.append(fault)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    yield result
    for worker in workers:
        worker.join(600)


def listening(service: Service) -> list[tuple[str, str, int]]:
    """(process, address, port) of every TCP socket that the service's processes listen on."""
    found = []
    for process in service.tree():
        with contextlib.suppress(psutil.Error):
            program, *arguments = process.cmdline()
            name = " ".join([os.path.basename(program), *arguments])[:60]
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.append((name, connection.laddr.ip, connection.laddr.port))
    return sorted(found, key=lambda row: row[2])


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "not within time"
        time.sleep(0.1)
    return time.monotonic() - began
