"""What each publisher process sees, in a table: regions, breaker, spool, and its last hour.

A thread of its own looks and writes: a database that is down or hangs delays nothing, and costs
the overview alone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from audit_logging import uptake
from audit_logging.background import Loop
from audit_logging.chance import chance
from audit_logging.exceptions import SpoolError
from audit_logging.flags import in_test_run

from .. import metrics
from ..durable import control
from ..durable.spool import REFUSED

if TYPE_CHECKING:
    from ..publish import Publisher

logger = logging.getLogger(__name__)

#: Seconds of silence after which a process is shown as one that may be gone.
STALE = 30.0
#: Seconds of silence after which it is forgotten.
FORGET = 600.0

#: Seconds that a stop waits for the spool and the database.
_FAREWELL = 3.0

#: Seconds between two looks.
_EVERY = 1.0
#: Seconds between two notes: of numbers that changed, and when nothing did.
_NUMBERS_EVERY = 5.0
_HEARTBEAT = 10.0
_PAUSE_AFTER_FAILURE = 15.0
_PRUNE_EVERY = 60.0
_MINUTES = 60
_MOST_TEXT = 300
_MOST_TOPICS = 20

State = dict[str, Any]


def see(publisher: Publisher) -> State:
    """What a publisher sees now, as JSON takes it; reads the spool's file."""
    wanted = control.wishes()
    return {
        "order": list(control.arranged(publisher.regions, wanted)),
        "drained": sorted(wanted.drained),
        "first": wanted.first,
        "regions": {region: _region(publisher, region) for region in publisher.regions},
        "spool": _spool(publisher),
    }


def _region(publisher: Publisher, region: str) -> State:
    seen = publisher.states.get(region)
    return {
        "known": seen is not None,
        "up": bool(seen and seen.up),
        "open": publisher.is_shut(region),
        "error": seen.error[:_MOST_TEXT] if seen else "",
        "missing_topics": list(seen.missing_topics[:_MOST_TOPICS]) if seen else [],
    }


def _spool(publisher: Publisher) -> State:
    queue = publisher.spool.queue
    found: State = {
        "folder": str(queue.path.parent),
        "max_bytes": queue.max_bytes or 0,
        "records": 0,
        "bytes": 0,
        "refused": 0,
        "used_bytes": 0,
        "oldest": None,
        "drain": "empty",
        "problem": "",
        "refuses": "",
    }
    # Looking must not make the file.
    if not queue.path.exists():
        return found
    try:
        for topic in publisher.spool.topics():
            stats = queue.stats(topic)
            found["records"] += stats.records
            found["bytes"] += stats.bytes
            if stats.oldest is not None:
                oldest = stats.oldest / 1_000_000
                found["oldest"] = min(found["oldest"] or oldest, oldest)
        found["refused"] = queue.stats(REFUSED).records
        found["used_bytes"] = queue.used_bytes()
        found["refuses"] = publisher.spool.accepts()[:_MOST_TEXT]
    except SpoolError as error:
        found["problem"] = str(error)[:_MOST_TEXT]
    if found["records"]:
        somewhere = any(
            control.takes(region) and not publisher.is_shut(region) for region in publisher.regions
        )
        found["drain"] = "draining" if somewhere else "waiting"
    return found


