"""The schema: what may change, and that every form of it says the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse
from hypothesis import given
from hypothesis import strategies as st

from audit_publisher import codec
from audit_publisher.avro.compatibility import backward_problems
from audit_publisher.codec import SCHEMA_PATH
from audit_publisher.exceptions import CodecError, RegistryError
from audit_publisher.http import openapi
from audit_publisher.serializers import LogEvent, parse_event
from audit_publisher.testing import make_event, make_record

VERSIONS = sorted((SCHEMA_PATH.parent / "versions").glob("*.avsc"), key=lambda p: int(p.stem))
CURRENT = json.loads(SCHEMA_PATH.read_text())


def avro_says(reader: Any, writer: Any) -> bool:
    checker = ReaderWriterCompatibilityChecker()
    result = checker.get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    return result.compatibility is SchemaCompatibilityType.compatible


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_today_s_schema_reads_every_earlier_version(path: Path) -> None:
    earlier = json.loads(path.read_text())
    assert avro_says(CURRENT, earlier)
    assert backward_problems(CURRENT, earlier) == []


def test_a_change_of_the_schema_is_a_new_version() -> None:
    assert json.loads(VERSIONS[-1].read_text()) == CURRENT, (
        f"log_event.avsc changed: copy it to schemas/versions/{len(VERSIONS) + 1}.avsc"
    )


def test_every_form_has_the_same_fields() -> None:
    names = [field["name"] for field in CURRENT["fields"]]
    assert set(LogEvent.__struct_fields__) == set(names)
    event = openapi.document()["components"]["schemas"]["LogEvent"]
    assert set(event["properties"]) == set(names)
    without_default = {field["name"] for field in CURRENT["fields"] if "default" not in field}
    assert set(event["required"]) == without_default
    assert set(make_event()) == set(names)


_TYPES: list[Any] = [
    "string",
    "int",
    "long",
    "double",
    "bytes",
    ["null", "string"],
    ["null", "long"],
    ["null", "int", "string"],
    {"type": "map", "values": "string"},
    {"type": "map", "values": ["null", "string"]},
    {"type": "array", "items": "long"},
    {"type": "long", "logicalType": "timestamp-micros"},
]
_fields = st.dictionaries(
    st.sampled_from("abcd"), st.tuples(st.sampled_from(_TYPES), st.booleans()), max_size=4
)


def _record(fields: dict[str, Any]) -> dict[str, Any]:
    defaults = {"string": "", "bytes": "", "double": 0.0, "map": {}, "array": []}
    made = []
    for name, (kind, has_default) in fields.items():
        field = {"name": name, "type": copy.deepcopy(kind)}
        if has_default:
            base = kind["type"] if isinstance(kind, dict) else kind
            field["default"] = None if isinstance(kind, list) else defaults.get(base, 0)
        made.append(field)
    return {"type": "record", "name": "R", "fields": made}


@given(_fields, _fields)
def test_our_check_agrees_with_avro_s(reader: dict[str, Any], writer: dict[str, Any]) -> None:
    new, old = _record(reader), _record(writer)
    assert (backward_problems(new, old) == []) == avro_says(new, old)


def test_what_is_wrong_is_named() -> None:
    new = copy.deepcopy(CURRENT)
    new["fields"].append({"name": "tenant", "type": "string"})
    new["fields"][7]["type"] = "string"
    assert backward_problems(new, CURRENT) == [
        "response_code: int cannot be read as string",
        "tenant: a new field needs a default",
    ]


# -- the codec ----------------------------------------------------------------------------


def test_every_microsecond_arrives() -> None:
    start = 1_790_000_000_000_000
    for micros in (*range(start, start + 2000), 999_999, 4_102_444_799_999_999):
        text = f"{micros // 1_000_000}.{micros % 1_000_000:06d}"
        body = json.dumps(make_event(request_ts=0)).replace(
            '"request_ts": 0', f'"request_ts": {text}'
        )
        stamp = codec.decode(_value(body))["request_ts"].timestamp()
        assert round(stamp * 1_000_000) == micros


def _value(body: str) -> bytes:
    return make_record(msgspec.json.decode(body)).value


def test_clocks_step_back() -> None:
    parse_event(msgspec.json.encode(make_event(request_ts=1000.5, response_ts=999)))


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_text_arrives_as_it_was_sent(body: str, path: str, headers: dict[str, str]) -> None:
    try:
        data = msgspec.json.encode(make_event(response_body=body, path=path, headers=headers))
    except UnicodeEncodeError:  # lone surrogates: not JSON
        return
    try:
        decoded = codec.decode(make_record(msgspec.json.decode(data)).value)
    except Exception as error:
        if "site id" in str(error):
            return
        raise
    assert (decoded["response_body"], decoded["path"]) == (body, path)


def test_avro_is_smaller_than_json() -> None:
    event = make_event(request_body=None, response_body=None)
    assert len(make_record(event).value) <= 0.5 * len(msgspec.json.encode(event))


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x00\x00\x00\x01", b"\x01\x00\x00\x00\x01x"])
def test_what_is_not_framed(value: bytes) -> None:
    with pytest.raises(CodecError):
        codec.split_frame(value)
    with pytest.raises(CodecError):
        codec.decode(value)


def test_poison() -> None:
    value = make_record().value
    schema_id, body = codec.split_frame(value)
    assert (schema_id, bytes(body)) == (1, value[5:])
    with pytest.raises(CodecError, match="Bytes"):
        codec.decode(value + b"x")
    with pytest.raises(CodecError):
        codec.decode(value[:-3])
    with pytest.raises(RegistryError):
        codec.decode(b"\x00\x00\x0f\x00\x00" + value[5:])


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_error(data: bytes) -> None:
    make_record()
    for value in (data, b"\x00\x00\x00\x00\x01" + data):
        try:
            codec.decode(value)
        except (CodecError, RegistryError):
            pass


def test_a_dead_registry_is_not_asked_for_each_event() -> None:
    asked = []

    class Dead:
        def register(self, subject: str, text: str) -> int:
            asked.append(subject)
            raise RegistryError("dead")

    now = 0.0
    ids = codec.SchemaIds(clock=lambda: now)
    original, codec.get_registry = codec.get_registry, Dead  # type: ignore[assignment]
    try:
        for _ in range(10):
            with pytest.raises(RegistryError):
                ids.get("events")
        assert asked == ["events-value"]
        now = 10.0
        with pytest.raises(RegistryError):
            ids.get("events")
        assert len(asked) == 2
    finally:
        codec.get_registry = original
