"""LogEvent to bytes and back: Avro in Confluent's framing (magic 0, schema id, body)."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
from django.core.signals import setting_changed

from .avro.registry import get_registry
from .avro.writer import NotCompiled, Writer, compile_writer
from .conf import PublisherSettings
from .exceptions import CodecError, RegistryError, RegistryUnavailable

logger = logging.getLogger(__name__)

SCHEMA_PATH = Path(__file__).parent / "schemas" / "log_event.avsc"

_PREFIX = struct.Struct(">bI")
#: Bytes before the Avro body: the magic byte and the schema id.
FRAME_BYTES = _PREFIX.size
#: After a failure, how long further calls get the same answer without asking the registry.
_RETRY_SECONDS = 2.0


@cache
def schema_text() -> str:
    """The text of log_event.avsc, as it is registered."""
    return json.dumps(json.loads(SCHEMA_PATH.read_text()), separators=(",", ":"))


@cache
def parsed_schema() -> Any:
    """log_event.avsc, parsed by fastavro."""
    return fastavro.parse_schema(json.loads(SCHEMA_PATH.read_text()))


#: Fields with few values, of which the encodings are kept.
_REPEATED = (
    *("service_name", "endpoint_name", "method", "consumer_id", "site_id", "outcome"),
    *("request_body_state", "response_body_state", "producer_epoch"),
)


@cache
def writer() -> Writer:
    """Encodes the fields of a LogEvent; fastavro does where no code can be made for the schema."""
    try:
        return compile_writer(json.loads(SCHEMA_PATH.read_text()), _REPEATED)
    except NotCompiled:
        return _write_slowly


def _write_slowly(event: Mapping[str, Any]) -> bytes:
    out = BytesIO()
    fastavro.schemaless_writer(out, parsed_schema(), event)
    return out.getvalue()


def _on_a_loop() -> bool:
    """Whether this thread runs an event loop, which may wait for nobody."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class SchemaIds:
    """The id of our schema under each topic's subject; a failing registry is not asked for each
    event.

    :param clock: returns seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ids: dict[str, int] = {}
        self._prefixes: dict[str, bytes] = {}
        #: Topics whose id somebody is asking for.
        self._asked: set[str] = set()
        self._failed: dict[str, tuple[float, RegistryError]] = {}
        self._lock = threading.Lock()

    def get(self, topic: str) -> int:
        """Return the id for `topic`.

        :raises RegistryError: it is not known, and the registry does not tell.
        """
        known = self._ids.get(topic)
        if known is not None:
            return known
        if _on_a_loop() and get_registry().remote:
            return self._soon(topic)
        with self._lock:
            if topic in self._ids:
                return self._ids[topic]
            until, error = self._failed.get(topic, (0.0, None))
            if error is not None and self._clock() < until:
                raise error
            try:
                schema_id = get_registry().register(f"{topic}-value", schema_text())
            except RegistryError as failure:
                self._failed[topic] = (self._clock() + _RETRY_SECONDS, failure)
                raise
            self._failed.pop(topic, None)
            self._ids[topic] = schema_id
            return schema_id

    def _soon(self, topic: str) -> int:
        """What is kept on disk; else somebody asks, and the event comes again."""
        kept = get_registry().kept(f"{topic}-value", schema_text())
        if kept is not None:
            self._ids[topic] = kept
            return kept
        if topic not in self._asked:
            self._asked.add(topic)
            threading.Thread(target=self._ask, args=(topic,), daemon=True).start()
        raise RegistryUnavailable(f"The id of the schema of topic {topic} is being asked for.")

    def _ask(self, topic: str) -> None:
        try:
            self.get(topic)
        except RegistryError as error:
            logger.warning("The schema of topic %s: %s", topic, error)
        finally:
            self._asked.discard(topic)

    def prefix(self, topic: str) -> bytes:
        """What a record of `topic` begins with: the magic byte and the id.

        :raises RegistryError: as :meth:`get`.
        """
        found = self._prefixes.get(topic)
        if found is None:
            found = self._prefixes[topic] = _PREFIX.pack(0, self.get(topic))
        return found

    def clear(self) -> None:
        """Forget everything (the registry is another one now)."""
        self._ids.clear()
        self._prefixes.clear()
        self._failed.clear()


schema_ids = SchemaIds()


def frame(event: Mapping[str, Any], topic: str) -> bytes:
    """Return `event` as a record's value for `topic`.

    :param event: the fields of log_event.avsc; timestamps in epoch microseconds.
    :raises CodecError: the event does not fit the schema.
    :raises RegistryError: the schema's id is not known, and the registry does not tell it.
    """
    prefix = schema_ids.prefix(topic)
    try:
        return prefix + writer()(event)
    except (ValueError, TypeError, OverflowError, KeyError, AttributeError) as error:
        raise CodecError(f"The event does not fit log_event.avsc: {error}") from error


def split_frame(value: bytes) -> tuple[int, memoryview]:
    """Return (schema id, Avro body) of a record's value; the body is a view, not a copy.

    :raises CodecError: `value` is not framed.
    """
    if value is None or len(value) < _PREFIX.size:
        length = 0 if value is None else len(value)
        raise CodecError(f"{length} bytes are too few for a framed record.")
    magic, schema_id = _PREFIX.unpack_from(value)
    if magic != 0:
        raise CodecError(f"The first byte is {magic & 0xFF:#04x}, not the magic byte 0x00.")
    return schema_id, memoryview(value)[_PREFIX.size :]


def decode(value: bytes) -> dict[str, Any]:
    """Return the LogEvent in a record's value, in today's schema; timestamps become datetimes.

    One record at a time, for tests and tools; the sink has a faster way.

    :raises CodecError: `value` is not framed, is truncated, or has bytes to spare.
    :raises RegistryError: its schema is not known.
    """
    schema_id, body = split_frame(value)
    writer = _writer_schema(schema_id)
    stream = BytesIO(body)
    try:
        event = fastavro.schemaless_reader(stream, writer, parsed_schema())
    except Exception as error:
        raise CodecError(f"The body does not fit schema {schema_id}: {error}") from error
    if stream.read(1):
        raise CodecError(f"Bytes follow the body of schema {schema_id}.")
    assert isinstance(event, dict)  # noqa: S101  (log_event.avsc is a record)
    return event


@lru_cache(maxsize=64)
def _writer_schema(schema_id: int) -> Any:
    return fastavro.parse_schema(json.loads(get_registry().schema(schema_id)))


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    if setting == PublisherSettings.prefix:
        schema_ids.clear()
        _writer_schema.cache_clear()


setting_changed.connect(_reconfigure)
