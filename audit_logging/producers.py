"""Producers: each capture process numbers its events and reports how many numbers it has given.

A number that is not in the lake is an event that was lost, or is still on its way. What tells the
end of the numbers is a *producer record*: a heartbeat now and then (``open``), one at a graceful
end (``closed``), and one that a process of the same host sends on behalf of a killed one
(``lost``), from the tally that it left behind. Records travel in batches, as events do.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

from . import metrics
from .conf import LoggingSettings, conf
from .producer_files import (
    Abandoned,
    Folder,
    Tally,
    abandoned,
    boot_id,
    group_of,
    host_name,
    in_memory,
    on_disk,
)

State = Literal["open", "closed", "lost"]

#: What the field ``record`` says in a producer record; events have no such field.
RECORD = "producer"

#: Seconds after which lines that found no place are offered again.
_OFFER_AGAIN = 5.0
#: Seconds between two writes of a count that is not mapped.
_STORE_EVERY = 1.0
#: Times that a tally is made anew, if somebody removes it.
_MOST_FORMER = 20
#: Dead processes reported at once.
_AT_ONCE = 50

_instances: weakref.WeakSet[Producer] = weakref.WeakSet()


class Producer:
    """The numbers of one process. A forked child makes a new one, with an epoch of its own.

    :func:`number` is for request threads; everything else is for the background, does I/O, and
    may raise.

    :param clock: returns epoch seconds.
    :ivar epoch: what tells this process's numbers from all others'.
    """

    def __init__(
        self, options: LoggingSettings = conf, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.epoch = uuid.uuid4().hex
        self._options = options
        self._clock = clock
        self._count = 0
        #: The count in a memory-mapped file; None until there is one.
        self._page: memoryview | None = None
        self._pid = os.getpid()
        self._started_at = clock()
        self._before = _totals()
        self._lock = threading.Lock()
        self._folders: list[Folder] = []
        self._tally: Tally | None = None
        self._former: list[Tally] = []
        self._reported: int | None = None
        self._ending = False
        self._due_at: dict[str, float] = {}
        self._stored: dict[str, Any] | None = None
        #: Lines offered and not yet placed, and what is to be done when they are.
        self._offered: dict[str, Callable[[], None]] = {}
        for other in list(_instances):
            # A fork that Python was not told of, by uWSGI.
            if other._pid != self._pid:
                other._let_go()
        _instances.add(self)

    # -- request threads ------------------------------------------------------------------

    def number(self) -> int:
        """Return the next number, from 0; the caller holds a lock.

        Each captured exchange takes one, also one that is then dropped: a missing number with a
        counted reason.
        """
        seq = self._count
        self._count = count = seq + 1
        page = self._page
        if page is not None:
            page[0] = count
        return seq

    # -- background -----------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many numbers were given."""
        return self._count

    @property
    def attached(self) -> bool:
        """Whether there is a file from which others learn the count if this process is killed."""
        return self._tally is not None

    def attach(self) -> None:
        """Make this process's tally; nothing to do when there is one.

        :raises OSError: it cannot be made anywhere; heartbeats are sent without it.
        """
        with self._lock:
            if self._tally is None and self._pid == os.getpid():
                self._attach()

    def due(self, now: float) -> list[str]:
        """Return the lines to be put into a batch now, this process's and dead ones'.

        A line is offered again until :meth:`settled` has it.

        :param now: seconds, of any clock that goes on.
        """
        with self._lock:
            if self._pid != os.getpid() or not self._options.SERVICE_NAME:
                return []
            if self._is_due("store", now, _STORE_EVERY):
                if self._tally is not None and self._tally.gone:
                    self._attach_again()
                self._store()
            # Not again before the lines just offered can have found a place.
            if self._offered and not self._is_due("again", now, _OFFER_AGAIN):
                return []
            every = self._options.HEARTBEAT_SECONDS
            news = self._count != (self._reported or 0) and not self._ending
            if self._is_due("report", now, every, when=news):
                self._offer_own("open")
                if self._tally is not None:
                    self._tally.touch()
            if self._is_due("scan", now, every):
                self._offer_abandoned()
            self._due_at["again"] = now + _OFFER_AGAIN
            return list(self._offered)

    def close(self) -> list[str]:
        """Return the lines for the end, for a process that has counted all it dropped."""
        with self._lock:
            if self._pid != os.getpid() or not self._options.SERVICE_NAME:
                return []
            if self._count == 0 and self._reported is None:
                self._ending = True
                self._finished()
            elif not self._ending or self._count != self._reported:
                self._ending = True
                self._store()
                self._offer_own("closed")
            return list(self._offered)

    def settled(self, lines: Iterable[str]) -> None:
        """These lines are in a durable place."""
        with self._lock:
            for line in lines:
                done = self._offered.pop(line, None)
                if done is not None:
                    done()

    def record(self, state: State, now: float) -> str:
        """One line that says how many numbers this process has given.

        :param now: epoch seconds.
        """
        identity = {
            "service_name": self._options.SERVICE_NAME,
            "producer_epoch": self.epoch,
            "host": host_name(),
            "pid": self._pid,
            "started_at": self._started_at,
        }
        return _line(identity, self._count, state, now, self._totals())

    # -- how ------------------------------------------------------------------------------

    def _attach(self) -> None:
        identity = {
            "service_name": self._options.SERVICE_NAME,
            "producer_epoch": self.epoch,
            "host": host_name(),
            "boot": boot_id(),
            "pid": self._pid,
            "started_at": self._started_at,
        }
        name = f"{self._group()}-{self.epoch}"
        self._folders = []
        folder = in_memory()
        if folder is not None:
            self._folders.append(folder)
            # Full: it is often small in a container.
            with suppress(OSError):
                self._tally = Tally(folder, name, identity)
        disk = on_disk(self._options.DATA_DIR, make=self._tally is None)
        if disk is not None:
            self._folders.append(disk)
            if self._tally is None:
                self._tally = Tally(disk, name, identity)
        if self._tally is None:
            return
        self._page = page = self._tally.page
        # Numbers are given meanwhile; what is stored last must be the newest.
        while page is not None and page[0] != self._count:
            page[0] = self._count
        self._tally.store(self._count)

    def _attach_again(self) -> None:
        """Make the tally anew that somebody has removed."""
        if self._tally is None or len(self._former) >= _MOST_FORMER or self._ending:
            return
        # Kept, as a request may be storing into its page at this moment.
        self._former.append(self._tally)
        self._tally = self._stored = None
        self._attach()

    def _is_due(self, what: str, now: float, every: float, *, when: bool = True) -> bool:
        at = self._due_at.get(what, now)
        # The clock may have been set back.
        if not when or not (now >= at or at - now > every):
            return False
        self._due_at[what] = now + every
        return True

    def _totals(self) -> dict[str, dict[str, int]]:
        """What this process has dropped and left out, by reason."""
        return {
            kind: {
                reason: more
                for reason, count in reasons.items()
                if (more := count - self._before[kind].get(reason, 0)) > 0
            }
            for kind, reasons in _totals().items()
        }

    def _store(self) -> None:
        if self._tally is None:
            return
        self._tally.store(self._count)
        totals = self._totals()
        if totals != self._stored:
            self._tally.store_totals(totals)
            self._stored = totals

    def _offer_own(self, state: State) -> None:
        count = self._count
        line = self.record(state, self._clock())
        # An older one that found no place says less than this one.
        self._offered = {
            line: done for line, done in self._offered.items() if not isinstance(done, _Own)
        }
        self._offered[line] = _Own(self, state, count)
        self._reported = count

    def _offer_abandoned(self) -> None:
        for folder in self._folders:
            for found in abandoned(folder, self._group(), _AT_ONCE - len(self._offered)):
                if not found.count:
                    found.remove()
                else:
                    self._offered[_lost(found, self._clock())] = found.remove

    def _group(self) -> str:
        return group_of(self._options.DATA_DIR, self._options.SERVICE_NAME)

    def _finished(self) -> None:
        if self._tally is not None:
            self._tally.remove()

    def _let_go(self) -> None:
        """In a forked child: leave to the parent what is the parent's."""
        self._page = None
        tally, self._tally = self._tally, None
        for each in (*self._former, tally):
            if each is not None:
                each.let_go()
        self._former = []
        for done in self._offered.values():
            held = getattr(done, "__self__", None)
            if isinstance(held, Abandoned):
                held.let_go()
        self._offered = {}


