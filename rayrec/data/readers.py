"""Parquet, CSV and JSONL from any filesystem, as tables whose bad rows are told apart, not fatal.

A reader returns every value as it stood in the file; `conform` turns them into ITEMS or EVENTS.
"""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rayrec.errors import NotFound, SchemaError

_SUFFIXES = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
}  # fmt: skip


@dataclass
class BadRow:
    """A row that never became one: `row` counts from 0 in its file."""

    source: str
    row: int
    column: str | None
    found: str
    expected: str
    record: str = ""


@dataclass
class RawTable:
    """One file's rows, untyped. `rows` gives each row's place in the file (bad rows leave gaps)."""

    source: str
    table: pa.Table
    rows: list[int] | range
    bad: list[BadRow] = field(default_factory=list)


def read(filesystem: pafs.FileSystem, path: str, format: str = "auto") -> Iterator[RawTable]:
    """Yield one RawTable per file under `path` (a file or a directory), in name order.

    Raises NotFound if there is nothing, SchemaError if a file is no table at all.
    """
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise NotFound(f"{path}: no such file or directory")
    if info.type == pafs.FileType.Directory:
        listing = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        files = sorted(i.path for i in listing if i.type == pafs.FileType.File)
        files = [f for f in files if format != "auto" or _suffix(f) in _SUFFIXES]
        if not files:
            raise NotFound(f"{path}: no .parquet, .csv, .tsv or .jsonl file in this directory")
    else:
        files = [path]
    for file in files:
        kind = format if format != "auto" else _SUFFIXES.get(_suffix(file), "")
        if kind not in _READERS:
            raise SchemaError(f"{file}: unknown kind of file; set format to parquet, csv or jsonl")
        with filesystem.open_input_file(file) as stream:
            yield _READERS[kind](stream, file)


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name else ""


def _read_parquet(stream: pa.NativeFile, source: str) -> RawTable:
    try:
        table = pq.read_table(stream)
    except (pa.ArrowInvalid, OSError) as error:
        raise SchemaError(f"{source}: not a readable Parquet file ({_first_line(error)})") from error
    return RawTable(source, table, range(table.num_rows))


def _read_csv(stream: pa.NativeFile, source: str) -> RawTable:
    """Every column as raw bytes: one bad UTF-8 byte or ragged line must cost one row, not the file."""
    data = stream.read()
    head = data[:65536].split(b"\n", 1)[0].rstrip(b"\r")
    if b"\0" in head:
        raise SchemaError(f"{source}: not a CSV file (its first line holds NUL bytes)")
    try:
        header = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SchemaError(f"{source}: not a CSV file (its first line is not UTF-8)") from error
    delimiter = max(",\t;|", key=header.count)
    bad: list[BadRow] = []

    def on_ragged(row: Any) -> str:
        found, expected = f"{row.actual_columns} fields", f"{row.expected_columns} fields"
        number = row.number - 2 if row.number is not None else -1  # numbers count from 1, header included
        bad.append(BadRow(source, number, None, found, expected, row.text))
        return "skip"

    try:
        names = pacsv.read_csv(
            io.BytesIO(head + b"\n"), parse_options=pacsv.ParseOptions(delimiter=delimiter)
        ).column_names
        table = pacsv.read_csv(
            pa.BufferReader(data),
            # numbering of ragged rows needs one thread
            read_options=pacsv.ReadOptions(use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_ragged
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        raise SchemaError(f"{source}: not a readable CSV file ({_first_line(error)})") from error
    skipped = {b.row for b in bad}
    rows = [i for i in range(table.num_rows + len(bad)) if i not in skipped][: table.num_rows]
    return RawTable(source, table, rows, bad)


def _read_jsonl(stream: pa.NativeFile, source: str) -> RawTable:
    records: list[dict[str, Any]] = []
    rows: list[int] = []
    bad: list[BadRow] = []
    number = -1
    for line in io.BufferedReader(stream):  # type: ignore[arg-type]
        if not line.strip():
            continue
        number += 1
        try:
            record = json.loads(line.decode("utf-8"))
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            text = line[:200].decode("utf-8", "backslashreplace").strip()
            bad.append(BadRow(source, number, None, _first_line(error), "one JSON object per line", text))
            continue
        records.append(record)
        rows.append(number)
    if bad and not records:
        raise SchemaError(f"{source}: not a JSONL file (no line is a JSON object; first: {bad[0].record[:80]!r})")
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: _json_column([r.get(name) for r in records]) for name in names}
    return RawTable(source, pa.table(columns), rows, bad)


def _json_column(values: list[Any]) -> pa.Array:
    """Arrow's own type where all values agree; else JSON text of each, for `conform` to judge one by one."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_READERS: dict[str, Callable[[pa.NativeFile, str], RawTable]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
}
