"""Avro's binary encoding by code that is made for one schema.

A general writer asks of each value what it may be; this one knows. The encoding is that of the Avro
specification (https://avro.apache.org/docs/1.12.0/specification/#binary-encoding).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..remembered import Remembered

Writer = Callable[[Mapping[str, Any]], bytes]

_LOW, _HIGH = -(2**63), 2**63 - 1
_BITS = 14
_MASK = (1 << _BITS) - 1


class NotCompiled(Exception):
    """The schema has a part that no code is made for."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


#: The last bytes of a number, and two that others follow.
_LAST = tuple(_varint(number) for number in range(1 << _BITS))
_MORE = tuple(bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(1 << _BITS))
#: Lengths of strings, twice as large: a length is a number with a sign.
_LENGTHS = tuple(_varint(length << 1) for length in range(1 << 13))
_NULL = b"\x00"
#: Lengths of strings that are the second branch of a union.
_OPTIONAL = tuple(b"\x02" + length for length in _LENGTHS)


def long(value: int) -> bytes:
    """An int or long: zigzag, then seven bits a byte.

    :raises OverflowError: it has more than 64 bits.
    """
    number = value << 1 if value >= 0 else (-value << 1) - 1
    if number <= _MASK:
        return _LAST[number]
    if not _LOW <= value <= _HIGH:
        raise OverflowError(f"{value} has more than 64 bits")
    high = number >> 2 * _BITS
    if not high:
        return _MORE[number & _MASK] + _LAST[number >> _BITS]
    # Of times in microseconds this part changes each few minutes.
    return (
        _MORE[number & _MASK] + _MORE[number >> _BITS & _MASK] + (_highs.get(high) or _keep(high))
    )


_highs: dict[int, bytes] = {}


def _keep(high: int) -> bytes:
    if len(_highs) > _MASK:
        _highs.clear()
    made = _highs[high] = _varint(high)
    return made


def string(value: str) -> bytes:
    """A string: its length in bytes, and its UTF-8."""
    data = value.encode()
    length = len(data)
    return (_LENGTHS[length] if length < len(_LENGTHS) else long(length)) + data


def optional_string(value: str) -> bytes:
    """The string of a union of null and string."""
    data = value.encode()
    length = len(data)
    return (_OPTIONAL[length] if length < len(_OPTIONAL) else b"\x02" + long(length)) + data


def optional_long(value: int | None) -> bytes:
    """A union of null and long."""
    return _NULL if value is None else b"\x02" + long(value)


def _map(value: Mapping[str, str], names: Mapping[str, bytes]) -> bytes:
    """A map of strings: one block with its count, and an empty one."""
    if not value:
        return _NULL
    parts = [long(len(value))]
    for name, text in value.items():
        data = text.encode()
        length = len(data)
        parts += (
            names[name],
            _LENGTHS[length] if length < len(_LENGTHS) else long(length),
            data,
        )
    parts.append(_NULL)
    return b"".join(parts)


def compile_writer(schema: Mapping[str, Any], repeated: Collection[str] = ()) -> Writer:
    """Return a function that encodes a record of `schema` from a mapping of its fields.

    It raises what Python raises of values of other types: TypeError, AttributeError, KeyError,
    ValueError (text that has no UTF-8), OverflowError.

    :param schema: a record, as parsed JSON.
    :param repeated: string fields with few values.
    :raises NotCompiled: it has other parts than ints, longs, strings, maps of strings, and unions
        of null with the first three.
    """
    names: dict[str, Any] = {
        "join": b"".join,
        "null": _NULL,
        "long": long,
        "string": string,
        "optional_string": optional_string,
        "optional_long": optional_long,
        "map_of": _map,
        "kept": Remembered(string),
        "kept_optional": Remembered(
            lambda value: _NULL if value is None else optional_string(value)
        ),
    }
    parts = [
        _part(field["type"], repr(field["name"]), field["name"] in repeated)
        for field in schema["fields"]
    ]
    source = f"def write(of):\n return join(({', '.join(parts)},))"
    # Only names of the schema's own fields are in it, each as a literal.
    exec(source, names)  # noqa: S102
    made: Writer = names["write"]
    return made


def _part(kind: Any, name: str, repeated: bool) -> str:
    optional = ""
    if isinstance(kind, list):
        if len(kind) != 2 or kind[0] != "null":
            raise NotCompiled(f"{name}: a union of {kind}")
        optional, kind = "optional_", kind[1]
    if isinstance(kind, dict) and "logicalType" in kind:
        # They are given as what they are stored as.
        kind = kind["type"]
    if kind == "string":
        if repeated:
            return f"kept{optional and '_optional'}[of[{name}]]"
        if optional:
            return f"(null if (v := of[{name}]) is None else optional_string(v))"
        return f"string(of[{name}])"
    if kind in ("int", "long"):
        return f"{optional}long(of[{name}])"
    if kind == {"type": "map", "values": "string"} and not optional:
        return f"map_of(of[{name}], kept)"
    raise NotCompiled(f"{name}: {kind}")
