"""Where each event is now: waiting at the service, in the event log, or in the lake.

Reads what the running processes write, and nothing that they say of themselves: the service's
local queues, the records of the event log, the rows of the lake's files.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .prepare import Places, shown
from .traffic import Call

#: The id of a call in an event's headers, and in the headers of its record.
HEADER = "wm-qos.correlation-id"
_RECORD_HEADER = "wm_qos.correlation_id"
#: Where the example service's worker puts what the publisher refuses for good.
DEAD_LETTERS = "dead-letters.sqlite3"


@dataclass
class Seen:
    """What has been seen of this run's calls.

    :ivar captured: ids of the events that have left the service's processes.
    :ivar published: id → how many records of the event log it has.
    :ivar stored: id → the countries of the buckets that hold a row of it.
    :ivar waiting: events still on their way to the publisher.
    """

    captured: set[str] = field(default_factory=set)
    published: Counter[str] = field(default_factory=Counter)
    stored: dict[str, list[str]] = field(default_factory=dict)
    waiting: int = 0


class Observer:
    """Follows the calls of one run.

    Django is set up for the project (``config.settings``) in this process.

    :param batch: the calls to look for.
    :ivar files: the ledger's rows of the lake's files, oldest first.
    """

    def __init__(self, places: Places, batch: Sequence[Call]) -> None:
        self.places = places
        self.batch = batch
        self._ids = {call.id for call in batch}
        self._offsets: dict[tuple[str, str, int], int] = {}
        self._last_file = 0
        self.files: list[Any] = []
        self.seen = Seen()

    def look(self) -> Seen:
        """Bring :attr:`seen` up to date, and return it."""
        # From the start of the way to its end: what moves meanwhile is seen twice, never missed.
        waiting = self._waiting()
        self._read_event_log()
        self._read_lake()
        ours = waiting & self._ids
        self.seen.waiting = len(ours)
        self.seen.captured |= ours | self.seen.published.keys()
        return self.seen

    def _waiting(self) -> set[str]:
        found: set[str] = set()
        for path in sorted(self.places.service.glob("*.sqlite3")):
            found.update(_correlation_id(line) for line in events_in(path))
        return found

    def _refusals(self) -> Iterator[str]:
        from audit_logging.spool import DurableQueue

        path = self.places.service / DEAD_LETTERS
        if path.exists():
            queue = DurableQueue(path)
            for stream in queue.streams():
                for record in queue.read(stream, 0):
                    yield (dict(record.headers).get("reason") or b"").decode()
            queue.close()

    def _read_event_log(self) -> None:
        from audit_publisher.eventlog import Limits, get_region, region_names
        from audit_publisher.exceptions import EventLogError
        from audit_publisher.routing import topics

        for name in region_names():
            region = get_region(name)
            for topic in topics():
                try:
                    count = region.partitions(topic)
                except EventLogError:
                    # Nothing was published yet.
                    continue
                for partition in range(count):
                    place = (name, topic, partition)
                    while records := region.read(
                        topic, partition, self._offsets.get(place, 0), Limits(timeout=0)
                    ):
                        self._offsets[place] = records[-1].offset + 1
                        for record in records:
                            identity = (dict(record.headers).get(_RECORD_HEADER) or b"").decode()
                            if identity in self._ids:
                                self.seen.published[identity] += 1

    def _read_lake(self) -> None:
        import pyarrow.parquet as pq

        from audit_sink.models import LakeFile

        files = LakeFile.objects.filter(batch__state="done", id__gt=self._last_file)
        for file in files.order_by("id"):
            path = Path(urlsplit(file.bucket).path) / file.path
            # Opened as they lie there, not through our own query engine.
            table = pq.ParquetFile(path).read(columns=["headers"])
            for headers in table.column("headers").to_pylist():
                identity = dict(headers).get(HEADER, "")
                if identity in self._ids:
                    self.seen.stored.setdefault(identity, []).append(file.site)
            self.files.append(file)
            self._last_file = file.id

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the calls, by id, as an engineer's query gets them."""
        from audit_sink.query.engine import query

        wanted = ", ".join(f"'{identity}'" for identity in sorted(self._ids))
        sql = f"SELECT * FROM audit_logs WHERE headers['{HEADER}'] IN ({wanted})"  # noqa: S608
        found = query(sql).to_pylist() if self.seen.stored else []
        return {dict(row["headers"])[HEADER]: row for row in found}

    def complete(self) -> bool:
        """Whether every call is in the lake, and nothing is on its way any more."""
        if self.seen.stored.keys() != self._ids or self.seen.waiting:
            return False
        # A second record of an event would make a second row only when it is read.
        return not any(status.lag for status in _sinks())

    def problems(self) -> Iterator[str]:
        """Yield a sentence for each kind of call that is not exactly one row in its bucket."""
        logs = shown(self.places.logs)
        total = len(self._ids)
        not_captured = self._ids - self.seen.captured
        if not_captured:
            yield (
                f"{len(not_captured)} of {total} requests never left the service, for example "
                f"{_example(not_captured)}. Read {logs / 'inventory-api.log'}."
            )
        not_published = self.seen.captured - self.seen.published.keys()
        if not_published:
            yield (
                f"{len(not_published)} of {total} events did not reach the event log, for example "
                f"{_example(not_published)}. Read {logs / 'delivery.log'} and "
                f"{logs / 'publisher.log'}."
            )
        refused = list(self._refusals())
        if refused:
            yield (
                f"{len(refused)} events were refused for good, the first because: {refused[0]}. "
                f"They lie in {shown(self.places.service / DEAD_LETTERS)}."
            )
        not_stored = self.seen.published.keys() - self.seen.stored.keys()
        if not_stored:
            yield (
                f"{len(not_stored)} of {total} events are in the event log and not in the lake, "
                f"for example {_example(not_stored)}. Read {logs / 'sink.log'} and "
                f"{logs / 'beat.log'}."
            )
        poisoned = sum(status.dead_letters for status in _sinks())
        if poisoned:
            yield f"The sinks put {poisoned} records into their dead letters: see the admin."
        for error in sorted({status.error for status in _sinks()} - {""}):
            yield f"A sink reports: {error}"
        doubled = {identity for identity, found in self.seen.stored.items() if len(found) > 1}
        if doubled:
            yield (
                f"{len(doubled)} requests have more than one row, for example "
                f"{_example(doubled)}. Read {logs / 'sink.log'}."
            )
        country = {call.id: call.country for call in self.batch}
        strays = {
            identity
            for identity, found in self.seen.stored.items()
            if any(where != country[identity] for where in found)
        }
        if strays:
            stray = _example(strays)
            yield (
                f"{len(strays)} requests lie in another site's bucket, for example {stray}: "
                f"it belongs to {country[stray]} and is in {', '.join(self.seen.stored[stray])}. "
                f"Read {logs / 'sink.log'}."
            )


def _sinks() -> list[Any]:
    from audit_sink.status import sink_statuses

    return sink_statuses()


def _example(identities: Iterable[str]) -> str:
    return min(identities)


def _correlation_id(line: str) -> str:
    try:
        return json.loads(line)["headers"].get(HEADER, "")
    except (ValueError, KeyError, TypeError, AttributeError):
        # Not an event of ours, or broken: it is missing from the captured ones.
        return ""


def events_in(path: Path) -> Iterator[str]:
    """Yield the events, as JSON, that lie in one of the service's local queues."""
    from audit_logging.batch import Batch
    from audit_logging.spool import DurableQueue

    queue = DurableQueue(path)
    try:
        for stream in queue.streams():
            for record in queue.read(stream, 0, max_bytes=256 << 20):
                if path.name.startswith("broker"):
                    # A Celery message, whose task takes (batch, how many events).
                    body = base64.b64decode(json.loads(record.value)["body"])
                    batch = Batch.from_message(*json.loads(body)[0])
                else:
                    batch = Batch.from_record(record.value, 0)
                yield from batch.lines()
    finally:
        queue.close()
