"""What is written is what is read: by other people's readers, over the whole range of times, and
with every schema that is judged compatible."""

from __future__ import annotations

import json
from fractions import Fraction
from io import BytesIO
from typing import Any

import fastavro
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_publisher import codec
from audit_publisher.avro.compatibility import backward_problems
from audit_publisher.codec import SCHEMA_PATH
from audit_publisher.exceptions import InvalidEvent
from audit_publisher.serializers import micros, parse_event
from audit_publisher.testing import make_event, make_record
from tests.unit.audit_publisher.conftest import Configure
from tests.unit.audit_publisher.test_schema import VERSIONS, _fields, _record

FIELDS = {field["name"] for field in json.loads(SCHEMA_PATH.read_text())["fields"]}

#: 2200-01-01.
LATEST = 7_258_118_400

# -- times -------------------------------------------------------------------------------------

#: Where a float's steps become larger than half a microsecond, and its product with a million
#: still has fractions: 2106 to 2112.
_times = st.one_of(
    st.integers(0, LATEST * 1_000_000),
    st.integers(2**32 * 1_000_000, 2**52),
    st.integers(2**31 * 1_000_000 - 1000, 2**31 * 1_000_000 + 1000),
)


@given(_times)
def test_every_microsecond_arrives(when: int) -> None:
    text = f"{when // 1_000_000}.{when % 1_000_000:06d}"
    assert micros(float(text)) == when
    raw = json.dumps(make_event(request_ts=0)).replace('"request_ts": 0', f'"request_ts": {text}')
    assert micros(parse_event(raw.encode()).request_ts) == when


@given(st.floats(0, LATEST))
def test_a_finer_time_is_rounded_to_the_nearest(seconds: float) -> None:
    exact = Fraction(seconds) * 1_000_000
    assert abs(Fraction(micros(seconds)) - exact) <= Fraction(1, 2) + Fraction(1, 10**6)


@pytest.mark.parametrize("when", [0, 1, LATEST - 1, LATEST, 0.000001, 4294967296.999999])
def test_the_ends_of_the_range_arrive(when: float) -> None:
    value = make_record(make_event(request_ts=when, response_ts=when)).value
    stored = _plain(value)
    assert stored["request_ts"] == stored["response_ts"] == round(when * 1_000_000)


@pytest.mark.parametrize("when", [-0.000001, -1, LATEST + 0.00001, 1e300, 2**63])
def test_what_is_outside_is_refused(when: float) -> None:
    for name in ("request_ts", "response_ts"):
        with pytest.raises(InvalidEvent) as caught:
            parse_event(msgspec.json.encode(make_event(**{name: when})))
        assert caught.value.field == name


def _plain(value: bytes) -> dict[str, Any]:
    """A record's value as fastavro reads it without logical types: the numbers themselves."""
    text = json.dumps(json.loads(SCHEMA_PATH.read_text()))
    schema = json.loads(text.replace(', "logicalType": "timestamp-micros"', ""))
    _, body = codec.split_frame(value)
    found = fastavro.schemaless_reader(BytesIO(body), fastavro.parse_schema(schema), None)
    assert isinstance(found, dict)
    return found


# -- other people's readers ----------------------------------------------------------------------


@pytest.mark.django_db
def test_confluent_s_reader_reads_ours(configure: Configure, schema_registry: Any) -> None:
    """With its own client, its own subject naming, and a real registry."""
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroDeserializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    configure(REGISTRY_URL=schema_registry.url, REGISTRY_TIMEOUT=10)
    event = make_event(request_ts=1_790_000_000.000001, user="équipe", request_body=None)
    value = make_record(event).value
    client = SchemaRegistryClient({"url": schema_registry.url})
    read = AvroDeserializer(client)
    found = read(value, SerializationContext("api-audit-events", MessageField.VALUE))
    assert found["request_id"] == event["request_id"]
    assert found["request_ts"].timestamp() == pytest.approx(1_790_000_000.000001, abs=1e-7)
    assert found["request_ts"].microsecond == 1
    assert (found["user"], found["request_body"]) == ("équipe", None)
    assert set(found) == FIELDS
    # Under the name that its serializers look for: TopicNameStrategy.
    latest = client.get_latest_version("api-audit-events-value")
    assert json.loads(latest.schema.schema_str) == json.loads(codec.schema_text())
    assert value[0] == 0
    assert int.from_bytes(value[1:5], "big") == latest.schema_id


def test_apache_s_reader_reads_ours() -> None:
    from avro.io import BinaryDecoder, DatumReader
    from avro.schema import parse

    event = make_event(user="équipe", seq=2**63 - 1)
    _, body = codec.split_frame(make_record(event).value)
    reader = DatumReader(parse(SCHEMA_PATH.read_text()))
    found = reader.read(BinaryDecoder(BytesIO(bytes(body))))
    assert (found["request_id"], found["seq"]) == (event["request_id"], 2**63 - 1)
    assert (found["user"], found["headers"]) == ("équipe", event["headers"])


# -- older data ----------------------------------------------------------------------------------

_SAMPLES: dict[str, Any] = {
    "string": "text",
    "int": 7,
    "long": 2**40,
    "double": 0.5,
    "bytes": b"bytes",
    "map": {"a": "b"},
    "array": [1, 2],
}


def _sample(kind: Any) -> list[Any]:
    """A value of each branch of a type."""
    if isinstance(kind, list):
        return [value for branch in kind for value in _sample(branch)]
    if isinstance(kind, dict):
        if kind["type"] == "map" and isinstance(kind["values"], list):
            return [{"a": None, "b": "c"}]
        kind = kind["type"]
    return [None] if kind == "null" else [_SAMPLES[kind]]


@given(_fields, _fields)
def test_what_is_judged_compatible_reads_old_data(
    reader: dict[str, Any], writer: dict[str, Any]
) -> None:
    new, old = _record(reader), _record(writer)
    if backward_problems(new, old):
        return
    names = [field["name"] for field in old["fields"]]
    samples = [_sample(field["type"]) for field in old["fields"]]
    for index in range(max(map(len, samples), default=1)):
        written = {
            name: values[index % len(values)] for name, values in zip(names, samples, strict=True)
        }
        out = BytesIO()
        fastavro.schemaless_writer(out, fastavro.parse_schema(old), written)
        out.seek(0)
        read = fastavro.schemaless_reader(
            out, fastavro.parse_schema(old), fastavro.parse_schema(new)
        )
        assert isinstance(read, dict)
        assert set(read) == {field["name"] for field in new["fields"]}


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_records_of_every_version_are_read_today(path: Any) -> None:
    old = json.loads(path.read_text())
    event = make_event()
    event["request_ts"] = event["response_ts"] = 1_790_000_000_000_001
    names = {field["name"] for field in old["fields"]}
    out = BytesIO()
    kept = {name: value for name, value in event.items() if name in names}
    fastavro.schemaless_writer(out, fastavro.parse_schema(old), kept)
    out.seek(0)
    read = fastavro.schemaless_reader(out, fastavro.parse_schema(old), codec.parsed_schema())
    assert isinstance(read, dict)
    assert set(read) == FIELDS
    assert read["request_id"] == event["request_id"]
    assert read["request_ts"].microsecond == 1
