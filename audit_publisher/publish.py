"""Make records durable: the first region, else the next, else the spool; and drain the spool."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from django.core.signals import setting_changed

from audit_logging.background import Loop
from audit_logging.spool import Record, StoredRecord

from . import eventlog, metrics, routing
from .breaker import Breaker
from .conf import PublisherSettings, conf
from .eventlog import EventLog, Receipt
from .exceptions import (
    Backpressure,
    EventLogError,
    PublisherError,
    RecordRejected,
    RecordTooLarge,
    RegionUnavailable,
    StorageExhausted,
    UnknownTopic,
)
from .spool import Spool

logger = logging.getLogger(__name__)

Status = Literal["published", "spooled", "rejected"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    :ivar region: where it is, when it is published.
    :ivar retryable: whether sending it again can help, when it is rejected.
    :ivar error: why it is rejected.
    """

    status: Status
    region: str | None = None
    retryable: bool = False
    error: PublisherError | None = None


@dataclass(slots=True)
class RegionState:
    """What the background last saw of a region."""

    up: bool = False
    error: str = ""
    missing_topics: list[str] = field(default_factory=list)


class Publisher:
    """Appends records to the first place that makes them durable. One per process; thread-safe.

    :param regions: names of the regions, in the order they are tried.
    :param open_region: returns the event log of a region; called for each use.
    :param topics: returns every topic that must exist.
    """

    def __init__(
        self,
        regions: Sequence[str],
        spool: Spool,
        *,
        open_region: Callable[[str], EventLog] = eventlog.get_region,
        topics: Callable[[], Sequence[str]] = routing.topics,
        cooldown: float = 2.0,
        interval: float = 2.0,
        drain_batch: int = 500,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spool = spool
        self.regions = tuple(regions)
        self.states: dict[str, RegionState] = {}
        self._open_region = open_region
        self._topics = topics
        self._interval = interval
        self._drain_batch = drain_batch
        self._clock = clock
        self._breaker = Breaker(cooldown, clock)
        self._loop = Loop(self._step, name="audit publisher upkeep")

    # -- for requests ---------------------------------------------------------------------

    def publish(self, items: Sequence[tuple[str, Record]]) -> list[Outcome]:
        """Make each (topic, record) durable; return one outcome each, in order.

        Takes no longer than one delivery timeout for each region that was not yet known to be
        dead.
        """
        self.start()
        outcomes: list[Outcome | None] = [None] * len(items)
        by_topic: dict[str, list[int]] = {}
        for index, (topic, _) in enumerate(items):
            by_topic.setdefault(topic, []).append(index)
        for topic, indexes in by_topic.items():
            records = [items[index][1] for index in indexes]
            for index, outcome in zip(indexes, self._publish(topic, records), strict=True):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def start(self) -> None:
        """Start this process's background work: probing regions and draining the spool."""
        self._loop.ensure_running()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the background work; return whether it ended in time."""
        return self._loop.stop(timeout)

    def _publish(self, topic: str, records: Sequence[Record]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        pending = list(range(len(records)))
        reason = "region_unavailable"
        for region in self.regions:
            if not pending or reason == "backpressure":
                break
            if not self._breaker.allows(region, topic):
                continue
            receipts = self._append(region, topic, [records[index] for index in pending])
            waiting = []
            published = 0
            for index, receipt in zip(pending, receipts, strict=True):
                if receipt.error is None:
                    outcomes[index] = Outcome("published", region)
                    published += 1
                elif isinstance(receipt.error, RecordRejected):
                    large = isinstance(receipt.error, RecordTooLarge)
                    metrics.REJECTED.labels("too_large" if large else "refused_by_log").inc()
                    outcomes[index] = Outcome("rejected", error=receipt.error)
                else:
                    # Too much in flight is no reason to try another region: the disk takes it.
                    if isinstance(receipt.error, Backpressure):
                        reason = "backpressure"
                    elif isinstance(receipt.error, UnknownTopic):
                        reason = "unknown_topic"
                    waiting.append(index)
            if published:
                metrics.PUBLISHED.labels(region).inc(published)
            pending = waiting
        if pending:
            for index, outcome in zip(
                pending,
                self._spool(topic, [records[index] for index in pending], reason),
                strict=True,
            ):
                outcomes[index] = outcome
        return [outcomes[index] for index in range(len(records))]

    def _append(self, region: str, topic: str, records: Sequence[Record]) -> list[Receipt]:
        started = time.perf_counter()
        try:
            receipts = self._open_region(region).append(topic, records)
        except Exception as error:
            # A region whose client cannot even be made is a region that is down.
            if not isinstance(error, EventLogError):
                logger.exception("Region %s failed in an unexpected way.", region)
            failure = RegionUnavailable(f"{region}: {error}")
            receipts = [Receipt(error=failure)] * len(records)
        metrics.APPEND_SECONDS.labels(region).observe(time.perf_counter() - started)
        failures = [each.error for each in receipts if isinstance(each.error, RegionUnavailable)]
        if failures:
            self._give_up(region, topic, failures[0])
        elif any(each.error is None for each in receipts):
            self._breaker.succeeded(region, topic)
        return receipts

    def _give_up(self, region: str, topic: str, error: RegionUnavailable) -> None:
        unknown = isinstance(error, UnknownTopic)
        if self._breaker.failed(region, topic if unknown else ""):
            cause = "unknown_topic" if unknown else "unavailable"
            metrics.FAILOVERS.labels(region, cause).inc()
            metrics.REGION_UP.labels(region).set(0)
            logger.error("Region %s takes nothing for now: %s", region, error)

    def _spool(self, topic: str, records: Sequence[Record], reason: str) -> list[Outcome]:
        try:
            self.spool.append(topic, records)
        except StorageExhausted as error:
            busy = reason == "backpressure"
            metrics.REJECTED.labels("backpressure" if busy else "no_storage").inc(len(records))
            failure: PublisherError = Backpressure(str(error)) if busy else error
            return [Outcome("rejected", retryable=True, error=failure)] * len(records)
        metrics.SPOOLED.labels(reason).inc(len(records))
        return [Outcome("spooled")] * len(records)

    # -- in the background ----------------------------------------------------------------

    def _step(self) -> float:
        self.probe()
        self.drain()
        records, size = self.spool.size()
        metrics.SPOOL_RECORDS.set(records)
        metrics.SPOOL_BYTES.set(size)
        return self._interval

    def probe(self) -> None:
        """Look at every region: does it answer, and has it every topic?"""
        for region in self.regions:
            state = RegionState()
            if self._breaker.may_probe(region):
                try:
                    self._probe_topics(region, state)
                except Exception as error:  # noqa: BLE001  (a client that cannot be made)
                    state.up, state.error = False, str(error)
                    self._give_up(region, "", RegionUnavailable(str(error)))
                self.states[region] = state
            up = self.states.get(region, state)
            metrics.REGION_UP.labels(region).set(up.up and not up.missing_topics)

    def _probe_topics(self, region: str, state: RegionState) -> None:
        log = self._open_region(region)
        topics = list(dict.fromkeys([*self._topics(), *self.spool.topics()]))
        state.missing_topics = log.missing(topics)
        for topic in topics:
            if topic in state.missing_topics:
                self._give_up(region, topic, UnknownTopic(f"There is no topic {topic!r}."))
            else:
                self._breaker.answered(region, topic)
        # Connects before the first record has to wait for it.
        log.append(self._topics()[0], [])
        state.up = True
        failures = self._breaker.failures(region)
        if failures and self.spool.topics():
            # What waits is the best probe: it is appended before any request is let through.
            self.drain(region)
        if self._breaker.failures(region) <= failures:
            self._breaker.answered(region)

    def drain(self, region: str = "") -> int:
        """Append what waits in the spool, in order; return how many records left it.

        :param region: the region to use, or "" for the first one that is not given up.
        """
        moved = 0
        with self.spool.only_drainer() as mine:
            if mine:
                for topic in self.spool.topics():
                    moved += self._drain(topic, region)
        return moved

    def _drain(self, topic: str, region: str) -> int:
        moved = 0
        while records := self.spool.oldest(topic, self._drain_batch):
            target = region or next(
                (name for name in self.regions if self._breaker.allows(name, topic)), ""
            )
            if not target:
                break
            receipts = self._append(target, topic, records)
            refused: list[tuple[StoredRecord, str]] = []
            settled = 0
            for record, receipt in zip(records, receipts, strict=True):
                if receipt.error is not None:
                    if not isinstance(receipt.error, RecordRejected):
                        break
                    logger.error("A spooled record is refused for good: %s", receipt.error)
                    refused.append((record, str(receipt.error)))
                settled += 1
            if settled:
                self.spool.done(topic, records[settled - 1].offset, refused)
                moved += settled
                metrics.DRAINED.labels(target).inc(settled - len(refused))
                metrics.DRAIN_REFUSED.inc(len(refused))
            if settled < len(records) and (region or self._breaker.allows(target, topic)):
                # The only region, or one that is merely busy: later. Else the next region, now.
                break
        return moved


_publisher: Publisher | None = None
_lock = threading.Lock()


def get_publisher() -> Publisher:
    """Return this process's publisher; made at first use and kept."""
    global _publisher
    if _publisher is None:
        with _lock:
            if _publisher is None:
                _publisher = Publisher(
                    eventlog.region_names(),
                    Spool(conf.spool_dir(), conf.SPOOL_MAX_BYTES),
                    cooldown=conf.REGION_COOLDOWN,
                    interval=conf.REFRESH_SECONDS,
                    drain_batch=conf.DRAIN_BATCH,
                )
    return _publisher


def reset() -> None:
    """Stop and forget this process's publisher; the next use makes a new one."""
    global _publisher
    if _publisher is not None:
        _publisher.stop()
    _publisher = None


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    if setting == PublisherSettings.prefix:
        reset()


setting_changed.connect(_reconfigure)
