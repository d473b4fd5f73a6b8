"""Catalogs and workspaces of integration tests; what they share with the browser's is in tests/conftest.py."""

import csv
import random
from pathlib import Path

import pytest

from rayrec.config import EmbedConfig, EncoderConfig, SourceConfig
from rayrec.workspace import Workspace
from tests.fakes import make_tiny_model

WORDS = ["usb", "cable", "charger", "laptop", "sleeve", "desk", "lamp", "wireless", "mouse", "keyboard", "stand"]


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


def encoder_of(model: str, **values: object) -> EncoderConfig:
    """Of a tiny model."""
    return EncoderConfig.model_validate({"model": model, "max_tokens": 16, **values})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a tiny random text model."""
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"), "gpt2"))


@pytest.fixture
def ws(exported: Path, tmp_path: Path) -> Workspace:
    """An empty workspace but for the encoder."""
    root = tmp_path / "ws"
    root.mkdir()
    (root / "encoders").symlink_to(exported / "encoders")
    return Workspace.open(root)
