"""Sources written as a shop would write them, and loaded as a job loads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.config import SourceConfig
from rayrec.data import catalog, events, readers
from rayrec.files import open_filesystem

Content = bytes | str | pa.Table
Records = list[dict[str, Any]]


def write(path: Path, content: Content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., tuple[pa.Table, Records]]:
    """load(name, content, **config) -> (catalog, quarantine records)."""

    def run(name: str, content: Content, **config: Any) -> tuple[pa.Table, Records]:
        source = SourceConfig(path=str(write(tmp_path / name, content)), **config)
        items, quarantine = catalog.normalise(readers.read(*open_filesystem(source.path), source.format), source)
        return items, quarantine.records

    return run


@pytest.fixture
def load_events(tmp_path: Path) -> Callable[..., tuple[pa.Table, Records, int]]:
    """load_events(name, content, **config) -> (events, quarantine records, repeats dropped)."""

    def run(name: str, content: Content, **config: Any) -> tuple[pa.Table, Records, int]:
        source = SourceConfig(path=str(write(tmp_path / name, content)), **config)
        table, quarantine, repeats = events.normalise(
            readers.read(*open_filesystem(source.path), source.format), source
        )
        return table, quarantine.records, repeats

    return run
