"""May a site's records get another owner now: not while any of them would be lost by it.

Each sink passes by what is not its own, and never looks back. A record that was passed by as the
site's, and is not the site's any more when the site comes to it, would be stored by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit_publisher.eventlog import get_region, region_names
from audit_publisher.eventlog.base import EventLog, Limits
from audit_publisher.exceptions import EventLogError, UnknownTopic
from audit_publisher.routing import topics

from ..models import UNROUTABLE, Lane, Site
from .sites import SiteFilter

#: A partition with more waiting offsets than this is not searched: it is far behind.
_MAX_SEARCH = 50_000
_LIMITS = Limits(max_records=5_000, max_bytes=8 << 20, timeout=5.0)


def obstacle(site: Site, *, deleted: bool = False) -> str:
    """Say why `site`, as it is now in memory, must not be saved (or deleted); "" when it may be.

    Records change hands between the site and the unroutable sink alone, as each id has one owner.
    Events that come in at the moment of the change are not covered: make it while none do.
    """
    others = list(Site.objects.exclude(pk=site.pk))
    change = _Change(
        site.code,
        SiteFilter(Site.objects.all()),
        SiteFilter(others if deleted else [*others, site]),
        new=site.pk is None,
        latest=site.start_from == Site.StartFrom.LATEST,
    )
    for region in region_names():
        try:
            where = _first_lost(get_region(region), change)
        except EventLogError as error:
            return (
                f"It is not known whether records wait for {change.sink}: the event log's region "
                f"{region} says: {error} Try again when it answers."
            )
        if where:
            return (
                f"Records that wait in the event log would be lost by this ({where}). Resume "
                f"{change.sink} if it is paused, wait until audit_status shows lag 0 for "
                f"{change.sink} and {UNROUTABLE}, and try again."
            )
    return ""


@dataclass(frozen=True)
class _Change:
    """Who owns a record before and after.

    :ivar sink: the site's code.
    :ivar new: the site has owned nothing yet.
    :ivar latest: a new site begins at the end of the log.
    """

    sink: str
    before: SiteFilter
    after: SiteFilter
    new: bool
    latest: bool


def _first_lost(log: EventLog, change: _Change) -> str:
    """Where the first record is that would be lost, in words; "" when there is none."""
    reached = {
        lane.key: lane.next_offset
        for lane in Lane.objects.filter(sink__in=(change.sink, UNROUTABLE), region=log.region)
    }
    for topic in topics():
        try:
            partitions = log.partitions(topic)
        except UnknownTopic:
            continue
        for partition in range(partitions):
            low, high = log.watermarks(topic, partition)
            site, unroutable = (
                max(low, reached.get((sink, log.region, topic, partition), low))
                for sink in (change.sink, UNROUTABLE)
            )
            if change.new and change.latest:
                site = high
            # From where it stands, a new site finds all that is its own.
            end = site if change.new else high
            if _lost_in(log, topic, partition, site, unroutable, end, change):
                return f"{log.region} {topic}/{partition}, from offset {min(site, unroutable)} on"
    return ""


def _lost_in(
    log: EventLog,
    topic: str,
    partition: int,
    site: int,
    unroutable: int,
    end: int,
    change: _Change,
) -> bool:
    """Whether one partition holds a record that would be lost.

    :param site: the offset that the site's lane has reached.
    :param unroutable: the offset that the unroutable sink's lane has reached.
    :param end: where to stop searching.
    """
    start = min(site, unroutable)
    if end - start > _MAX_SEARCH:
        return True
    while start < end:
        records = log.read(topic, partition, start, _LIMITS)
        if not records:
            # A slow answer; what it would have shown is not known.
            return True
        for record in records:
            before, after = change.before.owner(record.headers), change.after.owner(record.headers)
            if before == after:
                continue
            if before == change.sink and record.offset >= site:
                return True
            if after == change.sink and unroutable <= record.offset < site:
                return True
        start = records[-1].offset + 1
    return False
