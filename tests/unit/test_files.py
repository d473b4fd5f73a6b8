"""Writes are whole or not at all; reads say what is missing."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from rayrec.errors import NotFound
from rayrec.files import Files, open_filesystem


@pytest.fixture(params=["local", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    uri = str(tmp_path / "ws") if request.param == "local" else f"memory:/{tmp_path}/ws"
    yield Files(uri, *open_filesystem(uri))
    if request.param == "memory":
        fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_what_was_written_is_read_back_and_a_rewrite_replaces_it(files: Files) -> None:
    for data in (b"old, and longer", b"new"):
        files.write_bytes(data, "deep", "a.json")
        assert files.read_bytes("deep", "a.json") == data
    assert files.names("deep") == ["a.json"]
    assert files.exists("deep", "a.json")
    assert not files.exists("deep", "b.json")


def test_a_missing_file_is_not_found_by_name_and_a_missing_directory_is_empty(files: Files) -> None:
    files.write_bytes(b"", "there")
    with pytest.raises(NotFound, match=r"deep/a\.json: no such file in workspace"):
        files.read_bytes("deep", "a.json")
    assert files.names("deep") == []


def test_a_directory_of_parquet_is_one_table_in_name_order(files: Files) -> None:
    for name, value in (("b.parquet", 2), ("a.parquet", 1)):
        files.write_parquet(pa.table({"n": [value], "other": ["x"]}), "parts", name)
    files.write_bytes(b"half", "parts", "c.parquet.1f.tmp")
    assert files.read_parquet("parts", columns=["n"]).to_pydict() == {"n": [1, 2]}
    assert files.read_parquet("parts", "b.parquet").to_pydict() == {"n": [2], "other": ["x"]}
    with pytest.raises(NotFound, match="none: no parquet files"):
        files.read_parquet("none")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(str(tmp_path), *open_filesystem(str(tmp_path)))
    files.write_bytes(b"old", "a.json")

    def disk_full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, disk_full)
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(b"new", "a.json")
    monkeypatch.undo()
    assert files.read_bytes("a.json") == b"old"
    assert files.names() == ["a.json"]


def test_a_path_may_start_at_home_and_an_unknown_scheme_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/shop")
    assert open_filesystem("~/ws")[1] == "/home/shop/ws"
    assert open_filesystem("file:///srv/ws")[1] == "/srv/ws"
    with pytest.raises(NotFound, match="no filesystem for 'ftq://shop/ws'"):
        open_filesystem("ftq://shop/ws")
