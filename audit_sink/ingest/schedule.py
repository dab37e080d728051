"""Which lanes have something to do that nobody does: asked every second, cheap when idle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

from django.db import IntegrityError, transaction
from django.db.models import Q

from audit_logging.breaker import Breaker
from audit_publisher.eventlog import get_region, region_names
from audit_publisher.eventlog.base import EventLog
from audit_publisher.exceptions import EventLogError, RegionUnavailable, UnknownTopic
from audit_publisher.routing import topics

from .. import metrics
from ..conf import conf
from ..models import UNROUTABLE, Lane, Site
from . import Clock
from .turns import turn

logger = logging.getLogger(__name__)

#: Seconds after which somebody else may look for work, though the last one has not ended.
_TICK_SECONDS = 10.0
#: Seconds after which a task that no worker has begun counts as lost. A worker that begins it makes
#: that a lease.
_QUEUED_SECONDS = 60.0

#: What is known of this process's regions. One that is opened anew, after a fork or another
#: configuration, is a new object and begins with a clean slate.
_breakers: WeakKeyDictionary[EventLog, Breaker] = WeakKeyDictionary()
#: A dead region is left alone for this many seconds after its first failure, then for longer.
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 15.0


def lanes() -> Iterator[tuple[Lane, Site | None]]:
    """Yield every lane of each site, paused ones too, and of the unroutable sink; made when new.

    Its `high_watermark` is fresh. A topic that does not answer is reported and left out; so is a
    region, which is then not asked again until its time has come.
    """
    sites = {site.code: site for site in Site.objects.all()}
    known = {lane.key: lane for lane in Lane.objects.all()}
    # What is healthy goes first: a dead region is waited for.
    for log in sorted(map(get_region, region_names()), key=lambda log: not _breaker(log).closed):
        if _breaker(log).allows:
            yield from _region_lanes(log, sites, known)


def _breaker(log: EventLog) -> Breaker:
    return _breakers.setdefault(log, Breaker(_FIRST_PAUSE, _LONGEST_PAUSE))


def _region_lanes(
    log: EventLog, sites: dict[str, Site], known: dict[tuple, Lane]
) -> Iterator[tuple[Lane, Site | None]]:
    for topic in topics():
        try:
            yield from _topic_lanes(log, topic, sites, known)
        except EventLogError as error:
            metrics.FAILURES.labels("", type(error).__name__).inc()
            logger.warning("The event log's region %s, topic %s: %s", log.region, topic, error)
            if isinstance(error, RegionUnavailable) and not isinstance(error, UnknownTopic):
                # Its other topics would be waited for just as long.
                _breaker(log).failed()
                return
    _breaker(log).succeeded()


def _topic_lanes(
    log: EventLog, topic: str, sites: dict[str, Site], known: dict[tuple, Lane]
) -> Iterator[tuple[Lane, Site | None]]:
    started = {lane.sink for lane in known.values()}
    for partition in range(log.partitions(topic)):
        low, high = log.watermarks(topic, partition)
        for sink in (*sites, UNROUTABLE):
            site = sites.get(sink)
            lane = known.get((sink, log.region, topic, partition))
            if lane is None:
                latest = site is not None and site.start_from == Site.StartFrom.LATEST
                # What a partition or topic that appears later holds came after the site's start.
                start = high if latest and sink not in started else low
                lane = _new_lane(start, sink, log.region, topic, partition)
            if lane.high_watermark != high:
                lane.high_watermark = high
                Lane.objects.filter(pk=lane.pk).update(high_watermark=high)
            metrics.LAG.labels(*lane.key).set(max(0, high - lane.next_offset))
            yield lane, site


def _new_lane(start: int, sink: str, region: str, topic: str, partition: int) -> Lane:
    key = {"sink": sink, "region": region, "topic": topic, "partition": partition}
    try:
        with transaction.atomic():
            return Lane.objects.create(
                **key,
                start_offset=start,
                next_offset=start,
                look_again_offset=start + conf.MAX_BATCH_RECORDS,
            )
    except IntegrityError:
        return Lane.objects.get(**key)


def due_lanes(clock: Clock = time.time) -> Iterator[Lane]:
    """Yield each lane that has something to do now, marked busy so that it is yielded once."""
    for lane, site in lanes():
        now = clock()
        if site is not None and site.paused:
            continue
        if lane.high_watermark == lane.next_offset or lane.busy_until > now:
            continue
        if lane.due_at is None:
            # Records came in: give them FLUSH_SECONDS to become a batch worth a file.
            lane.due_at = now + conf.FLUSH_SECONDS
            Lane.objects.filter(pk=lane.pk, due_at=None).update(due_at=lane.due_at)
        full = not lane.failures and lane.high_watermark >= lane.look_again_offset
        if now < lane.due_at and not full:
            continue
        marked = Lane.objects.filter(Q(busy_until__lte=now), pk=lane.pk).update(
            busy_until=now + _QUEUED_SECONDS
        )
        if marked:
            yield lane


def enqueue_due(send: Callable[[str, str, str, int], object], *, clock: Clock = time.time) -> int:
    """Call `send` with the key of each lane that has something to do; return how many.

    Does nothing while another process is at it: a slow region shall hold up one worker, not all.
    """
    sent = 0
    with turn("schedule", _TICK_SECONDS, clock) as mine:
        for lane in due_lanes(clock) if mine else ():
            try:
                send(*lane.key)
            except Exception:
                # The broker is down: the next tick may find it up again.
                Lane.objects.filter(pk=lane.pk).update(busy_until=0)
                raise
            sent += 1
    return sent
