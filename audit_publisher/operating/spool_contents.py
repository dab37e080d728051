"""What is in this host's spool, for people; and what they do about records that were refused.

The spool is a file of one host. What is done is noted in the trail before it is done: two files
cannot be changed in one transaction, and a line too many is better than one too few.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from audit_logging import uptake
from audit_logging.exceptions import SpoolError
from audit_logging.spool import DurableQueue, Header, StoredRecord
from audit_logging.spool_looks import heads
from audit_logging.spool_moves import move

from .. import codec, routing
from ..conf import conf
from ..durable.spool import CAUSE_HEADER, REFUSED, TOPIC_HEADER, Spool
from ..exceptions import CodecError, PublisherError, RegistryError
from ..models import TrailLine
from ..names import CONTROL, check_topic_name
from ..routing import REQUEST_ID_HEADER
from .trail import note

#: What the trail calls it.
KIND = "audit_publisher.spool"
_BATCH = 200
_MOST_TEXT = 200


class Unwilling(PublisherError):
    """What was asked for cannot be done; the message says why, and the cure."""


@dataclass(frozen=True, slots=True)
class StreamView:
    """One stream: the records of a topic that wait, or those that were refused."""

    name: str
    records: int
    bytes: int
    oldest: datetime | None

    @property
    def refused(self) -> bool:
        """Whether no region will take its records."""
        return self.name == REFUSED


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, without what it carries.

    :ivar size: bytes.
    :ivar topic: for a refused record, the topic that it was for; empty where that is not known.
    :ivar cause: for a refused record, why.
    """

    stream: str
    offset: int
    at: datetime
    key: str
    request_id: str
    size: int
    headers: tuple[tuple[str, str], ...]
    topic: str
    cause: str


