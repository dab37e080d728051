"""Which lanes have something to do that nobody does: asked every second, cheap when idle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from django.db import IntegrityError, transaction
from django.db.models import Q

from audit_publisher.eventlog import get_region, region_names
from audit_publisher.eventlog.base import EventLog
from audit_publisher.exceptions import EventLogError
from audit_publisher.routing import topics

from .. import metrics
from ..conf import conf
from ..models import UNROUTABLE, Lane, Site
from . import Clock

logger = logging.getLogger(__name__)


def lanes() -> Iterator[tuple[Lane, Site | None]]:
    """Yield every lane of an unpaused site, and of the unroutable sink, made when it is new.

    Its `high_watermark` is fresh. A region or topic that does not answer is reported and left out.
    """
    sites = {site.code: site for site in Site.objects.filter(paused=False)}
    known = {lane.key: lane for lane in Lane.objects.all()}
    for region in region_names():
        log = get_region(region)
        for topic in topics():
            try:
                yield from _topic_lanes(log, topic, sites, known)
            except EventLogError as error:
                metrics.FAILURES.labels("", type(error).__name__).inc()
                logger.warning("The event log's region %s, topic %s: %s", region, topic, error)


def _topic_lanes(
    log: EventLog, topic: str, sites: dict[str, Site], known: dict[tuple, Lane]
) -> Iterator[tuple[Lane, Site | None]]:
    for partition in range(log.partitions(topic)):
        _, high = log.watermarks(topic, partition)
        for sink in (*sites, UNROUTABLE):
            site = sites.get(sink)
            lane = known.get((sink, log.region, topic, partition))
            if lane is None:
                lane = _new_lane(log, site, sink, topic, partition)
            if lane.high_watermark != high:
                lane.high_watermark = high
                Lane.objects.filter(pk=lane.pk).update(high_watermark=high)
            metrics.LAG.labels(*lane.key).set(max(0, high - lane.next_offset))
            yield lane, site


def _new_lane(log: EventLog, site: Site | None, sink: str, topic: str, partition: int) -> Lane:
    key = {"sink": sink, "region": log.region, "topic": topic, "partition": partition}
    start = _first_offset(log, site, topic, partition)
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


def _first_offset(log: EventLog, site: Site | None, topic: str, partition: int) -> int:
    """Where the ledger of a new lane begins."""
    low, high = log.watermarks(topic, partition)
    return high if site is not None and site.start_from == Site.StartFrom.LATEST else low


def due_lanes(clock: Clock = time.time) -> Iterator[Lane]:
    """Yield each lane that has something to do now, marked busy so that it is yielded once."""
    for lane, _site in lanes():
        now = clock()
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
            busy_until=now + conf.LEASE_SECONDS
        )
        if marked:
            yield lane


def enqueue_due(send: Callable[[str, str, str, int], object], *, clock: Clock = time.time) -> int:
    """Call `send` with the key of each lane that has something to do; return how many."""
    sent = 0
    for lane in due_lanes(clock):
        try:
            send(*lane.key)
        except Exception:
            # The broker is down: the next tick may find it up again.
            Lane.objects.filter(pk=lane.pk).update(busy_until=0)
            raise
        sent += 1
    return sent
