"""How many bytes a batch of records has in Avro, computed from its Arrow columns.

Avro's binary encoding, https://avro.apache.org/docs/1.12.0/specification/: whole numbers and
lengths are zig-zag variable-length integers, a union begins with its branch, a map is one block of
entries and a zero. This is the shortest form there is of the same values.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: Bytes of the values of one column: without the nulls, and without a union's branch.
_Size = Callable[[pa.Array], int]


def encoded_size(batch: pa.RecordBatch, text: str) -> int:
    """Return the bytes of all records of `batch` in Avro, in its shortest form.

    :param text: their schema, as JSON.
    """
    sizes = _sizes(text)
    if sizes is None:
        import pyruhvro

        encoded = pyruhvro.serialize_record_batch(batch, text, 1)
        return sum(pc.sum(pc.binary_length(chunk)).as_py() or 0 for chunk in encoded)
    return sum(size(batch.column(name)) for name, size in sizes)


@functools.lru_cache(maxsize=64)
def _sizes(text: str) -> tuple[tuple[str, _Size], ...] | None:
    """The fields and how their columns are counted; None when one is of a type not known here."""
    schema = json.loads(text)
    try:
        return tuple((field["name"], _size_of(field["type"])) for field in schema["fields"])
    except KeyError:
        return None


def _size_of(kind: Any) -> _Size:
    """How a column of the Avro type `kind` is counted.

    :raises KeyError: not known here.
    """
    if isinstance(kind, list):
        if len(kind) != 2 or "null" not in kind:
            raise KeyError("union")
        inner = _size_of(kind[1] if kind[0] == "null" else kind[0])
        # One byte for the branch, of nulls too.
        return lambda column: len(column) + inner(column.drop_null())
    if isinstance(kind, dict):
        if kind["type"] == "map":
            return functools.partial(_map_size, _size_of(kind["values"]))
        if "logicalType" in kind and kind["logicalType"] not in _INSTANTS:
            raise KeyError(kind["logicalType"])
        kind = kind["type"]
    return _PLAIN[kind]


def _text_size(column: pa.Array) -> int:
    lengths = pc.binary_length(column)
    return (pc.sum(lengths).as_py() or 0) + _length_size(lengths)


def _length_size(lengths: pa.Array) -> int:
    """Bytes of lengths and counts, which are never below zero."""
    if not len(lengths):
        return 0
    most = pc.max(lengths).as_py()
    size = len(lengths)
    # Zig-zag doubles it; each byte holds seven bits.
    limit = 1 << 6
    while most >= limit:
        size += pc.sum(pc.greater_equal(lengths, pa.scalar(limit, lengths.type))).as_py()
        limit <<= 7
    return size


def _number_size(column: pa.Array) -> int:
    if not len(column):
        return 0
    numbers = column.cast(pa.int64())
    # A negative number n takes what ~n takes.
    flipped = pc.if_else(pc.less(numbers, 0), pc.bit_wise_not(numbers), numbers)
    most = pc.max(flipped).as_py()
    size = len(numbers)
    limit = 1 << 6
    while most >= limit:
        size += pc.sum(pc.greater_equal(flipped, pa.scalar(limit, pa.int64()))).as_py()
        limit <<= 7
    return size


def _map_size(values: _Size, column: pa.MapArray) -> int:
    if not len(column):
        return 0
    first, last = column.offsets[0].as_py(), column.offsets[len(column)].as_py()
    counts = pc.subtract(column.offsets[1:], column.offsets[:-1])
    filled = counts.filter(pc.greater(counts, 0))
    keys, items = (part.slice(first, last - first) for part in (column.keys, column.items))
    # A count before the entries, if there are any, and a zero after them.
    return len(column) + _length_size(filled) + _text_size(keys) + values(items)


_INSTANTS = {"timestamp-micros", "timestamp-millis"}
_PLAIN: dict[str, _Size] = {
    "string": _text_size,
    "bytes": _text_size,
    "int": _number_size,
    "long": _number_size,
    "boolean": len,
    "float": lambda column: 4 * len(column),
    "double": lambda column: 8 * len(column),
}