class Contents:
    """The spool of this host."""

    def __init__(self, queue: DurableQueue | None = None) -> None:
        self.queue = queue or Spool(conf.spool_dir(), conf.SPOOL_MAX_BYTES).queue
        self.host = socket.gethostname()
        self.folder = str(self.queue.path.parent)

    @property
    def place(self) -> str:
        """Which file this is; an offset means nothing without it."""
        return f"{self.host}:{self.folder}"

    @property
    def exists(self) -> bool:
        """Whether anything was ever spooled here; looking makes no file."""
        return self.queue.path.exists()

    def streams(self) -> list[StreamView]:
        """Streams that hold records.

        :raises SpoolError: the disk or the file failed.
        """
        if not self.exists:
            return []
        found = []
        for name in self.queue.streams():
            stats = self.queue.stats(name)
            if stats.records:
                found.append(StreamView(name, stats.records, stats.bytes, _moment(stats.oldest)))
        return found

    def page(self, stream: str, start: int, count: int) -> list[Entry]:
        """Up to `count` records of `stream` from offset `start` on.

        :raises SpoolError: the disk or the file failed.
        """
        if not self.exists:
            return []
        found = heads(self.queue, stream, start, count)
        return [_entry(stream, record, size) for record, size in found]

    def entry(self, stream: str, offset: int) -> Entry | None:
        """One record, or None when it is gone."""
        found = self.page(stream, offset, 1)
        return found[0] if found and found[0].offset == offset else None

    def event(self, stream: str, offset: int) -> dict[str, Any] | None:
        """The event in a record, or None when that is gone. Who looked is in the trail.

        :raises Unwilling: it cannot be decoded.
        """
        entry = self.entry(stream, offset)
        if entry is None:
            return None
        note(
            str(TrailLine.Action.LOOKED),
            KIND,
            f"{stream} {offset} on {self.host}",
            key=str(offset),
            fields={"request_id": entry.request_id},
        )
        records = self.queue.read(stream, offset, max_records=1)
        if not records or records[0].offset != offset:
            return None
        try:
            return codec.decode(records[0].value)
        except (CodecError, RegistryError) as error:
            raise Unwilling(f"It cannot be decoded: {error}") from error

    # -- refused records ------------------------------------------------------------------

    def redrive(self, offsets: Iterable[int] | None, topic: str = "") -> int:
        """Put refused records at the end of their topics' streams; return how many.

        They are appended to the event log by the next drain, after what waits already: later
        than they would have been, so also later than younger records of the same key.

        :param offsets: None for all.
        :param topic: for records whose topic is not known, or is to be another.
        :raises Unwilling: a record's topic is not known, or is no topic of ours; then none is moved
            of those named with it.
        """
        if topic:
            try:
                check_topic_name(topic)
            except ValueError as error:
                raise Unwilling(str(error)) from error
        routing.refresh()
        known = routing.topics()

        def work(entries: Sequence[Entry]) -> int:
            by_topic: dict[str, list[StoredRecord]] = {}
            for entry in entries:
                target = topic or entry.topic
                if not target:
                    raise Unwilling(
                        f"Record {entry.offset}: its topic is not known. Name one (--topic)."
                    )
                if target not in known:
                    raise Unwilling(
                        f"Record {entry.offset}: no event goes to the topic {target!r} any more. "
                        "Add a topic route to it in the admin, or name another topic (--topic)."
                    )
                by_topic.setdefault(target, []).append(self._restored(entry.offset))
            return sum(
                move(self.queue, REFUSED, target, records) for target, records in by_topic.items()
            )

        return self._each(str(TrailLine.Action.REDRIVEN), offsets, work, topic)

    def discard(self, offsets: Iterable[int] | None) -> int:
        """Throw refused records away, for good; return how many.

        :param offsets: None for all.
        """

        def work(entries: Sequence[Entry]) -> int:
            records = [StoredRecord(value=b"", offset=entry.offset) for entry in entries]
            return self.queue.settle(REFUSED, records)

        return self._each(str(TrailLine.Action.DISCARDED), offsets, work)

    def _restored(self, offset: int) -> StoredRecord:
        # Not what it carries: two hundred of the largest would fill a small machine's memory.
        found = heads(self.queue, REFUSED, offset, 1)
        if not found or found[0][0].offset != offset:
            raise Unwilling(f"Record {offset} is gone: somebody else was quicker.")
        record = found[0][0]
        headers = tuple(each for each in record.headers if not each[0].startswith("#"))
        return replace(record, headers=headers)

    def _each(self, action: str, offsets: Iterable[int] | None, work: Any, topic: str = "") -> int:
        done = 0
        for entries in self._batches(offsets):
            about = f"{len(entries)} of {REFUSED} on {self.host}"
            told = {
                "offsets": [entry.offset for entry in entries],
                "request_ids": [entry.request_id for entry in entries],
                "folder": self.folder,
            }
            note(action, KIND, about, fields=told | ({"topic": topic} if topic else {}))
            try:
                count = work(entries)
            except (SpoolError, Unwilling) as error:
                failed = {**told, "meant": action, "error": str(error)}
                note(str(TrailLine.Action.FAILED), KIND, about, fields=failed)
                raise
            if count < len(entries):
                told |= {"meant": action, "error": f"{len(entries) - count} were gone already"}
                note(str(TrailLine.Action.FAILED), KIND, about, fields=told)
            done += count
        return done

    def _batches(self, offsets: Iterable[int] | None) -> Iterable[list[Entry]]:
        if offsets is None:
            # What is refused meanwhile was not meant.
            end = self.queue.watermarks(REFUSED)[1] if self.exists else 0
            start = 0
            while found := [e for e in self.page(REFUSED, start, _BATCH) if e.offset < end]:
                yield found
                start = found[-1].offset + 1
            return
        wanted = sorted(set(offsets))
        entries = [one for offset in wanted if (one := self.entry(REFUSED, offset))]
        if len(entries) < len(wanted):
            there = {entry.offset for entry in entries}
            gone = ", ".join(str(offset) for offset in wanted if offset not in there)
            raise Unwilling(f"There is no refused record {gone} any more; nothing was done.")
        for start in range(0, len(entries), _BATCH):
            yield entries[start : start + _BATCH]


def readable(event: dict[str, Any]) -> str:
    """An event, laid out for reading; times as ISO 8601."""
    text = json.dumps(event, indent=2, ensure_ascii=False, default=_plain)
    # JSON leaves some that a terminal acts upon.
    return "\n".join(CONTROL.sub(_escaped, line) for line in text.split("\n"))


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else uptake.moment(micros / 1_000_000)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="backslashreplace")


def _header(headers: Iterable[Header], name: str) -> str:
    return next((_text(value) for found, value in headers if found == name), "")


def _entry(stream: str, record: StoredRecord, size: int) -> Entry:
    return Entry(
        stream=stream,
        offset=record.offset,
        at=uptake.moment(record.timestamp / 1_000_000),
        key=_text(record.key)[:_MOST_TEXT],
        request_id=_header(record.headers, REQUEST_ID_HEADER)[:_MOST_TEXT],
        size=size,
        headers=tuple(
            (name, _text(value)) for name, value in record.headers if not name.startswith("#")
        ),
        topic=_header(record.headers, TOPIC_HEADER) if stream == REFUSED else stream,
        cause=_header(record.headers, CAUSE_HEADER),
    )
