"""How full and how old a spool is, as metrics; for background threads and workers."""

from __future__ import annotations

import time
from collections.abc import Callable

from . import metrics
from .exceptions import SpoolError
from .spool import DurableQueue

#: Seconds between two looks where nothing happens here: others fill and empty the same file.
EVERY = 10.0


class SpoolGauges:
    """The gauges of one stream of a queue.

    :param spool: its name in the metrics.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        queue: DurableQueue,
        stream: str,
        spool: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._stream = stream
        self._spool = spool
        self._clock = clock
        self._next = 0.0

    def measure(self) -> None:
        """Set the gauges by what is there now; a disk that fails leaves them as they are."""
        self._next = self._clock() + EVERY
        # Looking must not make the file.
        if not self._queue.path.exists():
            return
        try:
            used = self._queue.used_bytes()
            oldest = self._queue.stats(self._stream).oldest
        except SpoolError:
            # The next write says what is wrong with it.
            return
        metrics.spool_bytes.set(used, spool=self._spool)
        metrics.spool_fill.set(used / (self._queue.max_bytes or used or 1), spool=self._spool)
        metrics.spool_oldest.set((oldest or 0) / 1_000_000, spool=self._spool)

    def now_and_then(self) -> None:
        """Set them if that is some time ago; costs a comparison when it is not."""
        if self._clock() >= self._next:
            self.measure()
