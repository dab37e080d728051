"""Uptake: which capture processes have taken a change of the flags up.

Each process tells, in the background, which flags (by their entity tag) it has in force: with
FLAGS_SOURCE=publisher in a header of its poll, with FLAGS_SOURCE=database by writing its own row.
Nothing depends on it: a table that is missing or cannot be written costs the overview alone.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlencode

from django.conf import settings as django_settings

from . import __version__
from .chance import chance
from .conf import LoggingSettings, conf
from .policy import from_settings

logger = logging.getLogger(__name__)

#: The header of a poll that says which process asks.
HEADER = "Audit-Process"
#: Seconds between two notes of a process that has nothing new to say.
HEARTBEAT = 15.0
#: Seconds of silence after which a process is shown as one that may be gone.
STALE = 45.0
#: Seconds of silence after which it is forgotten.
FORGET = 600.0
#: Processes remembered; what comes beyond is not shown.
MOST = 10_000

_MOST_HEADER = 6000
_MOST_SETTINGS = 3000
_TELL_SETTINGS_EVERY = 60.0
_PAUSE_AFTER_FAILURE = 300.0
_PRUNE_EVERY = 60.0
_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Report:
    """What one process says of itself; times in epoch seconds.

    :ivar etag: the flags in force; empty while it has none but its settings'.
    :ivar settings: what its settings say (see :meth:`~audit_logging.policy.Policy.base`) as JSON;
        empty when they are not told this time.
    """

    service: str
    host: str
    pid: int
    started: float
    version: str
    source: str
    etag: str
    seen: float
    settings: str = ""

    @property
    def process(self) -> str:
        """A name that no other process has, on any host at any time."""
        return f"{self.host}:{self.pid}:{int(self.started * 1000)}"


@functools.lru_cache(maxsize=1)
def _started(pid: int) -> float:
    return time.time()


def report_of_this_process(service: str, source: str, tag: str, settings: str = "") -> Report:
    """Return what this process says of itself now."""
    pid = os.getpid()
    return Report(
        service=service,
        host=socket.gethostname()[:100],
        pid=pid,
        started=_started(pid),
        version=__version__,
        source=source,
        etag=tag,
        seen=time.time(),
        settings=settings,
    )


def to_header(report: Report) -> str:
    """Return a report as the value of :data:`HEADER`; service and flags travel beside it."""
    fields = {
        "host": report.host,
        "pid": report.pid,
        "started": f"{report.started:.3f}",
        "version": report.version,
    }
    if report.settings:
        fields["settings"] = report.settings
    return urlencode(fields)


def from_header(service: str, etag: str, value: str, now: float) -> Report | None:
    """Return the report that a poll carries, or None when it is not understood.

    :param etag: the poll's If-None-Match.
    :param now: epoch seconds.
    """
    if not value or len(value) > _MOST_HEADER or len(service) > 100 or len(etag) > 80:
        return None
    try:
        fields = {name: values[0] for name, values in parse_qs(value, max_num_fields=10).items()}
        report = Report(
            service=service,
            host=_plain(fields["host"], 100),
            pid=int(fields["pid"]),
            started=float(fields["started"]),
            version=_plain(fields.get("version", ""), 40),
            source="publisher",
            etag=_plain(etag, 80),
            seen=now,
            settings=fields.get("settings", "")[:_MOST_SETTINGS].replace("\0", ""),
        )
        moment(report.started)
    except (KeyError, ValueError, OverflowError, OSError):
        return None
    return report if report.host and 0 < report.pid < 1 << 31 else None


def _plain(text: str, most: int) -> str:
    return "".join(character for character in text if character.isprintable())[:most]


def moment(epoch: float) -> datetime:
    """Return epoch seconds as the host's database takes them: naive where USE_TZ is off."""
    return datetime.fromtimestamp(epoch, UTC if django_settings.USE_TZ else None)


