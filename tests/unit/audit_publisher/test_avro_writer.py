"""The writer that is made for a schema writes what a general one writes, byte for byte."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit_publisher import codec
from audit_publisher.avro.writer import NotCompiled, compile_writer, long

SCHEMA = json.loads(codec.SCHEMA_PATH.read_text())
LONG = st.integers(-(2**63), 2**63 - 1)
#: Short ones, and lengths about those that encodings are kept ready for.
TEXT = st.text(max_size=40) | st.integers(8_180, 8_200).map("a".__mul__)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    if isinstance(kind, list):
        return st.one_of(*(values_of(branch) for branch in kind))
    if isinstance(kind, dict) and kind["type"] == "map":
        return st.dictionaries(st.text(max_size=10), st.text(max_size=40), max_size=20)
    if isinstance(kind, dict):
        return values_of(kind["type"])
    return {
        "null": st.none(),
        "string": TEXT,
        "int": st.integers(-(2**31), 2**31 - 1),
        "long": LONG,
    }[kind]


EVENTS = st.fixed_dictionaries(
    {field["name"]: values_of(field["type"]) for field in SCHEMA["fields"]}
)


def by_fastavro(schema: Any, record: dict[str, Any]) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


@given(EVENTS)
def test_an_event_is_the_same_bytes(event: dict[str, Any]) -> None:
    written = codec.writer()(event)
    # A second time from what was kept of the first.
    assert written == codec.writer()(event) == by_fastavro(SCHEMA, event)


def test_code_is_made_for_our_schema() -> None:
    assert codec.writer() is not codec._write_slowly


@given(LONG)
@example(0)
@example(-1)
@example(2**13)
@example(2**13 - 1)
@example(-(2**13))
@example(2**63 - 1)
@example(-(2**63))
def test_a_long_is_the_same_bytes(number: int) -> None:
    schema = {"type": "record", "name": "n", "fields": [{"name": "n", "type": "long"}]}
    assert long(number) == by_fastavro(schema, {"n": number})


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**200])
def test_more_than_64_bits_are_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        long(number)


@pytest.mark.parametrize(
    "kind",
    ["double", ["null", "double"], ["null", "string", "long"], ["string", "null"], "bytes"],
)
def test_a_type_without_code_is_said(kind: Any) -> None:
    with pytest.raises(NotCompiled, match="odd"):
        compile_writer({"fields": [{"name": "odd", "type": kind}]})


@pytest.mark.parametrize(
    "broken",
    [
        {"path": None},
        {"path": 1},
        {"response_code": "1"},
        {"headers": {"a": None}},
        {"user": "\ud800"},
    ],
)
def test_what_does_not_fit_is_a_codec_error(broken: dict[str, Any]) -> None:
    whole = {
        field["name"]: {"string": "x", "int": 1}.get(str(field["type"]), 1)
        for field in SCHEMA["fields"]
    }
    whole |= {name: None for name in whole if _kind(name)[:1] == ["null"]} | {"headers": {}}
    codec.writer()(whole)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        codec.writer()(whole | broken)


def _kind(name: str) -> list[str]:
    kind = next(field["type"] for field in SCHEMA["fields"] if field["name"] == name)
    return kind if isinstance(kind, list) else []


def test_what_is_kept_is_bounded() -> None:
    write = compile_writer({"fields": [{"name": "a", "type": "string"}]}, ["a"])
    for number in range(50_000):
        assert write({"a": str(number)}).endswith(str(number).encode())
    kept = write.__globals__["kept"]  # type: ignore[attr-defined]
    assert len(kept) <= 20_000
    write({"a": "x" * 100_000})
    assert "x" * 100_000 not in kept
