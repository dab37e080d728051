"""Make records durable: the first region, else the next, else the spool; and drain the spool."""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from zlib import crc32

from django.core.signals import setting_changed

from audit_logging.background import Loop
from audit_logging.exceptions import SpoolError
from audit_logging.spool import Record, StoredRecord

from . import eventlog, metrics, routing
from .conf import PublisherSettings, conf
from .durable import control
from .durable.breaker import Breaker
from .durable.outcome import Outcome
from .durable.spool import REFUSED, Spool
from .durable.spool_writer import SpoolWriter
from .durable.ways import Tell, Together, Way, no_news
from .eventlog import EventLog, Receipt, TopicFacts
from .eventlog.base import Errors
from .exceptions import EventLogError, RecordRejected, RegionUnavailable, UnknownTopic

logger = logging.getLogger(__name__)

#: Seconds until regions are asked again for partitions and settings of topics, which seldom change.
_TOPICS_EVERY = 30.0


@dataclass(slots=True)
class RegionState:
    """What the background last saw of a region."""

    up: bool = False
    error: str = ""
    missing_topics: list[str] = field(default_factory=list)
    #: What it said of its topics, for which it was asked, and when (monotonic seconds).
    topics: Mapping[str, TopicFacts | None] | None = None
    asked_for: tuple[str, ...] = ()
    asked_at: float = -math.inf


