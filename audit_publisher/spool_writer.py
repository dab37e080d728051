"""Writes to the spool on a thread of its own: what waits together goes to the disk together."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from audit_logging.spool import Record

from .exceptions import StorageExhausted
from .spool import Spool

logger = logging.getLogger(__name__)

#: Called with None when the records are on disk, else with why they are not.
Told = Callable[[StorageExhausted | None], None]


class SpoolWriter:
    """Appends to a spool without making anybody wait for the disk.

    A disk syncs some hundred times a second; requests that come meanwhile share one sync.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._waiting: deque[tuple[str, Sequence[Record], Told]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit spool")

    def add(self, topic: str, records: Sequence[Record], told: Told) -> None:
        """Put `records` on disk; `told` is called once, on the writer's thread."""
        if self._pid != os.getpid():
            self._fresh()
        self._waiting.append((topic, records, told))
        self._thread.submit(self._write)

    def _write(self) -> None:
        by_topic: dict[str, list[tuple[Sequence[Record], Told]]] = {}
        while self._waiting:
            topic, records, told = self._waiting.popleft()
            by_topic.setdefault(topic, []).append((records, told))
        for topic, waiting in by_topic.items():
            error = self._append(topic, [record for records, _ in waiting for record in records])
            for records, told in waiting:
                # Together there may be no room for them, and for some there is.
                alone = error is not None and len(waiting) > 1
                told(self._append(topic, records) if alone else error)

    def _append(self, topic: str, records: Sequence[Record]) -> StorageExhausted | None:
        try:
            self._spool.append(topic, records)
        except StorageExhausted as error:
            return error
        except Exception as error:
            logger.exception("The spool failed in an unexpected way.")
            return StorageExhausted(f"The spool failed: {error}")
        return None
