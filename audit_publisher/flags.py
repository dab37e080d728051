"""What pollers of flags are told, and what they tell: who has taken which flags up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from audit_logging import policy, uptake
from audit_logging.background import Loop
from audit_logging.flags import in_test_run

logger = logging.getLogger(__name__)


class FlagsCache:
    """Services' flags as JSON with their entity tags, so that many pollers are one question.

    A database that fails or hangs costs the pollers of a service one thread: the others have the
    last known answer meanwhile, or are told to come again.

    :param clock: returns seconds, monotonic.
    """

    SECONDS = 1.0
    #: How long a database that failed is left alone.
    PAUSE = 3.0
    #: Names come from whoever asks.
    MOST = 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: service → (good until, document, entity tag).
        self._kept: dict[str, tuple[float, bytes, str]] = {}
        self._asking = threading.Lock()
        self._pause_until = 0.0
        self._asked_at = 0.0

    def get(self, service_name: str) -> tuple[bytes, str]:
        """Return (document, entity tag), a second old at most while the database answers.

        :raises Exception: nothing is known, and the database does not answer.
        """
        kept = self._kept.get(service_name)
        now = self._clock()
        if kept is not None and now < kept[0]:
            return kept[1], kept[2]
        fresh_enough = kept is not None and now < kept[0] + self.SECONDS
        hangs = self._asking.locked() and now - self._asked_at > self.SECONDS
        # Whoever comes while another asks waits for it only where that is soon over.
        patience = 0.0 if fresh_enough or hangs else self.SECONDS
        if not self._asking.acquire(timeout=patience):
            if kept is None:
                raise TimeoutError("the database is slow")
            return kept[1], kept[2]
        try:
            return self._ask(service_name)
        finally:
            self._asking.release()

    def _ask(self, service_name: str) -> tuple[bytes, str]:
        now = self._clock()
        kept = self._kept.get(service_name)
        if kept is not None and now < kept[0]:
            # Somebody else asked while we waited.
            return kept[1], kept[2]
        self._asked_at = now
        try:
            if now < self._pause_until:
                raise ConnectionError("the database did not answer a moment ago")
            document = policy.document(service_name)
        except Exception as error:
            if now >= self._pause_until:
                self._pause_until = self._clock() + self.PAUSE
                logger.warning("The flags of %r cannot be read: %s", service_name, error)
            if kept is None:
                raise
            return kept[1], kept[2]
        self._pause_until = 0.0
        content, etag = msgspec.json.encode(document), policy.etag(document)
        if len(self._kept) >= self.MOST:
            self._kept.clear()
        self._kept[service_name] = (self._clock() + self.SECONDS, content, etag)
        return content, etag

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._pause_until = 0.0


class Board:
    """What processes said when they polled, on its way to the table that admin shows.

    Pollers are never held up: a background thread writes what is new, and now and then that the
    others still live.

    :param clock: returns epoch seconds.
    """

    #: Seconds between two writes.
    EVERY = 1.0
    MOST = 5000

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], uptake.Report] = {}
        #: (service, process) → (entity tag, when it was written).
        self._written: dict[tuple[str, str], tuple[str, float]] = {}
        self._prune_due = clock() + 60.0
        self._failing = False
        self._loop = Loop(self._step, name="audit-uptake")

    def heard(self, service_name: str, tag: str, header: str) -> None:
        """A process polled with this If-None-Match; never raises, never waits for a database."""
        # A proxy that compresses has made the tag a weak one.
        tag = tag.strip().removeprefix("W/")
        report = uptake.from_header(service_name, tag, header, self._clock())
        if report is None:
            return
        key = (service_name, report.process)
        with self._lock:
            waiting = self._pending.get(key)
            if waiting is None and (not self._news(key, report) or len(self._pending) >= self.MOST):
                return
            if waiting is not None and not report.settings:
                # They are told now and then; what was told is not to be lost before it is written.
                report = replace(report, settings=waiting.settings)
            self._pending[key] = report
        if not in_test_run():
            try:
                self._loop.ensure_running()
            except RuntimeError:
                # No thread to be had now; the next poll tries again.
                pass

    def _news(self, key: tuple[str, str], report: uptake.Report) -> bool:
        tag, written = self._written.get(key, (None, 0.0))
        return tag != report.etag or report.seen - written >= uptake.HEARTBEAT

    def flush(self) -> int:
        """Write what is new; return how many processes that were.

        :raises Exception: the database's; what could not be written is told again by the polls.
        """
        with self._lock:
            pending, self._pending = self._pending, {}
        if pending:
            uptake.store(pending.values())
        now = self._clock()
        with self._lock:
            for key, report in pending.items():
                self._written[key] = (report.etag, report.seen)
            if len(self._written) > self.MOST:
                self._written = {
                    key: kept for key, kept in self._written.items() if now - kept[1] < 60
                }
        if now >= self._prune_due:
            self._prune_due = now + 60.0
            uptake.prune(now)
        return len(pending)

    def _step(self) -> float:
        from django.db import close_old_connections

        # A connection that broke must not be used for ever.
        close_old_connections()
        try:
            self.flush()
        except Exception as error:  # noqa: BLE001  # whatever a driver raises
            if not self._failing:
                logger.warning("Who has taken up which flags cannot be noted: %s", error)
            self._failing = True
            return 15.0
        finally:
            close_old_connections()
        self._failing = False
        return self.EVERY


def matches(if_none_match: str, etag: str) -> bool:
    """Whether an If-None-Match names the entity tag: a list, weak tags alike, or ``*``."""
    names = [name.strip().removeprefix("W/") for name in if_none_match.split(",")]
    return "*" in names or etag in names
