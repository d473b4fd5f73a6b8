"""Casts raw columns to a schema without loss; a row that does not cast goes to quarantine.

"4995" becomes the int64 4995 and 4995.0 too; 49.95, "4995 EUR" and NaN do not. Whole columns are cast
at once; only where that fails is the column halved until the bad rows stand alone, so clean data
costs one vectorised cast.
"""

import json
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data import casts
from rayrec.data.readers import MIXED, RawTable
from rayrec.errors import SchemaError
from rayrec.schema import QUARANTINE

_FOUND_CHARS = 200
_MAX_ID_CHARS = 512
_YEAR_2100_US = 4_102_444_800_000_000


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
        if raw.table.column_names.count(name) > 1:
            raise SchemaError(f"{raw.source}: more than one column {name!r}; rename all but one")
        source = raw.table.column(name).combine_chunks()
        if isinstance(source, pa.ChunkedArray):  # combine_chunks of zero or many chunks
            source = pa.concat_arrays(source.chunks) if source.num_chunks else pa.nulls(0, source.type)
        found: dict[int, str] = {}
        array = _convert(source, column, rules, found)
        _check(array, column, rules, found)
        for row, expected in found.items():
            faults.setdefault(row, (name, _show(source[row]), expected))
        arrays.append(array)
    for row in sorted(faults):
        name, value, expected = faults[row]
        quarantine.add(raw.source, raw.rows[row], name, value, expected, record(raw, raw.rows[row]))
    keep = np.ones(n, bool)
    keep[list(faults)] = False
    table = pa.table(arrays, names=schema.names).filter(pa.array(keep))
    table = pa.table([c.cast(f.type) for c, f in zip(table.columns, schema, strict=True)], schema=schema)
    return table, [raw.rows[i] for i in np.flatnonzero(keep)]


def record(raw: RawTable, row: int) -> str:
    """The whole row at place `row` of its file as JSON text, so that quarantine loses nothing."""
    at = bisect_left(raw.rows, row)
    values = {name: _show(column[at]) for name, column in zip(raw.table.column_names, raw.table.columns, strict=True)}
    return json.dumps(values, default=str, ensure_ascii=False)


def drop_repeats(
    table: pa.Table, key: str, rows: list[int], raw: RawTable, seen: set[str], quarantine: Quarantine
) -> pa.Table:
    """Keep the first row of each key over all files; later ones go to quarantine.

    table, rows: what `conform` made of `raw`.
    """
    keep = np.ones(table.num_rows, bool)
    for i, value in enumerate(table.column(key).to_pylist()):
        if value in seen:
            keep[i] = False
            expected = "a unique id (an earlier row has it)"
            quarantine.add(raw.source, rows[i], key, value, expected, record(raw, rows[i]))
        seen.add(value)
    return table if keep.all() else table.filter(pa.array(keep))


def _convert(source: pa.Array, column: pa.Field, rules: Rules, found: dict[int, str]) -> pa.Array:
    """Cast `source` to the column's type; rows that do not cast become null and are noted in `found`."""
    if source.type == MIXED:
        texts = casts.any_text if pa.types.is_nested(column.type) else casts.plain_text
        source = _bisect(source, texts, pa.string(), found, "a plain value")
    if pa.types.is_dictionary(source.type):
        source = source.dictionary_decode()
    if pa.types.is_binary(source.type) or pa.types.is_large_binary(source.type):
        source = _bisect(source, casts.utf8, pa.string(), found, "valid UTF-8")
    elif pa.types.is_string(source.type) or pa.types.is_large_string(source.type):
        source = _bisect(source, lambda a: casts.utf8(a.cast(pa.large_binary())), pa.string(), found, "valid UTF-8")
    if pa.types.is_string(source.type):
        trimmed = pc.utf8_trim_whitespace(source)
        source = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    cast, expected = _caster(source.type, column, rules)
    return _bisect(source, cast, column.type, found, expected)


def _caster(source: pa.DataType, column: pa.Field, rules: Rules) -> tuple[Callable[[pa.Array], pa.Array], str]:
    target = column.type
    text = pa.types.is_string(source)
    if pa.types.is_map(target):
        return casts.to_map, "a JSON object or a struct of plain values"
    if pa.types.is_list(target):
        if text:
            return (lambda a: casts.split(a, rules.category_separator)), "a path of words"
        return casts.to_strings, "a list of strings"
    if column.name.endswith("_us"):
        return casts.to_microseconds, "a time: ISO 8601, or whole microseconds since 1970"
    if pa.types.is_boolean(target) and not text and not pa.types.is_boolean(source):
        return casts.to_bool, "true or false"
    if pa.types.is_integer(target) and text:
        return casts.text_to_int, f"{target} (a whole number)"
    if pa.types.is_string(target) and pa.types.is_nested(source):
        return casts.refuse, "plain text"
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
        if len(array) <= 1:
            found.update(dict.fromkeys(range(start, start + len(array)), expected))
            return pa.nulls(len(array), target)
    half = len(array) // 2
    left = _bisect(array.slice(0, half), cast, target, found, expected, start)
    right = _bisect(array.slice(half), cast, target, found, expected, start + half)
    return pa.concat_arrays([_plain(left), _plain(right)])


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _check(array: pa.Array, column: pa.Field, rules: Rules, found: dict[int, str]) -> None:
    """Note rows that cast but break a rule: a missing key, over-long text, a negative count, a wrong word."""

    def note(mask: pa.Array, expected: str) -> None:
        for row in np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)):
            found.setdefault(int(row), expected)

    if not column.nullable:
        note(pc.is_null(array), "a value; it is required")
    if pa.types.is_string(array.type):
        longest = min(rules.max_text_chars, _MAX_ID_CHARS) if column.name.endswith("_id") else rules.max_text_chars
        note(pc.greater(pc.utf8_length(array), longest), f"at most {longest} characters")
    if column.name.endswith("_us"):  # one event in nanoseconds would make all others ancient
        outside = pc.or_(pc.less(array, 0), pc.greater_equal(array, _YEAR_2100_US))
        note(outside, "a time from 1970 to 2100, in microseconds")
    if column.name in rules.non_negative:
        note(pc.less(array, 0), "0 or more")
    if column.name in rules.one_of:
        allowed = rules.one_of[column.name]
        note(pc.invert(pc.is_in(array, pa.array(allowed))), "one of " + ", ".join(allowed))


def _show(scalar: pa.Scalar) -> object:
    """A raw value as plain Python; bytes that are not UTF-8 as `\\xff`."""
    try:
        value = scalar.as_py()
    except UnicodeDecodeError:
        value = scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else pa.array([scalar]).to_string()
    if scalar.type == MIXED:
        return value["plain"] if value["nested"] is None else json.loads(value["nested"])
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
