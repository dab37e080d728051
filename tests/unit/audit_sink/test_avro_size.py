"""The size of Avro computed from columns is what an encoder writes."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pyarrow as pa
import pyruhvro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_sink.ingest.avro_size import _sizes, encoded_size

_TEXT = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=8),
    st.integers(0, 20_000).map(lambda n: "x" * n),
)
_LONG = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -1, 63, 64, -64, -65, 8191, 8192, -8193, 2**62, -(2**63), 2**63 - 1]),
)
_KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "text": ("string", _TEXT),
    "whole": ("int", st.integers(-(2**31), 2**31 - 1)),
    "long": ("long", _LONG),
    "flag": ("boolean", st.booleans()),
    "real": ("double", st.floats(allow_nan=False)),
    "instant": ({"type": "long", "logicalType": "timestamp-micros"}, st.integers(0, 2**50)),
    "maybe": (["null", "string"], st.none() | _TEXT),
    "maybe_long": (["long", "null"], st.none() | _LONG),
    "map": (
        {"type": "map", "values": "string"},
        st.dictionaries(st.text(alphabet="abcé", max_size=3), _TEXT, max_size=70),
    ),
}
SCHEMA = {
    "type": "record",
    "name": "R",
    "fields": [{"name": name, "type": kind} for name, (kind, _) in _KINDS.items()],
}
_ROW = st.fixed_dictionaries({name: values for name, (_, values) in _KINDS.items()})


def encode(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.lists(_ROW, min_size=1, max_size=6))
def test_it_is_what_an_encoder_writes(rows: list[dict[str, Any]]) -> None:
    text = json.dumps(SCHEMA)
    bodies = [encode(SCHEMA, row) for row in rows]
    batch = pyruhvro.deserialize_array(bodies, text)
    assert _sizes(text) is not None
    assert encoded_size(batch, text) == sum(map(len, bodies))
    # Of a part of a batch as well.
    assert encoded_size(batch.slice(1), text) == sum(map(len, bodies[1:]))


def test_types_that_it_does_not_know_are_encoded() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "list", "type": {"type": "array", "items": "long"}}],
    }
    text = json.dumps(schema)
    bodies = [encode(schema, {"list": list(range(n))}) for n in (0, 1, 200)]
    assert _sizes(text) is None
    assert encoded_size(pyruhvro.deserialize_array(bodies, text), text) == sum(map(len, bodies))


@pytest.mark.parametrize("more", [b"\0", b"\0" * 100])
def test_bytes_to_spare_show(more: bytes) -> None:
    text = json.dumps(SCHEMA)
    row = {
        name: {"text": "a", "map": {}}.get(name, 0)
        for name in ("text", "whole", "long", "real", "instant", "map")
    } | {"flag": True, "maybe": None, "maybe_long": None}
    body = encode(SCHEMA, row)
    batch: pa.RecordBatch = pyruhvro.deserialize_array([body, body + more], text)
    assert encoded_size(batch, text) == 2 * len(body)
