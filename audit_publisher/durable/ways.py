"""The way of one request's records: from region to region, and to the disk in the end.

Nothing here waits. Each step is taken by whoever brings the news of the one before: a delivery
report, or the spool's writer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from audit_logging.spool import Record

from .. import metrics
from ..eventlog.base import Errors
from ..exceptions import (
    Backpressure,
    PublisherError,
    RecordRejected,
    RecordTooLarge,
    StorageExhausted,
    UnknownTopic,
)
from .outcome import Outcome

if TYPE_CHECKING:
    from ..publish import Publisher

SPOOLED = Outcome("spooled")


def no_news(count: int) -> list[Outcome]:
    """What is said of records whose fate nobody told in time: they may be durable."""
    failure = StorageExhausted("Neither a region nor the spool answered in time.")
    return [Outcome("rejected", retryable=True, error=failure)] * count


#: Gets the outcomes of a way's records, in their order.
Tell = Callable[[list[Outcome]], None]


class Way:
    """Some records of one topic, which take the same way.

    :param regions: names of the regions to try, in order.
    :param tell: called once, on whatever thread brings the last news.
    """

    def __init__(
        self,
        publisher: Publisher,
        topic: str,
        records: Sequence[Record],
        regions: Sequence[str],
        tell: Tell,
    ) -> None:
        self._publisher = publisher
        self._topic = topic
        self._records = records
        self._regions = regions
        self._next = 0
        self._tell = tell
        #: Which of `records` are still to be made durable; None: all of them.
        self._pending: list[int] | None = None
        self._outcomes: list[Outcome | None] = []
        self._reason = "region_unavailable"
        self._region = ""
        self._began = 0.0
        #: Whether a region has yet to answer: one that answers and then fails has answered.
        self._asked = False

    def go_on(self) -> None:
        """Try the next place."""
        while self._next < len(self._regions):
            region = self._regions[self._next]
            self._next += 1
            if self._publisher.admits(region, self._topic):
                self._region = region
                self._began = time.perf_counter()
                self._asked = True
                self._publisher.submit_to(region, self._topic, self._waiting(), self._answered)
                return
        self._publisher.writer.add(self._topic, self._waiting(), self._spooled)

    def _waiting(self) -> Sequence[Record]:
        if self._pending is None:
            return self._records
        return [self._records[index] for index in self._pending]

    def _answered(self, errors: Errors) -> None:
        """A region said what became of what it got."""
        if not self._asked:
            return
        self._asked = False
        region = self._region
        metrics.append_seconds(region).observe(time.perf_counter() - self._began)
        self._publisher.heard(region, self._topic, errors, len(self._waiting()))
        published = metrics.published(region)
        if not errors and self._pending is None:
            published.inc(len(self._records))
            self._tell([self._publisher.outcomes[region]] * len(self._records))
            return
        indexes = range(len(self._records)) if self._pending is None else self._pending
        if self._pending is None:
            self._outcomes = [None] * len(self._records)
        waiting = []
        for n, index in enumerate(indexes):
            error = errors.get(n)
            if error is None:
                self._outcomes[index] = self._publisher.outcomes[region]
            elif isinstance(error, RecordRejected):
                large = isinstance(error, RecordTooLarge)
                metrics.REJECTED.labels("too_large" if large else "refused_by_log").inc()
                self._outcomes[index] = Outcome("rejected", error=error)
            else:
                if isinstance(error, Backpressure):
                    self._reason = "backpressure"
                elif isinstance(error, UnknownTopic):
                    self._reason = "unknown_topic"
                waiting.append(index)
        published.inc(len(indexes) - len(errors))
        self._pending = waiting
        if not waiting:
            self._end()
            return
        if self._reason == "backpressure":
            # Too much in flight is no reason to try another region: the disk takes it.
            self._next = len(self._regions)
        self.go_on()

    def _spooled(self, error: StorageExhausted | None) -> None:
        """The spool's writer said whether it has them."""
        indexes = range(len(self._records)) if self._pending is None else self._pending
        if not self._outcomes:
            self._outcomes = [None] * len(self._records)
        outcome = SPOOLED
        if error is None:
            metrics.SPOOLED.labels(self._reason).inc(len(indexes))
        else:
            busy = self._reason == "backpressure"
            metrics.REJECTED.labels("backpressure" if busy else "no_storage").inc(len(indexes))
            failure: PublisherError = Backpressure(str(error)) if busy else error
            outcome = Outcome("rejected", retryable=True, error=failure)
        for index in indexes:
            self._outcomes[index] = outcome
        self._end()

    def _end(self) -> None:
        self._tell([outcome for outcome in self._outcomes if outcome is not None])


class Together:
    """Several ways of one request: it is told when the last has ended."""

    def __init__(self, count: int, ways: int, tell: Tell) -> None:
        self._outcomes: list[Outcome | None] = [None] * count
        self._left = ways
        self._tell = tell
        self._lock = threading.Lock()

    def tell(self, indexes: Sequence[int], outcomes: list[Outcome]) -> None:
        """One way has ended."""
        for index, outcome in zip(indexes, outcomes, strict=True):
            self._outcomes[index] = outcome
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._tell([outcome for outcome in self._outcomes if outcome is not None])