class Reporter:
    """Tells which flags this process has in force; used by one background thread.

    :param clock: returns seconds, monotonic.
    """

    def __init__(
        self,
        options: LoggingSettings = conf,
        source: str = "database",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = options.SERVICE_NAME
        self._source = source
        self._clock = clock
        text = json.dumps(from_settings(options).base(), separators=(",", ":"))
        self._settings = text if len(text) <= _MOST_SETTINGS else ""
        self._pid = 0
        self._fresh()

    def _fresh(self) -> None:
        # A process that was forked has told nothing yet.
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._told: str | None = None
            self._due = self._settings_due = 0.0
            self._prune_due = self._clock() + _PRUNE_EVERY * chance.random()
            self._failed = False

    def headers(self) -> dict[str, str]:
        """Return the headers of a poll."""
        self._fresh()
        now = self._clock()
        settings = ""
        if now >= self._settings_due:
            settings, self._settings_due = self._settings, now + _TELL_SETTINGS_EVERY
        report = report_of_this_process(self._service, self._source, "", settings)
        value = to_header(report)
        if len(value) > _MOST_HEADER:
            value = to_header(report_of_this_process(self._service, self._source, ""))
        return {HEADER: value}

    def store(self, tag: str) -> None:
        """Write this process's row if there is something to say; never raises."""
        self._fresh()
        now = self._clock()
        if now < self._due and (tag == self._told or self._failed):
            return
        try:
            store([report_of_this_process(self._service, self._source, tag, self._settings)])
            if now >= self._prune_due:
                self._prune_due = now + _PRUNE_EVERY * chance.uniform(1, 2)
                prune(time.time())
        except Exception as error:  # noqa: BLE001  # whatever a driver raises: no table, read-only
            if not self._failed:
                logger.info(
                    "which flags this process has cannot be noted in the database: %s", error
                )
            self._failed, self._due = True, now + _PAUSE_AFTER_FAILURE
            return
        self._failed, self._told = False, tag
        self._due = now + HEARTBEAT * chance.uniform(0.8, 1.0)


def store(reports: Iterable[Report]) -> None:
    """Write processes' reports; those that are older than what is there change nothing.

    :raises Exception: the database's.
    """
    from .models import CaptureProcess

    # The last of each process.
    latest = {(report.service, report.process): report for report in reports}
    everything = list(latest.values())
    for start in range(0, len(everything), _CHUNK):
        _store_some(CaptureProcess, everything[start : start + _CHUNK])


def _store_some(model: type, reports: list[Report]) -> None:
    from django.db import router

    rows = model._default_manager.using(router.db_for_write(model))  # type: ignore[attr-defined]
    known = {
        (service, process): (pk, etag, version, settings)
        for pk, service, process, etag, version, settings in rows.filter(
            process__in=[report.process for report in reports]
        ).values_list("pk", "service_name", "process", "flags_etag", "version", "settings")
    }
    unchanged: list[int] = []
    new = []
    for report in reports:
        row = known.get((report.service, report.process))
        seen = moment(report.seen)
        if row is None:
            new.append(
                model(
                    service_name=report.service,
                    process=report.process,
                    host=report.host,
                    pid=report.pid,
                    started_at=moment(report.started),
                    version=report.version,
                    source=report.source,
                    flags_etag=report.etag,
                    since=seen,
                    last_seen=seen,
                    settings=report.settings,
                )
            )
            continue
        pk, etag, version, settings = row
        change = {"version": report.version} if version != report.version else {}
        if report.settings and settings != report.settings:
            change["settings"] = report.settings
        if etag != report.etag:
            change |= {"flags_etag": report.etag, "since": seen}  # type: ignore[dict-item]
        if change:
            # Another publisher may have heard of it later, and written that already.
            rows.filter(pk=pk, last_seen__lt=seen).update(last_seen=seen, **change)
        else:
            unchanged.append(pk)
    if unchanged:
        seen = moment(max(report.seen for report in reports))
        rows.filter(pk__in=unchanged, last_seen__lt=seen).update(last_seen=seen)
    if new and rows.count() < MOST:
        # Two publishers may meet a new process at the same moment.
        rows.bulk_create(new, ignore_conflicts=True)


def prune(now: float) -> int:
    """Forget processes that have been silent for long; return how many.

    :param now: epoch seconds.
    :raises Exception: the database's.
    """
    from django.db import router

    from .models import CaptureProcess

    rows = CaptureProcess.objects.using(router.db_for_write(CaptureProcess))
    limit = moment(now - FORGET)
    return rows.filter(last_seen__lt=limit).delete()[0]
