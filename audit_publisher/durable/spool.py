"""The publisher's spool: records on disk, by topic, while no region takes them."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from audit_logging.exceptions import SpoolError, SpoolFull, SpoolUnavailable
from audit_logging.folders import make_private
from audit_logging.spool import DurableQueue, Record, StoredRecord
from audit_logging.spool_moves import move

from ..exceptions import StorageExhausted

logger = logging.getLogger(__name__)

#: Records that no region will ever take; kept for people to look at.
REFUSED = "#refused"
#: Written to find out whether a disk that refused takes records again, and forgotten at once.
_PROBE = "#probe"
_MOST_PROBE = 1 << 20
#: Headers of a refused record, before its own: the topic that it was for, and why it was refused.
TOPIC_HEADER = "#topic"
CAUSE_HEADER = "#cause"
_MOST_CAUSE = 500


class Spool:
    """Records that wait, one stream per topic, in the order they came.

    :param folder: where the spool's file is; shared by every publisher process of the host.
    :param max_bytes: bound over all topics.
    """

    def __init__(
        self,
        folder: str | Path,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        #: Bytes that it held when a record found no room.
        self._full_at: int | None = None
        #: Why it took nothing the last time, and how many bytes these were.
        self._failed: tuple[str, int] | None = None
        self._queue = DurableQueue(
            self._folder / "publisher.sqlite3", max_bytes=max_bytes, clock=clock
        )

    def append(self, topic: str, records: Sequence[Record]) -> None:
        """Put `records` on disk.

        :raises StorageExhausted: the spool is full, or its disk failed; none was stored.
        """
        try:
            self._queue.append(topic, records)
        except (SpoolError, OSError, sqlite3.Error) as error:
            if isinstance(error, SpoolFull):
                self._remember_full(error)
            else:
                self._remember_failure(error, sum(len(record.value) for record in records))
            raise StorageExhausted(f"No region takes it, and the spool neither: {error}") from error
        self._works()

    def _works(self) -> None:
        if self._failed is not None or self._full_at is not None:
            logger.warning("The spool takes events again.")
        self._failed = self._full_at = None

    def _remember_full(self, error: SpoolFull) -> None:
        with suppress(SpoolError, OSError, sqlite3.Error):
            used = self._queue.used_bytes()
            # Else it was the record that is too large for any spool of this size.
            if used >= self._max_bytes // 2:
                if self._full_at is None:
                    logger.error("The spool is full, and events are refused: %s", error)
                self._full_at = used

    def _remember_failure(self, error: Exception, size: int) -> None:
        if self._failed is None:
            logger.error("The spool takes nothing, and events are refused: %s", error)
        self._failed = (str(error), size)

    def _try_again(self) -> None:
        """See whether a disk that refused takes as much now.

        :raises SpoolError: it does not.
        """
        if self._failed is None:
            return
        probe = Record(b"\0" * min(self._failed[1], _MOST_PROBE), timestamp=0)
        try:
            through = self._queue.append(_PROBE, [probe])[-1]
            self._queue.trim(_PROBE, through + 1)
        except (SpoolError, OSError, sqlite3.Error):
            # What was asked for says more than the probe.
            raise SpoolUnavailable(self._failed[0]) from None
        self._works()

    def accepts(self) -> str:
        """Say why the spool takes nothing now; "" when it does."""
        try:
            used = self._queue.used_bytes()
            # The last bytes stay free, as nothing fits: what was refused says more than the sum.
            if self._full_at is not None and used < self._full_at:
                self._full_at = None
            if used >= self._max_bytes or self._full_at is not None:
                return (
                    f"AUDIT_PUBLISHER_SPOOL_MAX_BYTES: the spool is full ({used:,} bytes). "
                    "Bring a region back, decide about refused records, or raise it."
                )
            if not os.access(self._folder, os.W_OK):
                return f"AUDIT_PUBLISHER_SPOOL_DIR: {self._folder} cannot be written."
            self._try_again()
        except (SpoolError, OSError, sqlite3.Error) as error:
            return f"AUDIT_PUBLISHER_SPOOL_DIR: {error}"
        return ""

    def topics(self) -> list[str]:
        """Topics with records that wait."""
        return [
            name
            for name in self._queue.streams()
            if not name.startswith("#") and self._queue.stats(name).records
        ]

    def oldest(
        self, topic: str, max_records: int, max_bytes: int = 8 << 20, *, behind: int = -1
    ) -> list[StoredRecord]:
        """The oldest records of `topic`, in order.

        :param behind: leaves out those up to this offset.
        """
        low, _ = self._queue.watermarks(topic)
        start = max(low, behind + 1)
        return self._queue.read(topic, start, max_records=max_records, max_bytes=max_bytes)

    def done(
        self,
        topic: str,
        durable: Sequence[StoredRecord],
        refused: Sequence[tuple[StoredRecord, str]] = (),
    ) -> None:
        """Forget the records of `topic` that are durable elsewhere; keep those that were refused.

        :param refused: each with the cause; kept in the stream :data:`REFUSED`, also when the spool
            is full: a record that nobody takes must not hold up those behind it.
        """
        if refused:
            kept = [_refused(topic, record, cause) for record, cause in refused]
            move(self._queue, topic, REFUSED, kept)
        self._queue.settle(topic, durable)

    def size(self) -> tuple[int, int]:
        """(records, bytes) that wait."""
        stats = [self._queue.stats(topic) for topic in self.topics()]
        return sum(each.records for each in stats), sum(each.bytes for each in stats)

    def oldest_at(self) -> float:
        """When the record that waits for longest came, in epoch seconds; 0 when none waits."""
        stats = [self._queue.stats(topic) for topic in self.topics()]
        return min((each.oldest for each in stats if each.oldest is not None), default=0) / 1e6

    @property
    def max_bytes(self) -> int:
        """Bound over all topics."""
        return self._max_bytes

    @property
    def queue(self) -> DurableQueue:
        """The file, for pages and commands that show what is in it."""
        return self._queue

    @contextmanager
    def only_drainer(self) -> Iterator[bool]:
        """Whether this process is the one that drains now.

        One drainer at a time keeps the order. A lock on a file rather than a lease: the kernel
        gives it back at once when its holder dies.
        """
        make_private(self._folder)
        with (self._folder / "drain.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _refused(topic: str, record: StoredRecord, cause: str) -> StoredRecord:
    told = (
        (TOPIC_HEADER, topic.encode()),
        (CAUSE_HEADER, cause[:_MOST_CAUSE].encode(errors="replace")),
    )
    return replace(record, headers=told + record.headers)
