"""Ports for what tests start."""

import contextlib
import random
import socket


def free_port() -> int:
    """A free port below those that the system hands out, among which Ray has fixed ones of its own (44217)."""
    while True:
        port = random.randint(20_000, 29_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
