"""Records of the durable queue and of event logs, and how their parts are stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Header name and value; a value is bytes of unknown quality, or None.
Header = tuple[str, bytes | None]


# Nobody changes a record. Not frozen: a reader makes one for each record of the log, and setting
# the fields of a frozen one costs three times as much.
@dataclass(slots=True, unsafe_hash=True)
class Record:
    """One record of a queue or an event log.

    :ivar value: the payload.
    :ivar key: decides the partition, or None.
    :ivar headers: (name, bytes) pairs in order; names may repeat.
    :ivar timestamp: epoch microseconds; 0 lets the log set the time of the append.
    """

    value: bytes
    key: bytes | None = None
    headers: tuple[Header, ...] = ()
    timestamp: int = 0

    @property
    def size(self) -> int:
        """Bytes this record counts for against limits."""
        size = len(self.value) + len(self.key or b"") + 32
        for name, value in self.headers:
            size += len(name) + len(value or b"")
        return size


@dataclass(slots=True, unsafe_hash=True)
class StoredRecord(Record):
    """A record that has a place.

    :ivar offset: its place in the stream.
    :ivar attempts: how often it was leased.
    :ivar lease: the token of the lease it was handed out under, if any.
    """

    offset: int = 0
    attempts: int = 0
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class StreamStats:
    """How full a stream is. `oldest` is epoch microseconds of its first record, or None."""

    records: int = 0
    bytes: int = 0
    oldest: int | None = None


def take(rows: Iterable[tuple], max_bytes: int) -> list[StoredRecord]:
    """Return the records of rows, as many as `max_bytes` allow, but one at least."""
    taken: list[StoredRecord] = []
    size = 0
    for offset, timestamp, key, value, headers, attempts, lease in rows:
        record = StoredRecord(
            value=value,
            key=key,
            headers=load_headers(headers),
            timestamp=timestamp,
            offset=offset,
            attempts=attempts,
            lease=lease,
        )
        size += record.size
        if taken and size > max_bytes:
            break
        taken.append(record)
    return taken


def dump_headers(headers: Sequence[Header]) -> str:
    """Return headers as one text; "" for none."""
    # Latin-1 maps every byte to one character and back: no byte is lost.
    return (
        json.dumps(
            [[name, None if value is None else value.decode("latin-1")] for name, value in headers]
        )
        if headers
        else ""
    )


def load_headers(text: str) -> tuple[Header, ...]:
    """Return the headers of such a text."""
    if not text:
        return ()
    return tuple(
        (name, None if value is None else value.encode("latin-1"))
        for name, value in json.loads(text)
    )