class _Own:
    """What is to be done when a record of the process's own is placed."""

    def __init__(self, producer: Producer, state: State, count: int) -> None:
        self._producer, self._state, self._count = producer, state, count

    def __call__(self) -> None:
        if self._state == "closed":
            self._producer._finished()


def _totals() -> dict[str, dict[str, int]]:
    return {
        kind: {key[0]: int(value) for key, value in metric.values().items()}
        for kind, metric in (("dropped", metrics.rejected), ("skipped", metrics.skipped))
    }


def _lost(found: Abandoned, now: float) -> str:
    return _line(found.identity, found.count, "lost", now, found.totals)


def _line(
    identity: dict[str, Any], count: int, state: State, now: float, totals: dict[str, Any]
) -> str:
    fields = {
        # First, as batch.NO_EVENT has it.
        "record": RECORD,
        "request_id": str(uuid.uuid4()),
        "service_name": identity.get("service_name"),
        "producer_epoch": identity.get("producer_epoch"),
        "seq": count,
        "state": state,
        "host": identity.get("host"),
        "pid": identity.get("pid"),
        "started_at": identity.get("started_at"),
        "at": now,
        "dropped": totals.get("dropped") or {},
        "skipped": totals.get("skipped") or {},
    }
    return json.dumps(fields, separators=(",", ":"))


def _after_fork_in_child() -> None:
    for producer in list(_instances):
        if producer._pid != os.getpid():
            producer._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
