"""One Ray cluster for all integration tests: two CPUs, one logical GPU, with the dashboard that takes jobs."""

import contextlib
import csv
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rayrec.config import EmbedConfig, SourceConfig
from rayrec.workspace import Workspace

WORDS = ["usb", "cable", "charger", "laptop", "sleeve", "desk", "lamp", "wireless", "mouse", "keyboard", "stand"]


def free_port() -> int:
    """A free port below those that the system hands out, among which Ray has fixed ones of its own (44217)."""
    while True:
        port = random.randint(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of the dashboard of a cluster that this process is connected to."""
    port = free_port()
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        log_to_driver=False,
    )
    yield f"http://127.0.0.1:{port}"
    ray.shutdown()


def write_catalog(path: Path, n: int, *, words: int = 12, seed: int = 0) -> Path:
    """A CSV of `n` items with distinct seeded titles."""
    rng = random.Random(seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "brand", "price_cents"])
        for i in range(n):
            title = " ".join(rng.choices(WORDS, k=words)) + f" no {i}"
            writer.writerow([f"i{i:06}", title, rng.choice(["Acme", "Brill"]), rng.randint(100, 9999)])
    return path


def embed_config(path: Path | None, **changes: object) -> EmbedConfig:
    source = None if path is None else SourceConfig(path=str(path))
    return EmbedConfig(source=source, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that holds the default encoder's export, to be copied: exporting takes 15 s."""
    from rayrec import encoder_exports

    root = tmp_path_factory.mktemp("exported")
    encoder_exports.ensure(Workspace.open(root), EmbedConfig().encoder)
    return root


@pytest.fixture
def ws(exported: Path, tmp_path: Path) -> Workspace:
    """An empty workspace but for the encoder."""
    root = tmp_path / "ws"
    root.mkdir()
    (root / "encoders").symlink_to(exported / "encoders")
    return Workspace.open(root)
