"""Writes to the spool on a thread of its own: what waits together goes to the disk together."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from audit_logging.exceptions import SpoolFull
from audit_logging.spool import Record

from ..exceptions import StorageExhausted
from .spool import Spool

logger = logging.getLogger(__name__)

#: Called with None when the records are on disk, else with why they are not.
Told = Callable[[StorageExhausted | None], None]


class SpoolWriter:
    """Appends to a spool without making anybody wait for the disk.

    A disk syncs some hundred times a second; requests that come meanwhile share one sync.

    :param max_bytes: of records that wait for a disk that is slow, or hangs.
    """

    def __init__(self, spool: Spool, max_bytes: int = 64 << 20) -> None:
        self._spool = spool
        self._max_bytes = max_bytes
        self._fresh()

    def _fresh(self) -> None:
        self._bytes = 0
        self._waiting: deque[tuple[str, Sequence[Record], Told]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit spool")
        # Last: whoever sees it may use the rest.
        self._pid = os.getpid()

    def add(self, topic: str, records: Sequence[Record], told: Told) -> None:
        """Put `records` on disk; `told` is called once, on the writer's thread."""
        if self._pid != os.getpid():
            self._fresh()
        size = sum(len(record.value) for record in records)
        if self._bytes and self._bytes + size > self._max_bytes:
            told(StorageExhausted("No region takes it, and the spool's disk is behind."))
            return
        self._bytes += size
        self._waiting.append((topic, records, told))
        self._thread.submit(self._write)

    def _write(self) -> None:
        by_topic: dict[str, list[tuple[Sequence[Record], Told]]] = {}
        taken = 0
        while self._waiting:
            topic, records, told = self._waiting.popleft()
            by_topic.setdefault(topic, []).append((records, told))
            taken += sum(len(record.value) for record in records)
        try:
            self._write_all(by_topic)
        finally:
            # Off by one request at most, if somebody adds one at this very moment.
            self._bytes = max(0, self._bytes - taken)

    def _write_all(self, by_topic: Mapping[str, list[tuple[Sequence[Record], Told]]]) -> None:
        for topic, waiting in by_topic.items():
            error = self._append(topic, [record for records, _ in waiting for record in records])
            # Together there may be no room for them, and for some there is.
            alone = error is not None and isinstance(error.__cause__, SpoolFull)
            for records, told in waiting:
                if alone and len(waiting) > 1:
                    error = self._append(topic, records)
                try:
                    told(error)
                except Exception:
                    logger.exception("What became of spooled records could not be told.")

    def _append(self, topic: str, records: Sequence[Record]) -> StorageExhausted | None:
        try:
            self._spool.append(topic, records)
        except StorageExhausted as error:
            return error
        except Exception as error:
            logger.exception("The spool failed in an unexpected way.")
            return StorageExhausted(f"The spool failed: {error}")
        return None
