"""Parquet, CSV and JSONL from any filesystem, as tables whose bad rows are told apart, not fatal.

A reader returns every value as it stood in the file; `conform` turns them into ITEMS or EVENTS.
"""

import codecs
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rayrec.errors import NotFound, SchemaError

# A JSONL column that holds nested values (as JSON text) and plain ones by turns; one of the two in each row.
MIXED = pa.struct([("plain", pa.string()), ("nested", pa.string())])

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

    In a directory, names that start with "_" or "." are not data (`_SUCCESS`, `.part-0.csv.crc`).
    Raises NotFound if there is nothing, SchemaError if a file is no table at all.
    """
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise NotFound(f"{path}: no such file or directory")
    if info.type == pafs.FileType.Directory:
        listing = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        files = sorted(i.path for i in listing if i.type == pafs.FileType.File and i.base_name[0] not in "_.")
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
    data = stream.read().removeprefix(codecs.BOM_UTF8)
    head = data[:65536].split(b"\n", 1)[0].rstrip(b"\r")
    if b"\0" in head:
        raise SchemaError(f"{source}: not a CSV file (its first line holds NUL bytes)")
    try:
        header = head.decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"{source}: not a CSV file (its first line is not UTF-8)") from error
    delimiter = max(",\t;|", key=header.count)
    # pyarrow decodes ragged rows itself and gives the file up at a bad byte; as Latin-1 every byte is fine
    code = "utf-8" if _is_utf8(data) else "latin-1"
    if code != "utf-8":
        data = data.decode(code).encode()
    bad: list[BadRow] = []

    def on_ragged(row: Any) -> str:
        found, expected = f"{row.actual_columns} fields", f"{row.expected_columns} fields"
        number = row.number - 2 if row.number is not None else -1  # numbers count from 1, header included
        text = row.text.encode(code).decode("utf-8", "backslashreplace")
        bad.append(BadRow(source, number, None, found, expected, text))
        return "skip"

    try:
        names = pacsv.read_csv(
            io.BytesIO(head + b"\n"), parse_options=pacsv.ParseOptions(delimiter=delimiter)
        ).column_names
        table = pacsv.read_csv(
            pa.BufferReader(data),
            # numbering of ragged rows needs one thread; one block, since no row may be longer than a block
            read_options=pacsv.ReadOptions(use_threads=False, block_size=min(len(data) + 1, 2**31 - 1)),
            parse_options=pacsv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_ragged
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=True, null_values=[""]
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        raise SchemaError(f"{source}: not a readable CSV file ({_first_line(error)})") from error
    if code != "utf-8":
        back = [[v if v is None else v.decode().encode(code) for v in c.to_pylist()] for c in table.columns]
        table = pa.table([pa.array(values, pa.binary()) for values in back], names=table.column_names)
    skipped = {b.row for b in bad}
    rows = [i for i in range(table.num_rows + len(bad)) if i not in skipped][: table.num_rows]
    return RawTable(source, table, rows, bad)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_jsonl(stream: pa.NativeFile, source: str) -> RawTable:
    records: list[dict[str, Any]] = []
    rows: list[int] = []
    bad: list[BadRow] = []
    number = -1
    for line in io.BufferedReader(stream):
        if not line.strip():
            continue
        number += 1
        try:
            record = json.loads(line.decode("utf-8-sig"))
            if not isinstance(record, dict):
                raise ValueError("not an object")
            if b"\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            text = line.decode("utf-8", "backslashreplace").strip()
            bad.append(BadRow(source, number, None, _first_line(error), "one JSON object per line", text))
            continue
        records.append(record)
        rows.append(number)
    if not records:
        first = repr(bad[0].record[:80]) if bad else "it is empty"
        raise SchemaError(f"{source}: not a JSONL file (no line is a JSON object; first: {first})")
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: _json_column([r.get(name) for r in records]) for name in names}
    return RawTable(source, pa.table(columns), rows, bad)


def _json_column(values: list[Any]) -> pa.Array:
    """Arrow's own type where all values agree; else the text of each, for `conform` to judge one by one.

    Objects are MIXED even if all agree: one struct of every key that any row has grows beyond memory.
    """
    if not any(isinstance(v, dict) for v in values):
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
    text = pa.array([v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values])
    nested = pa.array([isinstance(v, (dict, list)) for v in values])
    if not pc.any(nested).as_py():
        return text
    none = pa.scalar(None, pa.string())
    halves = [pc.if_else(nested, none, text), pc.if_else(nested, text, none)]
    return pa.StructArray.from_arrays(halves, fields=list(MIXED))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_READERS: dict[str, Callable[[pa.NativeFile, str], RawTable]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "jsonl": _read_jsonl,
}
