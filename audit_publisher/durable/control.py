"""What an operator wants of regions, as every publisher process knows it within seconds.

A region that is *drained* gets no record, not even as the last place before the spool: whoever
drains it may be at its disks, so that what it acknowledges now need not be there afterwards,
and the spool is durable. It is probed all the same. A region that is *first* is tried before the
others, whatever the configured order is, until that is taken back; in active-active mode there is
no such region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.core.signals import setting_changed
from django.db import close_old_connections

from audit_logging.background import Snapshot

from ..conf import PublisherSettings, conf

if TYPE_CHECKING:
    from ..publish import Publisher


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wanted of regions.

    :ivar drained: regions that are to get nothing.
    :ivar first: the region to try before the others, or None.
    """

    drained: frozenset[str] = frozenset()
    first: str | None = None


NOTHING = Wishes()


def wished(rows: Iterable[tuple[str, bool, bool]]) -> Wishes:
    """What rows of (region, drained, first) ask for.

    In active-active mode no region is first: each is, for its share of the keys.
    """
    found = list(rows)
    drained = frozenset(region for region, is_drained, _ in found if is_drained)
    first = None
    if conf.REGION_MODE != "active-active":
        first = next((region for region, _, is_first in found if is_first), None)
    return Wishes(drained, first) if drained or first else NOTHING


def _load() -> Wishes:
    from ..models import RegionWish

    return wished(RegionWish.objects.values_list("region", "drained", "first"))


def _snapshot() -> Snapshot[Wishes]:
    return Snapshot(
        _load,
        initial=NOTHING,
        interval=conf.REFRESH_SECONDS,
        name="audit region wishes",
        # A drained region must not get the first records of a process that starts.
        load_first=True,
        before=close_old_connections,
    )


_wishes = _snapshot()


def refresh() -> bool:
    """Read the wishes now; return whether that worked."""
    return _wishes.refresh()


def wishes() -> Wishes:
    """The wishes as last read: no query, but for the first in a process.

    A database that is down, or has no table yet, leaves the last known in force.
    """
    return _wishes.get()


def order(regions: Sequence[str]) -> tuple[str, ...]:
    """The regions to try, in order: without those that are drained, the wished one first.

    :param regions: in the configured order.
    :return: empty when all are drained: then everything is spooled.
    """
    return arranged(regions, wishes())


def arranged(regions: Sequence[str], wanted: Wishes) -> tuple[str, ...]:
    """As :func:`order`, by the given wishes."""
    if wanted is NOTHING:
        return tuple(regions)
    left = [region for region in regions if region not in wanted.drained]
    # Stable: the others keep their order. A name that is no region (any more) changes nothing.
    return tuple(sorted(left, key=lambda region: region != wanted.first))


def takes(region: str) -> bool:
    """Whether records may be sent to the region: it is not drained."""
    return region not in wishes().drained


def report(publisher: Publisher) -> None:
    """Have operators' pages show what this process sees, from now on; never raises or waits."""
    from ..operating.reports import reporter

    reporter.tell(publisher)


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    global _wishes
    if setting == PublisherSettings.prefix:
        _wishes.stop(0)
        _wishes = _snapshot()


setting_changed.connect(_reconfigure)
