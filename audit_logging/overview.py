"""Who has taken the flags up: what the admin shows of the processes that told."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from django.db import DatabaseError, router, transaction
from django.utils import timezone

from .models import CaptureFlags, CaptureProcess
from .policy import etag
from .uptake import STALE

logger = logging.getLogger(__name__)

#: Processes shown on one page.
MOST_SHOWN = 200


@dataclass
class Line:
    """One process, as shown."""

    process: CaptureProcess
    current: bool
    stale: bool
    seen: str

    @property
    def state(self) -> str:
        """Which flags it has, in a word or two."""
        if self.current:
            return "these"
        return "earlier ones" if self.process.flags_etag else "its settings' alone"


@dataclass
class Overview:
    """The processes that one row of flags is for.

    :ivar known: whether the table could be read.
    """

    known: bool = True
    lines: list[Line] = field(default_factory=list)

    @property
    def live(self) -> int:
        """Processes heard of lately."""
        return sum(not line.stale for line in self.lines)

    @property
    def taken_up(self) -> int:
        """Live processes that have these flags."""
        return sum(line.current and not line.stale for line in self.lines)

    @property
    def complete(self) -> bool:
        """Whether all live processes have these flags, and there are some."""
        return 0 < self.live == self.taken_up

    @property
    def shown(self) -> list[Line]:
        """Those to look at come first."""
        order = sorted(self.lines, key=lambda line: (line.stale, line.current))
        return order[:MOST_SHOWN]

    @property
    def more(self) -> int:
        """Processes beyond those shown."""
        return max(0, len(self.lines) - MOST_SHOWN)

    @property
    def stale(self) -> int:
        """Processes that have fallen silent."""
        return len(self.lines) - self.live

    def __str__(self) -> str:
        if not self.known:
            return "unknown"
        if not self.live:
            return "no process heard"
        return f"{self.taken_up} of {self.live}"


def overviews(rows: Iterable[CaptureFlags]) -> dict[int, Overview]:
    """Return who has taken each of these flags up, by primary key; with one question for all."""
    rows = list(rows)
    try:
        # A table that is not there must not break the page's own transaction.
        with transaction.atomic(using=router.db_for_read(CaptureProcess)):
            processes = CaptureProcess.objects.all()
            named = {flags.service_name for flags in rows}
            if CaptureFlags.EVERY_SERVICE in named:
                own = set(CaptureFlags.objects.values_list("service_name", flat=True))
            else:
                own = named
                processes = processes.filter(service_name__in=named)
            found = list(processes.defer("settings"))
    except DatabaseError as error:
        logger.warning("which processes have which flags cannot be read: %s", error)
        return {flags.pk: Overview(known=False) for flags in rows}
    now = timezone.now()
    by_service: dict[str, list[CaptureProcess]] = {}
    for process in found:
        name = process.service_name
        by_service.setdefault(name if name in own else CaptureFlags.EVERY_SERVICE, []).append(
            process
        )
    made = {}
    for flags in rows:
        tag = etag(flags.document())
        made[flags.pk] = Overview(
            lines=[
                _line(process, tag, (now - process.last_seen).total_seconds())
                for process in by_service.get(flags.service_name, [])
            ]
        )
    return made


def _line(process: CaptureProcess, tag: str, silent: float) -> Line:
    return Line(process, process.flags_etag == tag, silent > STALE, ago(silent))


def ago(seconds: float) -> str:
    """Return a time that has passed, in words."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s ago"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s ago" if minutes < 10 else f"{minutes} min ago"