class Hour:
    """What this process did, minute by minute, for an hour.

    :param clock: returns epoch seconds.
    """

    COUNTED = ("published", "spooled", "rejected", "drained")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last = self._totals()
        #: [minute, published, spooled, rejected, drained, bytes used in the spool], oldest first.
        self.minutes: list[list[int]] = []

    @staticmethod
    def _totals() -> list[int]:
        counters = (metrics.PUBLISHED, metrics.SPOOLED, metrics.REJECTED, metrics.DRAINED)
        return [
            int(
                sum(
                    sample.value
                    for family in counter.collect()
                    for sample in family.samples
                    if sample.name.endswith("_total")
                )
            )
            for counter in counters
        ]

    def count(self, used_bytes: int) -> None:
        """Add what was done since the last call to the current minute."""
        minute = int(self._clock() // 60)
        totals = self._totals()
        done = [max(0, now - before) for now, before in zip(totals, self._last, strict=True)]
        self._last = totals
        if not self.minutes or self.minutes[-1][0] != minute:
            self.minutes.append([minute, 0, 0, 0, 0, 0])
            del self.minutes[:-_MINUTES]
        latest = self.minutes[-1]
        for index, number in enumerate(done, 1):
            latest[index] += number
        latest[5] = used_bytes


class Reporter:
    """Looks at this process's publisher and writes what it sees, on a thread of its own.

    The upkeep of the publisher may be busy for long, draining or waiting for a region; that is
    when people want to see it.

    :param clock: returns seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loop = Loop(self._step, name="audit publisher report")
        self._pid = 0
        self._publisher: Publisher | None = None
        self._upkeep_at = 0.0
        self._fresh()

    def _fresh(self) -> None:
        # A process that was forked has told nothing yet.
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._told: State | None = None
        self._told_at = float("-inf")
        self._failed = False
        self._hour: Hour | None = None
        self._prune_due = self._clock() + _PRUNE_EVERY * chance.random()

    def tell(self, publisher: Publisher) -> None:
        """Report on `publisher` from now on; called by its upkeep. Never raises, never waits."""
        self._publisher = publisher
        self._upkeep_at = self._clock()
        if not in_test_run():
            try:
                self._loop.ensure_running()
            except RuntimeError:
                # No thread to be had now; the next step tries again.
                pass

    def _news(self, state: State) -> bool:
        """Whether people should see this at once."""
        told = self._told
        return (
            told is None
            or any(told[name] != state[name] for name in state if name != "spool")
            or any(told["spool"][name] != state["spool"][name] for name in ("drain", "problem"))
            or bool(told["spool"]["refuses"]) != bool(state["spool"]["refuses"])
        )

    def flush(self) -> bool:
        """Look, and write what is seen, if it is time to; return whether anything was written.

        :raises Exception: the spool's or the database's.
        """
        self._fresh()
        if self._publisher is None:
            return False
        state = see(self._publisher)
        state["upkeep_late"] = self._clock() - self._upkeep_at > STALE
        if self._hour is None:
            self._hour = Hour()
        self._hour.count(state["spool"]["used_bytes"])
        since = self._clock() - self._told_at
        quiet = state == self._told and since < _HEARTBEAT
        if quiet or (since < _NUMBERS_EVERY and not self._news(state)):
            return False
        store(state, self._hour.minutes)
        self._told, self._told_at = state, self._clock()
        if self._clock() >= self._prune_due:
            self._prune_due = self._clock() + _PRUNE_EVERY * chance.uniform(1, 2)
            prune()
        return True

    def leave(self, patience: float = _FAREWELL) -> None:
        """This process ends well: have pages show it no longer. Never raises.

        Where its spool holds something the row stays, and becomes a silent one: nobody else may
        tell of those records.

        :param patience: seconds to wait, twice at most; a disk or database that hangs holds up no
            stop.
        """
        if not self._loop.stop(patience):
            return
        if self._publisher is None or self._told is None or self._pid != os.getpid():
            return
        farewell = threading.Thread(
            target=_farewell, args=(self._publisher,), name="audit farewell", daemon=True
        )
        try:
            farewell.start()
        except RuntimeError:
            # No thread to be had: it is forgotten later.
            return
        farewell.join(patience)

    def _step(self) -> float:
        from django.db import close_old_connections

        # A connection that broke must not be used for ever.
        close_old_connections()
        try:
            self.flush()
        except Exception as error:  # noqa: BLE001  # whatever a driver raises: no table, read-only
            if not self._failed:
                logger.warning("What this publisher sees cannot be noted: %s", error)
            self._failed = True
            return _PAUSE_AFTER_FAILURE
        finally:
            close_old_connections()
        self._failed = False
        return _EVERY


def store(state: State, minutes: list[list[int]]) -> None:
    """Write this process's row.

    :raises Exception: the database's.
    """
    from django.db import router

    from ..models import PublisherProcess

    me = uptake.report_of_this_process("", "", "")
    rows = PublisherProcess.objects.using(router.db_for_write(PublisherProcess))
    values = {"last_seen": uptake.moment(me.seen), "state": state, "minutes": minutes}
    if not rows.filter(process=me.process).update(**values):
        row = PublisherProcess(
            process=me.process,
            host=me.host,
            pid=me.pid,
            started_at=uptake.moment(me.started),
            version=me.version,
            **values,
        )
        rows.bulk_create([row], ignore_conflicts=True)


def forget() -> int:
    """Remove this process's row; return how many there were.

    :raises Exception: the database's.
    """
    from django.db import router

    from ..models import PublisherProcess

    me = uptake.report_of_this_process("", "", "")
    rows = PublisherProcess.objects.using(router.db_for_write(PublisherProcess))
    return rows.filter(process=me.process).delete()[0]


def _farewell(publisher: Publisher) -> None:
    from django.db import connections

    try:
        # What was told last may be seconds old.
        spool = _spool(publisher)
        if not (spool["records"] or spool["refused"] or spool["problem"]):
            forget()
    except Exception as error:  # noqa: BLE001  # whatever a driver raises; it is forgotten later
        logger.info("This process cannot be taken off the page of regions: %s", error)
    finally:
        # Those of this thread.
        connections.close_all()


def prune(now: float | None = None) -> int:
    """Forget processes that have been silent for long; return how many.

    :param now: epoch seconds.
    :raises Exception: the database's.
    """
    from django.db import router

    from ..models import PublisherProcess

    rows = PublisherProcess.objects.using(router.db_for_write(PublisherProcess))
    limit = uptake.moment(time.time() if now is None else now) - timedelta(seconds=FORGET)
    return rows.filter(last_seen__lt=limit).delete()[0]


reporter = Reporter()