class Publisher:
    """Appends records to the first place that makes them durable. One per process; thread-safe.

    :param regions: names of the regions, in the order they are tried.
    :param open_region: returns the event log of a region; called for each use.
    :param topics: returns every topic that must exist.
    :param order: returns those regions that take traffic now, in the order they are tried.
    :param patience: seconds after which a request waits no longer: its records' fate is unknown.
    :param drain_rate: records a second that leave the spool at most; live traffic has the rest.
    :param spread: whether all regions take a share of the traffic, each the first for some keys.
    """

    def __init__(
        self,
        regions: Sequence[str],
        spool: Spool,
        *,
        open_region: Callable[[str], EventLog] = eventlog.get_region,
        topics: Callable[[], Sequence[str]] = routing.topics,
        order: Callable[[Sequence[str]], tuple[str, ...]] = tuple,
        spread: bool = False,
        patience: float = 15.0,
        cooldown: float = 2.0,
        interval: float = 2.0,
        drain_batch: int = 500,
        drain_rate: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spool = spool
        self.regions = tuple(regions)
        self.states: dict[str, RegionState] = {}
        self._open_region = open_region
        self._topics = topics
        self._order = order
        self._spread = spread
        self.patience = patience
        self.writer = SpoolWriter(spool)
        self.outcomes = {name: Outcome("published", name) for name in self.regions}
        self._undriven: set[str] = set()
        self._interval = interval
        self._drain_batch = max(1, int(min(drain_batch, drain_rate * interval)))
        self._drain_rate = drain_rate
        #: What was said of the spool last, and how many left it since.
        self._spooling = self._spool_broken = False
        self._drained = 0
        #: When the next batch may leave the spool.
        self._drain_at = -math.inf
        self._sleep = sleep
        self._clock = clock
        self._breaker = Breaker(cooldown, clock)
        self._loop = Loop(self._step, name="audit publisher upkeep")

    # -- for requests ---------------------------------------------------------------------

    def publish(self, items: Sequence[tuple[str, Record]]) -> list[Outcome]:
        """Make each (topic, record) durable; return one outcome each, in order.

        Takes no longer than one delivery timeout for each region that was not yet known to be
        dead.
        """
        told: list[list[Outcome]] = []
        there = threading.Event()

        def tell(outcomes: list[Outcome]) -> None:
            told.append(outcomes)
            there.set()

        self.submit(items, tell)
        if not there.wait(self.patience):
            return no_news(len(items))
        return told[0]

    def submit(self, items: Sequence[tuple[str, Record]], tell: Tell) -> None:
        """Make each (topic, record) durable without waiting.

        :param tell: called once with the outcomes, in order, on whatever thread brings the last
            news, possibly before this returns.
        """
        self.start()
        if not items:
            tell([])
            return
        groups = self._groups(items)
        if len(groups) == 1:
            ((topic, regions),) = groups
            Way(self, topic, [record for _, record in items], regions, tell).go_on()
            return
        together = Together(len(items), len(groups), tell)
        for (topic, regions), indexes in groups.items():
            records = [items[index][1] for index in indexes]
            Way(self, topic, records, regions, partial(together.tell, indexes)).go_on()

    def _groups(
        self, items: Sequence[tuple[str, Record]]
    ) -> dict[tuple[str, tuple[str, ...]], list[int]]:
        """What goes the same way: the items' indexes by topic and regions, in order."""
        regions = self._order(self.regions)
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        if not self._spread or len(regions) < 2:
            for index, (topic, _) in enumerate(items):
                groups.setdefault((topic, regions), []).append(index)
            return groups
        orders = [regions[n:] + regions[:n] for n in range(len(regions))]
        for index, (topic, record) in enumerate(items):
            # By key: what must stay in order stays in one region, as long as that is there.
            order = orders[crc32(record.key or b"") % len(orders)]
            groups.setdefault((topic, order), []).append(index)
        return groups

    def admits(self, region: str, topic: str) -> bool:
        """Whether this request may try this topic in this region."""
        return self._breaker.admits(region, topic)

    def is_shut(self, region: str) -> bool:
        """Whether no request may try this region."""
        return self._breaker.is_shut(region)

    def submit_to(
        self, region: str, topic: str, records: Sequence[Record], done: Callable[[Errors], None]
    ) -> None:
        """Append to one region without waiting; a client that cannot be made is a region down."""
        try:
            log = self._open_region(region)
            log.submit(topic, records, done)
        except Exception as error:
            logger.exception("Region %s failed in an unexpected way.", region)
            failure = RegionUnavailable(f"{region}: {error}")
            done(dict.fromkeys(range(len(records)), failure))

    def heard(
        self, region: str, topic: str, errors: Errors, count: int, *, probing: bool = False
    ) -> None:
        """Remember what a region did with `count` records.

        :param probing: whether it was to show if the region is there.
        """
        if errors:
            for error in errors.values():
                if isinstance(error, RegionUnavailable):
                    self._give_up(region, topic, error)
                    return
        # What was under way when a region was given up says nothing of it now.
        told = probing or not self._breaker.is_shut(region, topic)
        if count > len(errors) and told and self._breaker.succeeded(region, topic):
            logger.warning("Region %s takes records again.", region)

    def drive(self) -> int:
        """Serve, from the caller's thread, what regions have ready; see EventLog.drive.

        :return: how many submissions are still open.
        """
        opened = 0
        for region in self.regions:
            try:
                opened += self._open_region(region).drive()
            except Exception:
                if region not in self._undriven:
                    logger.exception("Region %s: its delivery reports cannot be served.", region)
                self._undriven.add(region)
            else:
                self._undriven.discard(region)
        return opened

    def start(self) -> None:
        """Start this process's background work: probing regions and draining the spool."""
        self._loop.ensure_running()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the background work; return whether it ended in time."""
        return self._loop.stop(timeout)

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
        metrics.append_seconds(region).observe(time.perf_counter() - started)
        errors = {n: each.error for n, each in enumerate(receipts) if each.error is not None}
        self.heard(region, topic, errors, len(records), probing=True)
        return receipts

    def _give_up(
        self, region: str, topic: str, error: RegionUnavailable, *, silent: bool = False
    ) -> None:
        unknown = isinstance(error, UnknownTopic)
        if self._breaker.failed(region, topic if unknown else "", silent=silent):
            cause = "unknown_topic" if unknown else "unavailable"
            metrics.FAILOVERS.labels(region, cause).inc()
            metrics.REGION_UP.labels(region).set(0)
            logger.error("Region %s takes nothing for now: %s", region, error)

    # -- in the background ----------------------------------------------------------------

    def _step(self) -> float:
        control.report(self)
        self.probe()
        try:
            moved = self.drain()
            records, size = self.spool.size()
            oldest = self.spool.oldest_at()
            metrics.SPOOL_REFUSED.set(self.spool.queue.stats(REFUSED).records)
        except (SpoolError, OSError, sqlite3.Error) as error:
            if not self._spool_broken:
                logger.error("AUDIT_PUBLISHER_SPOOL_DIR: the spool cannot be used: %s", error)
            self._spool_broken = True
            return self._interval
        self._spool_broken = False
        metrics.SPOOL_RECORDS.set(records)
        metrics.SPOOL_BYTES.set(size)
        metrics.SPOOL_MAX_BYTES.set(self.spool.max_bytes)
        metrics.SPOOL_OLDEST.set(max(0.0, time.time() - oldest) if oldest else 0.0)
        self._tell_of_spool(moved, records)
        return 0.0 if moved and records else self._interval

    def _tell_of_spool(self, moved: int, records: int) -> None:
        """Log when events begin to be spooled, and when the spool is empty again."""
        self._drained += moved
        if records and not self._spooling:
            logger.warning("Events are on disk, in the spool, until a region takes them.")
        elif self._spooling and not records:
            logger.warning("The spool is empty again; this process drained %d.", self._drained)
            self._drained = 0
        self._spooling = bool(records)

    def probe(self) -> None:
        """Look at every region: does it answer, and has it every topic?"""
        for region in self.regions:
            state = RegionState()
            if self._breaker.may_probe(region):
                try:
                    self._probe_topics(region, state)
                except Exception as error:  # noqa: BLE001  (a client that cannot be made)
                    state.up, state.error = False, str(error)
                    self._give_up(region, "", RegionUnavailable(str(error)), silent=True)
                self.states[region] = state
            elif region not in self.states:
                state.error = "It took no record; the log says why."
                self.states[region] = state
            up = self.states[region]
            takes = up.up and not up.missing_topics and not self._breaker.is_shut(region)
            metrics.REGION_UP.labels(region).set(takes)

    def _describe(self, region: str, log: EventLog, state: RegionState) -> None:
        """What the region says of its topics, half a minute old at most: it seldom changes."""
        last = self.states.get(region, state)
        state.topics, state.asked_for, state.asked_at = last.topics, last.asked_for, last.asked_at
        asked_for = (*self._topics(), *state.missing_topics)
        now = self._clock()
        if state.asked_for != asked_for or now - state.asked_at >= _TOPICS_EVERY:
            # It answered a moment ago: one that does not, now, is found out by the next look.
            with suppress(EventLogError):
                state.topics = log.describe(self._topics())
                state.asked_for, state.asked_at = asked_for, now

    def _probe_topics(self, region: str, state: RegionState) -> None:
        log = self._open_region(region)
        spooled = self._spooled_topics()
        topics = list(dict.fromkeys([*self._topics(), *spooled]))
        state.missing_topics = log.missing(topics)
        for topic in topics:
            if topic in state.missing_topics:
                self._give_up(region, topic, UnknownTopic(f"There is no topic {topic!r}."))
            else:
                self._breaker.answered(region, topic)
        # Connects before the first record has to wait for it.
        log.append(self._topics()[0], [])
        state.up = True
        self._describe(region, log, state)
        failures = self._breaker.failures(region)
        if failures and region in self._order(self.regions) and spooled:
            # What waits is the best probe: it is appended before any request is let through.
            with suppress(SpoolError, OSError, sqlite3.Error):
                self.drain(region)
        if self._breaker.failures(region) <= failures:
            # Nothing waited, or another process drains: the next request tries.
            self._breaker.answered(region)

    def _spooled_topics(self) -> list[str]:
        """Topics with records that wait; a spool that is broken says nothing of the regions."""
        try:
            return self.spool.topics()
        except (SpoolError, OSError, sqlite3.Error):
            # Upkeep says it.
            return []

    def drain(self, region: str = "") -> int:
        """Append what waits in the spool, in the order it came; return how many records left it.

        No longer than `interval` at a time, for the regions must be looked at, too.

        :param region: the region to use, or "" for the first one that is not given up.
        """
        moved = 0
        until = self._clock() + self._interval
        with self.spool.only_drainer() as mine:
            if mine:
                for topic in self.spool.topics():
                    moved += self._drain(topic, region, until)
        return moved

    def _drain(self, topic: str, region: str, until: float) -> int:
        moved, behind = 0, -1
        #: Keys of which a record has to wait, and so all that come after it.
        held: set[bytes | None] = set()
        while records := self.spool.oldest(topic, self._drain_batch, behind=behind):
            behind = records[-1].offset
            records = [record for record in records if record.key not in held]
            if not records:
                if self._clock() >= until:
                    break
                continue
            target = region or next(
                (n for n in self._order(self.regions) if self._breaker.allows(n, topic)), ""
            )
            if not target:
                break
            # Requests have the right of way.
            self._sleep(max(0.0, self._drain_at - self._clock()))
            self._drain_at = max(self._drain_at, self._clock()) + len(records) / self._drain_rate
            settled = self._settle(topic, target, records, held)
            moved += settled
            if settled < len(records):
                if not region and not self._breaker.allows(target, topic):
                    # The next region, now.
                    behind = -1
                    held.clear()
                elif not settled:
                    # The only region, or one that is merely busy: later.
                    break
            if self._clock() >= until:
                break
        return moved

    def _settle(
        self, topic: str, region: str, records: Sequence[StoredRecord], held: set[bytes | None]
    ) -> int:
        """Append what waited to a region, and forget what is done with; return how many are.

        :param held: gets the keys of the others.
        """
        durable: list[StoredRecord] = []
        refused: list[tuple[StoredRecord, str]] = []
        for record, receipt in zip(records, self._append(region, topic, records), strict=True):
            if receipt.error is None:
                durable.append(record)
            elif isinstance(receipt.error, RecordRejected):
                refused.append((record, str(receipt.error)))
            else:
                held.add(record.key)
        if durable or refused:
            self.spool.done(topic, durable, refused)
            metrics.DRAINED.labels(region).inc(len(durable))
            metrics.DRAIN_REFUSED.inc(len(refused))
        if refused:
            logger.error(
                "Region %s refuses %d spooled records of topic %s for good; they are kept: "
                "manage.py audit_publisher_spool list. The first: %s",
                region,
                len(refused),
                topic,
                refused[0][1],
            )
        return len(durable) + len(refused)


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
                    order=control.order,
                    spread=conf.REGION_MODE == "active-active",
                    # Each region in its time, and the disk.
                    patience=2 * conf.DELIVERY_TIMEOUT + 10,
                    cooldown=conf.REGION_COOLDOWN,
                    interval=conf.REFRESH_SECONDS,
                    drain_batch=conf.DRAIN_BATCH,
                    drain_rate=conf.DRAIN_RATE,
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
