"""Casts of whole arrays that lose nothing: the array in its new type, or a ValueError (or an Arrow error).

Which of the rows was at fault is not said here; `conform` halves the array to find out.
"""

import contextlib
import json

import pyarrow as pa
import pyarrow.compute as pc


def any_text(mixed: pa.Array) -> pa.Array:
    """The text of MIXED values, nested ones as JSON."""
    return pc.coalesce(mixed.field("plain"), mixed.field("nested"))


def plain_text(mixed: pa.Array) -> pa.Array:
    """The text of MIXED values, none of them nested."""
    if mixed.field("nested").null_count < len(mixed):
        raise ValueError("nested")
    return mixed.field("plain")


def to_strings(array: pa.Array) -> pa.Array:
    return _valid(array.cast(pa.list_(pa.string())))


def _valid(array: pa.Array) -> pa.Array:
    array = pa.concat_arrays([array.slice(0, 0), array])  # of a slice, this drops the values outside
    array.validate(full=True)  # UTF-8, too, which a cast between like types does not look at
    return array


def utf8(array: pa.Array) -> pa.Array:
    return pc.cast(array, pa.string(), safe=True)


def text_to_int(array: pa.Array) -> pa.Array:
    try:
        return pc.cast(array, pa.int64(), safe=True)
    except pa.ArrowInvalid:  # "4995.0" is whole too
        floats = pc.cast(array, pa.float64(), safe=True)
        if pc.any(pc.greater_equal(pc.abs(floats), 2.0**53)).as_py():
            raise ValueError("a float of this size has lost digits") from None
        return pc.cast(floats, pa.int64(), safe=True)


def to_bool(array: pa.Array) -> pa.Array:
    whole = pc.cast(array, pa.int64(), safe=True)
    if not pc.all(pc.is_in(pc.drop_null(whole), pa.array([0, 1]))).as_py() and len(pc.drop_null(whole)):
        raise ValueError("neither 0 nor 1")
    return pc.cast(whole, pa.bool_())


def to_microseconds(array: pa.Array) -> pa.Array:
    if pa.types.is_string(array.type):
        try:
            return text_to_int(array)
        except ValueError:  # ArrowInvalid is one
            try:
                stamps = pc.cast(array, pa.timestamp("us", tz="UTC"), safe=True)
            except pa.ArrowInvalid:  # no zone given: it is UTC
                stamps = pc.cast(array, pa.timestamp("us"), safe=True)
            return pc.cast(stamps, pa.int64())
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        return pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())
    return pc.cast(array, pa.int64(), safe=True)


def split(array: pa.Array, separator: str) -> pa.Array:
    parts = [None if text is None else _path(text, separator) for text in array.to_pylist()]
    return pa.array(parts, pa.list_(pa.string()))


def _path(text: str, separator: str) -> list[str]:
    """The words of `Grocery > Snacks`, or of a JSON array, which is how CSV files write a list."""
    if text[0] in "[{":
        with contextlib.suppress(json.JSONDecodeError):  # "[New] Shoes" is a word too
            words = json.loads(text)
            if not isinstance(words, list) or any(isinstance(word, (list, dict)) for word in words):
                raise ValueError("not an array of words")
            return [_flat(word) for word in words if word is not None]
    return [word for word in (piece.strip() for piece in text.split(separator)) if word]


def to_map(array: pa.Array) -> pa.Array:
    target = pa.map_(pa.string(), pa.string())
    if pa.types.is_map(array.type):
        return _valid(array.cast(target))
    out: list[list[tuple[str, str]] | None] = []
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


def refuse(array: pa.Array) -> pa.Array:
    if array.null_count == len(array):
        return pa.nulls(len(array), pa.string())
    raise ValueError("nested")
