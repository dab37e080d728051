"""Avro to Arrow: right types, and poison set apart from its neighbours."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_logging.spool import StoredRecord
from audit_publisher.exceptions import RegistryUnavailable, UnknownSchema
from audit_sink.ingest.claims import Poison
from audit_sink.ingest.decode import OFFSET, decode
from audit_sink.lake.schema import avro_text, lake_schema

SCHEMA = fastavro.parse_schema(json.loads(avro_text()))


def fields(**overrides: Any) -> dict[str, Any]:
    return {
        "request_id": "id",
        "service_name": "inventory-api",
        "endpoint_name": "iac/v1/inventory",
        "path": "/iac",
        "method": "GET",
        "response_code": 200,
        "request_ts": 1_700_000_000_123_456,
        "response_ts": 1_700_000_000_223_456,
        "headers": {"a": "b"},
        **overrides,
    }


def body(schema: Any = SCHEMA, **overrides: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, fields(**overrides))
    return stream.getvalue()


def record(offset: int, data: bytes, schema_id: int = 1) -> StoredRecord:
    return StoredRecord(b"\0" + schema_id.to_bytes(4, "big") + data, offset=offset)


def schema_of(schema_id: int) -> str:
    if schema_id == 1:
        return avro_text()
    if schema_id == 2:
        return older_schema()
    raise UnknownSchema(f"no schema {schema_id}")


def older_schema() -> str:
    """As written before the project added its own fields."""
    schema = json.loads(avro_text())
    schema["fields"] = schema["fields"][:13]
    return json.dumps(schema)


def reasons(poison: list[Poison]) -> dict[int, str]:
    return {item.offset: item.reason for item in poison}


def test_values_and_types_arrive() -> None:
    table, poison = decode([record(7, body(headers={"a": "é", "b": ""}, user=None))], schema_of)
    assert poison == []
    assert table.schema.remove(len(table.schema) - 1).equals(lake_schema())
    assert table.schema.field("request_ts").type == pa.timestamp("us", "UTC")
    headers = table.schema.field("headers").type
    assert (headers.key_type, headers.item_type) == (pa.string(), pa.string())
    (row,) = table.to_pylist()
    assert row[OFFSET] == 7
    assert row["request_ts"] == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)
    assert dict(row["headers"]) == {"a": "é", "b": ""}
    assert row["outcome"] == "completed"


def test_records_of_an_older_schema_get_the_defaults_in_the_order_of_the_log() -> None:
    old = fastavro.parse_schema(json.loads(older_schema()))
    records = [
        record(1, body(request_id="new")),
        record(2, body(old, request_id="old"), schema_id=2),
        record(3, body(request_id="newer", outcome="failed")),
    ]
    table, poison = decode(records, schema_of)
    assert poison == []
    assert table.column(OFFSET).to_pylist() == [1, 2, 3]
    assert table.column("outcome").to_pylist() == ["completed", "completed", "failed"]
    assert table.column("request_body_state").to_pylist() == ["full"] * 3
    assert table.column("consumer_id").to_pylist() == [None] * 3


POISON = {
    "framing": (b"", b"\x01\0\0\0\1rest", b"\0\0"),
    "json": (b'{"json": true}', b"  {"),
    "avro": (
        b"\0\0\0\0\1",
        record(0, body()[:30]).value,
        record(0, body() + b"trailing").value,
        record(0, b"\x05abc").value,
        record(0, body(service_name="x").replace(b"\x02x", b"\x02\xff")).value,
    ),
    "schema": (record(0, body(), schema_id=99).value,),
    "value": (
        record(0, body(request_id="")).value,
        record(0, body(service_name="")).value,
        record(0, body(request_ts=-1)).value,
    ),
}


@pytest.mark.parametrize(
    ("reason", "value"), [(reason, value) for reason in POISON for value in POISON[reason]]
)
def test_poison_is_named_and_its_neighbours_stay(reason: str, value: bytes) -> None:
    records = [
        record(0, body(request_id="a")),
        record(1, body(request_id="b")),
        StoredRecord(value, offset=2),
        record(3, body(request_id="c")),
    ]
    table, poison = decode(records, schema_of)
    assert reasons(poison) == {2: reason}
    assert poison[0].message
    assert table.column("request_id").to_pylist() == ["a", "b", "c"]


def test_a_timestamp_beyond_the_calendar_is_poison() -> None:
    # Written as a plain long: fastavro itself has no such date.
    plain = json.loads(avro_text())
    for field in plain["fields"]:
        if field["name"].endswith("_ts"):
            field["type"] = "long"
    data = body(fastavro.parse_schema(plain), request_ts=2**62)
    table, poison = decode([record(0, data), record(1, body())], schema_of)
    assert list(reasons(poison)) == [0]
    assert len(table) == 1


def test_poison_found_before_is_not_looked_at_again() -> None:
    known = [Poison(0, "schema", "unknown then")]
    table, poison = decode([record(0, body()), record(1, body())], schema_of, known)
    assert poison == known
    assert table.column(OFFSET).to_pylist() == [1]


def test_a_registry_that_is_down_makes_nothing_poison() -> None:
    def down(schema_id: int) -> str:
        raise RegistryUnavailable("down")

    with pytest.raises(RegistryUnavailable):
        decode([record(0, body())], down)


def test_a_map_with_one_key_twice_keeps_the_last() -> None:
    # Engines refuse to read such a map, and with it the file.
    twice = body(headers={"a": "1"}).replace(b"\x02\x02a\x021\0", b"\x04\x02a\x021\x02a\x022\0")
    table, poison = decode([record(0, twice), record(1, body(headers={"b": "3"}))], schema_of)
    assert poison == []
    assert table.column("headers").to_pylist() == [[("a", "2")], [("b", "3")]]


def test_nothing_gives_an_empty_table_of_the_schema() -> None:
    table, poison = decode([], schema_of)
    assert len(table) == 0
    assert poison == []
    assert table.column_names == [*lake_schema().names, OFFSET]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just(None),
            st.binary(max_size=60),
            st.integers(0, 120).map(lambda n: record(0, body()[:n]).value),
            st.tuples(st.integers(5, 100), st.integers(0, 255)).map(
                lambda at: bytes(
                    at[1] if index == at[0] else byte
                    for index, byte in enumerate(record(0, body()).value)
                )
            ),
        ),
        max_size=12,
    )
)
def test_each_record_is_a_row_or_poison(values: list[bytes | None]) -> None:
    records = [
        record(offset, body()) if value is None else StoredRecord(value, offset=offset)
        for offset, value in enumerate(values)
    ]
    table, poison = decode(records, schema_of)
    offsets = [*table.column(OFFSET).to_pylist(), *(item.offset for item in poison)]
    assert sorted(offsets) == list(range(len(values)))
    good = {offset for offset, value in enumerate(values) if value is None}
    assert good <= set(table.column(OFFSET).to_pylist())
    table.validate(full=True)
