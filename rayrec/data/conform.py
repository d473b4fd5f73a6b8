"""Casts raw columns to a schema without loss; a row that does not cast goes to quarantine.

"4995" becomes the int64 4995 and 4995.0 too; 49.95, "4995 EUR" and NaN do not. Whole columns are cast
at once; only where that fails is the column halved until the bad rows stand alone, so clean data
costs one vectorised cast.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.readers import RawTable
from rayrec.errors import SchemaError
from rayrec.schema import QUARANTINE

_FOUND_CHARS = 200
_BLANK = r"^\s*$"


@dataclass
class Quarantine:
    """Rows set aside, as QUARANTINE records; the first reason found for a row is the one kept."""

    records: list[dict[str, object]] = field(default_factory=list)

    def add(self, source: str, row: int, column: str | None, found: object, expected: str, record: str) -> None:
        self.records.append(
            {
                "source": source,
                "row": row,
                "column": column,
                "found": str(found)[:_FOUND_CHARS],
                "expected": expected,
                "record": record,
            }
        )

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.records, schema=QUARANTINE)

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class Rules:
    """What a column must satisfy beyond its type."""

    max_text_chars: int = 20_000
    category_separator: str = ">"
    non_negative: tuple[str, ...] = ("price_cents", "quantity", "position")
    one_of: dict[str, tuple[str, ...]] = field(default_factory=dict)


def conform(
    raw: RawTable, schema: pa.Schema, columns: dict[str, str], rules: Rules, quarantine: Quarantine
) -> tuple[pa.Table, list[int]]:
    """The rows of `raw` that fit `schema`, and their row numbers in the file; the others to quarantine.

    columns: our name -> the source's name; a name not given is looked up as itself, and a nullable column
    that the source lacks is null. Raises SchemaError if a required or an explicitly mapped column is absent.
    """
    for bad in raw.bad:
        quarantine.add(bad.source, bad.row, bad.column, bad.found, bad.expected, bad.record)
    n = raw.table.num_rows
    faults: dict[int, tuple[str, object, str]] = {}
    arrays = []
    for column in schema:
        name = columns.get(column.name, column.name)
        if name not in raw.table.column_names:
            if column.nullable and column.name not in columns:
                arrays.append(pa.nulls(n, column.type))
                continue
            raise SchemaError(
                f"{raw.source}: no column {name!r} for {column.name}; it has {raw.table.column_names[:20]}; "
                f"map it with columns: {{{column.name}: <name in the file>}}"
            )
        source = raw.table.column(name).combine_chunks()
        if isinstance(source, pa.ChunkedArray):  # combine_chunks of zero or many chunks
            source = pa.concat_arrays(source.chunks) if source.num_chunks else pa.nulls(0, source.type)
        found: dict[int, str] = {}
        array = _convert(source, column, rules, found)
        _check(array, source, column, rules, found)
        for row, expected in found.items():
            faults.setdefault(row, (name, source[row].as_py(), expected))
        arrays.append(array)
    for row in sorted(faults):
        name, value, expected = faults[row]
        quarantine.add(raw.source, raw.rows[row], name, _show(value), expected, _record(raw.table, row))
    keep = np.ones(n, bool)
    keep[list(faults)] = False
    table = pa.table(arrays, names=schema.names).filter(pa.array(keep))
    table = pa.table([c.cast(f.type) for c, f in zip(table.columns, schema, strict=True)], schema=schema)
    return table, [raw.rows[i] for i in np.flatnonzero(keep)]


def drop_repeats(
    table: pa.Table, key: str, rows: list[int], source: str, seen: set[str], quarantine: Quarantine
) -> pa.Table:
    """Keep the first row of each key over all files; later ones go to quarantine."""
    keep = np.ones(table.num_rows, bool)
    for i, value in enumerate(table.column(key).to_pylist()):
        if value in seen:
            keep[i] = False
            quarantine.add(source, rows[i], key, value, "a unique id (an earlier row has it)", _record(table, i))
        seen.add(value)
    return table if keep.all() else table.filter(pa.array(keep))


def _convert(source: pa.Array, column: pa.Field, rules: Rules, found: dict[int, str]) -> pa.Array:
    """Cast `source` to the column's type; rows that do not cast become null and are noted in `found`."""
    if pa.types.is_dictionary(source.type):
        source = source.dictionary_decode()
    if pa.types.is_binary(source.type) or pa.types.is_large_binary(source.type):
        source = _bisect(source, lambda a: _utf8(a), pa.string(), found, "valid UTF-8")
    elif pa.types.is_string(source.type) or pa.types.is_large_string(source.type):
        source = _bisect(source, lambda a: _utf8(a.cast(pa.large_binary())), pa.string(), found, "valid UTF-8")
    if pa.types.is_string(source.type):
        trimmed = pc.utf8_trim_whitespace(source)
        source = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    cast, expected = _caster(source.type, column, rules)
    return _bisect(source, cast, column.type, found, expected)


