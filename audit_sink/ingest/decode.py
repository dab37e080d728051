"""Avro to Arrow, straight, with poison records set apart.

A record of JSON is taken as well, for people who write to the topic by hand: it must be what the
publisher takes. Records are decoded in bulk by their writer's schema. When a bulk fails, or does
not survive validation, it is halved until single records stand alone, and fastavro judges those:
only what the reference implementation refuses too is poison.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from audit_publisher.codec import FRAME_BYTES, split_frame
from audit_publisher.eventlog.base import StoredRecord
from audit_publisher.exceptions import CodecError, InvalidEvent, UnknownSchema
from audit_publisher.routing import Router
from audit_publisher.serializers import parse_event

from ..exceptions import PoisonRecord
from ..lake.schema import avro_text, lake_schema
from .avro_size import encoded_size
from .claims import Poison

#: Column that carries a record's offset until the file is written.
OFFSET = "_offset"

# Timestamps outside these have no calendar date, or one that engines cannot read.
_MIN_TS, _MAX_TS = 0, 253_402_300_799_999_999
_REQUIRED_TEXT = ("request_id", "service_name")


def decode(
    records: Iterable[StoredRecord],
    schema_of: Callable[[int], str],
    known_poison: Iterable[Poison] = (),
) -> tuple[pa.Table, list[Poison]]:
    """Return the records as one table of the lake's schema plus OFFSET, and the poison ones.

    :param schema_of: the registry: a schema's text by its id.
    :param known_poison: found by an earlier try of the same range; not looked at again.
    :raises RegistryUnavailable: a schema is not known and the registry does not answer.
    """
    poison = list(known_poison)
    skip = {item.offset for item in poison}
    if skip:
        records = [record for record in records if record.offset not in skip]
    by_schema = _by_schema(records, poison)
    tables: list[pa.Table] = []
    for schema_id, (offsets, bodies) in by_schema.items():
        try:
            text = _writer_schema(schema_id, schema_of)
        except PoisonRecord as error:
            poison.extend(Poison(offset, error.reason, _line(error)) for offset in offsets)
            continue
        _decode_group(bodies, offsets, text, tables, poison)
    table = pa.concat_tables(tables) if tables else _empty()
    if len(tables) > 1:
        table = table.sort_by(OFFSET)
    return table, sorted(poison, key=lambda item: item.offset)


def _by_schema(
    records: Iterable[StoredRecord], poison: list[Poison]
) -> dict[int, tuple[list[int], list[bytes]]]:
    """Offsets and Avro bodies by schema id; what is not framed joins `poison`."""
    groups: dict[int, tuple[list[int], list[bytes]]] = {}
    # Nearly all have one schema: their prefix is compared, not taken apart.
    same, add_offset, add_body = b"", None, None
    for record in records:
        value = record.value
        prefix = value[:FRAME_BYTES]
        if prefix != same or add_offset is None or add_body is None:
            try:
                value = _framed(record)
                schema_id, _ = split_frame(value)
            except PoisonRecord as error:
                poison.append(Poison(record.offset, error.reason, _line(error)))
                continue
            prefix = value[:FRAME_BYTES]
            offsets, bodies = groups.setdefault(schema_id, ([], []))
            same, add_offset, add_body = prefix, offsets.append, bodies.append
        add_offset(record.offset)
        add_body(value[FRAME_BYTES:])
    return groups


def _framed(record: StoredRecord) -> bytes:
    """The value of a record in Confluent's framing; JSON, as local tools send it, is encoded.

    :raises PoisonRecord: it is neither.
    :raises RegistryError: the id of our schema is not known, and the registry does not tell it.
    """
    value = record.value
    if value.lstrip()[:1] != b"{":
        try:
            split_frame(value)
        except CodecError as error:
            raise PoisonRecord("framing", _line(error)) from error
        return value
    try:
        return Router({}, record.timestamp).to_record(parse_event(value))[1].value
    except (InvalidEvent, CodecError, ValueError) as error:
        raise PoisonRecord("json", _line(error)) from error


def _writer_schema(schema_id: int, schema_of: Callable[[int], str]) -> str:
    try:
        text = schema_of(schema_id)
    except UnknownSchema as error:
        raise PoisonRecord("schema", f"schema {schema_id} is not known: {_line(error)}") from error
    try:
        _check_readable(text)
    except PoisonRecord:
        raise
    except Exception as error:
        raise PoisonRecord("schema", f"schema {schema_id} cannot be used: {error}") from error
    return text


@functools.lru_cache(maxsize=256)
def _check_readable(text: str) -> None:
    """Refuse a writer's schema that lacks a field for which we have no default."""
    there = pyruhvro.avro_to_arrow_schema(text)
    for field in lake_schema():
        if field.name not in there.names:
            if not field.nullable and field.name not in _defaults():
                raise PoisonRecord("schema", f"the writer's schema has no field {field.name!r}")
        else:
            # Raises when there is no way from one type to the other.
            pa.nulls(0, there.field(field.name).type).cast(field.type)


