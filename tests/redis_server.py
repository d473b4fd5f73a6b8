"""A real redis-server of a test's own, on loopback, that flushes every write before it answers."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port


class RedisServer:
    def __init__(self, folder: Path, port: int, **options: str):
        self.url = f"redis://127.0.0.1:{port}/0"
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": "", **options}
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            import pytest  # a benchmark starts one too, and may have none

            pytest.skip("no redis-server: apt-get install redis-server")
        told = [word for name, value in self._options.items() for word in (f"--{name}", value)]
        command = [binary, "--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder), *told]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self._port), 0.2) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                        return
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError("redis-server did not come up")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def redis_server(folder: Path, **options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, free_port(), **options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