def _caster(source: pa.DataType, column: pa.Field, rules: Rules) -> tuple[Callable[[pa.Array], pa.Array], str]:
    target = column.type
    text = pa.types.is_string(source)
    if pa.types.is_map(target):
        return _to_map, "a JSON object or a struct of plain values"
    if pa.types.is_list(target):
        if text:
            return (lambda a: _split(a, rules.category_separator)), "a path of words"
        return (lambda a: a.cast(target)), "a list of strings"
    if column.name.endswith("_us"):
        return (lambda a: _to_microseconds(a)), "a time: ISO 8601, or whole microseconds since 1970"
    if pa.types.is_boolean(target) and not text and not pa.types.is_boolean(source):
        return (lambda a: _to_bool(a)), "true or false"
    if pa.types.is_integer(target) and text:
        return (lambda a: _text_to_int(a)), f"{target} (a whole number)"
    if pa.types.is_string(target) and pa.types.is_nested(source):
        return _refuse, "plain text"
    return (lambda a: pc.cast(a, target, safe=True)), f"{target}" + (
        " (a whole number)" if pa.types.is_integer(target) else ""
    )


def _bisect(
    array: pa.Array,
    cast: Callable[[pa.Array], pa.Array],
    target: pa.DataType,
    found: dict[int, str],
    expected: str,
    start: int = 0,
) -> pa.Array:
    """`cast(array)`, with each row that makes it fail set to null and noted as `found[row] = expected`."""
    try:
        return cast(array)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError, OverflowError):
        if len(array) == 1:
            found.setdefault(start, expected)
            return pa.nulls(1, target)
    half = len(array) // 2
    left = _bisect(array.slice(0, half), cast, target, found, expected, start)
    right = _bisect(array.slice(half), cast, target, found, expected, start + half)
    return pa.concat_arrays([_plain(left), _plain(right)])


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _utf8(array: pa.Array) -> pa.Array:
    return pc.cast(array, pa.string(), safe=True)


def _text_to_int(array: pa.Array) -> pa.Array:
    try:
        return pc.cast(array, pa.int64(), safe=True)
    except pa.ArrowInvalid:  # "4995.0" is whole too; beyond 2**53 a float would lose digits, and is refused
        return pc.cast(pc.cast(array, pa.float64(), safe=True), pa.int64(), safe=True)


def _to_bool(array: pa.Array) -> pa.Array:
    whole = pc.cast(array, pa.int64(), safe=True)
    if not pc.all(pc.is_in(pc.drop_null(whole), pa.array([0, 1]))).as_py() and len(pc.drop_null(whole)):
        raise ValueError("neither 0 nor 1")
    return pc.cast(whole, pa.bool_())


def _to_microseconds(array: pa.Array) -> pa.Array:
    if pa.types.is_string(array.type):
        try:
            return _text_to_int(array)
        except pa.ArrowInvalid:
            try:
                stamps = pc.cast(array, pa.timestamp("us", tz="UTC"), safe=True)
            except pa.ArrowInvalid:  # no zone given: it is UTC
                stamps = pc.cast(array, pa.timestamp("us"), safe=True)
            return pc.cast(stamps, pa.int64())
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())
    return pc.cast(array, pa.int64(), safe=True)


def _split(array: pa.Array, separator: str) -> pa.Array:
    parts = [
        None if text is None else [p for p in (piece.strip() for piece in text.split(separator)) if p]
        for text in array.to_pylist()
    ]
    return pa.array(parts, pa.list_(pa.string()))


def _to_map(array: pa.Array) -> pa.Array:
    target = pa.map_(pa.string(), pa.string())
    if pa.types.is_map(array.type):
        return array.cast(target)
    out = []
    for value in array.to_pylist():
        if isinstance(value, str):
            value = json.loads(value)
        if value is None:
            out.append(None)
            continue
        if not isinstance(value, dict):
            raise ValueError("not an object")
        out.append([(str(k), _flat(v)) for k, v in value.items() if v is not None])
    return pa.array(out, target)


def _flat(value: object) -> str:
    if isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value):
        return ", ".join(_flat(v) for v in value)
    if isinstance(value, (list, dict)):
        raise ValueError("nested")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _refuse(array: pa.Array) -> pa.Array:
    if array.null_count == len(array):
        return pa.nulls(len(array), pa.string())
    raise ValueError("nested")


def _check(array: pa.Array, source: pa.Array, column: pa.Field, rules: Rules, found: dict[int, str]) -> None:
    """Note rows that cast but break a rule: a missing key, over-long text, a negative count, a wrong word."""

    def note(mask: pa.Array, expected: str) -> None:
        for row in np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)):
            found.setdefault(int(row), expected)

    if not column.nullable:
        note(pc.is_null(array), "a value; it is required")
    if pa.types.is_string(array.type):
        note(pc.greater(pc.utf8_length(array), rules.max_text_chars), f"at most {rules.max_text_chars} characters")
    if column.name in rules.non_negative:
        note(pc.less(array, 0), "0 or more")
    if column.name in rules.one_of:
        allowed = rules.one_of[column.name]
        note(pc.invert(pc.is_in(array, pa.array(allowed))), "one of " + ", ".join(allowed))


def _show(value: object) -> object:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _record(table: pa.Table, row: int) -> str:
    """The whole row as JSON text, so that quarantine loses nothing."""
    values = {name: _show(value) for name, value in table.slice(row, 1).to_pylist()[0].items()}
    return json.dumps(values, default=str, ensure_ascii=False)