def _decode_group(
    bodies: Sequence[bytes],
    offsets: Sequence[int],
    text: str,
    tables: list[pa.Table],
    poison: list[Poison],
) -> None:
    try:
        tables.append(_decode_bulk(bodies, offsets, text))
        return
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic in the decoder is no Exception
        if len(bodies) == 1:
            try:
                tables.append(_decode_one(bodies[0], offsets[0], text))
            except PoisonRecord as reason:
                poison.append(Poison(offsets[0], reason.reason, _line(reason)))
            return
        del error
    middle = len(bodies) // 2
    _decode_group(bodies[:middle], offsets[:middle], text, tables, poison)
    _decode_group(bodies[middle:], offsets[middle:], text, tables, poison)


def _decode_bulk(bodies: Sequence[bytes], offsets: Sequence[int], text: str) -> pa.Table:
    batch = pyruhvro.deserialize_array(list(bodies), text)
    batch.validate(full=True)
    # The decoder takes trailing bytes in silence. What it found is encoded in its shortest form, or
    # by more bytes, so that the sums are equal only if each length is. Where an encoder chose a
    # longer form, single records are judged by fastavro.
    if encoded_size(batch, text) != sum(map(len, bodies)):
        raise ValueError("lengths differ")
    table = _normalise(pa.Table.from_batches([batch]), offsets)
    _check_values(table)
    return table


def _decode_one(body: bytes, offset: int, text: str) -> pa.Table:
    import fastavro

    stream = io.BytesIO(body)
    try:
        row: Any = fastavro.schemaless_reader(stream, fastavro.parse_schema(json.loads(text)), None)
    except Exception as error:
        raise PoisonRecord("avro", _line(error)) from error
    if rest := len(body) - stream.tell():
        raise PoisonRecord("avro", f"{rest} bytes after the end of the record")
    try:
        schema = pyruhvro.avro_to_arrow_schema(text)
        row = {name: list(v.items()) if isinstance(v, dict) else v for name, v in row.items()}
        table = _normalise(pa.Table.from_pylist([row], schema=schema), [offset])
    except Exception as error:
        raise PoisonRecord("value", _line(error)) from error
    _check_values(table)
    return table


def _normalise(table: pa.Table, offsets: Sequence[int]) -> pa.Table:
    """Bring the writer's columns into the lake's schema; unknown ones are left out."""
    columns = []
    for field in lake_schema():
        if field.name in table.column_names:
            column = table.column(field.name)
            if column.type != field.type:
                column = column.cast(field.type)
            if pa.types.is_map(field.type):
                column = _unique_keys(column)
        else:
            value = pa.scalar(_defaults().get(field.name), field.type)
            column = pa.chunked_array([pa.repeat(value, len(table))], type=field.type)
        columns.append(column)
    columns.append(pa.chunked_array([pa.array(offsets, pa.int64())]))
    return pa.table(columns, schema=lake_schema().append(pa.field(OFFSET, pa.int64(), False)))


def _unique_keys(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keep the last of the values that a map has for one key: engines refuse such a map."""
    clean = True
    for maps in column.chunks:
        # Arrow ends the process when it is asked for the parents of a map's entries, but not of
        # a list's.
        keys = pa.ListArray.from_arrays(maps.offsets, maps.keys)
        pairs = pa.table({"row": pc.list_parent_indices(keys), "key": keys.flatten()})
        clean &= len(pairs.group_by(["row", "key"]).aggregate([])) == len(pairs)
    if clean:
        return column
    rows = [None if row is None else list(dict(row).items()) for row in column.to_pylist()]
    return pa.chunked_array([pa.array(rows, column.type)])


def _check_values(table: pa.Table) -> None:
    for name in _REQUIRED_TEXT:
        if pc.any(pc.equal(pc.binary_length(table.column(name)), 0)).as_py():
            raise PoisonRecord("value", f"{name} is empty")
    for name in ("request_ts", "response_ts"):
        micros = table.column(name).cast(pa.int64())
        low, high = pc.min_max(micros).as_py().values()
        if low is not None and (low < _MIN_TS or high > _MAX_TS):
            raise PoisonRecord("value", f"{name} is not within the years 1970 to 9999")


@functools.cache
def _defaults() -> dict[str, Any]:
    """Defaults of our own schema, for columns that an older writer did not know."""
    fields = json.loads(avro_text())["fields"]
    return {
        field["name"]: list(default.items()) if isinstance(default, dict) else default
        for field in fields
        if (default := field.get("default")) is not None
    }


def _empty() -> pa.Table:
    return lake_schema().append(pa.field(OFFSET, pa.int64(), False)).empty_table()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:500]
