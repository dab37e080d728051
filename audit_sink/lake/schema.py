"""The columns of a lake file: the Avro LogEvent's fields, as Arrow types."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

#: Grows when the columns change; stands in each file's footer.
SCHEMA_VERSION = 2

#: Columns whose values repeat enough for a dictionary to pay.
DICTIONARY = (
    "service_name",
    "endpoint_name",
    "path",
    "method",
    "response_code",
    "error_reason",
    "consumer_id",
    "site_id",
    "user",
    "outcome",
    "request_body_state",
    "response_body_state",
    "producer_epoch",
    "token_fingerprint",
    "headers.key_value.key",
    "headers.key_value.value",
)

#: Columns that nobody compares as a whole: their least and greatest values would only take room.
BODIES = ("request_body", "response_body")

#: Columns that are asked for by one exact value: their bloom filters say where it is not.
LOOKED_UP = ("request_id", "trace_id")


@functools.cache
def avro_text() -> str:
    """The publisher's Avro schema, as it stands in its package."""
    return (resources.files("audit_publisher") / "schemas" / "log_event.avsc").read_text()


@functools.cache
def lake_schema() -> pa.Schema:
    """The one Arrow schema of all files, derived from the Avro schema.

    Timestamps are microseconds in UTC; headers are a map of strings.
    """
    import pyarrow as pa
    import pyruhvro

    instant = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            pa.field(
                field.name,
                instant if pa.types.is_timestamp(field.type) else field.type,
                nullable=field.nullable,
            )
            for field in pyruhvro.avro_to_arrow_schema(avro_text())
        ]
    )
