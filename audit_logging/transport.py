"""Transport: from the buffer to Celery, in the background; to the local spool when that fails.

Two threads serve one process's buffer. The *sender* builds events and sends them to the broker;
where the broker fails it spools them, and when the broker is back it replays the spool. The
*overflow* thread takes over when the sender is held up (a broker that does not answer can hold it
for seconds) and the buffer is nearly full: it builds events and spools them.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence

from . import metrics
from .background import Loop
from .breaker import Breaker
from .buffer import Buffer
from .capture import Exchange
from .conf import LoggingSettings, conf
from .event import EventBuilder
from .exceptions import SpoolError, SpoolFull
from .spool import DurableQueue, Record

logger = logging.getLogger(__name__)

#: The stream of the capture spool: one record is one batch of events, as it goes to Celery.
STREAM = "capture"
EVENTS_HEADER = "events"

_LINGER = 0.02
_IDLE = 1.0
_HELD_UP = 0.05
_WARN_EVERY = 10.0

#: Sends one batch, lines of JSON, to the broker; raises when it is not accepted.
Send = Callable[[str, int], None]


class Transport:
    """One process's way from captured exchanges to the broker.

    :param send: hands a batch to the broker; raises on failure.
    :param options: sizes and bounds.
    """

    def __init__(self, send: Send, options: LoggingSettings = conf) -> None:
        self._send = send
        self._options = options
        self._builder = EventBuilder(options)
        self.spool = DurableQueue(
            options.DATA_DIR / "capture-spool.sqlite3", max_bytes=options.SPOOL_MAX_BYTES
        )
        self._sender = Loop(self._send_step, name="audit-sender")
        self._overflow = Loop(self._overflow_step, name="audit-overflow")
        self._warned: dict[str, float] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._fresh()
        _instances.add(self)
        atexit.register(self.flush)

    def _fresh(self) -> None:
        # A forked child starts empty: what the parent had buffered is the parent's to send.
        self.buffer = Buffer(
            self._options.BUFFER_SIZE,
            self._options.BUFFER_BYTES,
            overflow=self._options.OVERFLOW == "spool",
        )
        self.breaker = Breaker()
        self._epoch = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._sending_since: float | None = None
        self._replay_at = 0.0
        self._idle = True
        self._gathering = False
        self._refused: Counter[str] = Counter()
        self._build_lock = threading.Lock()
        # Held from taking events out of the buffer until each has a place: see flush().
        self._sender_hands = threading.Lock()
        self._overflow_hands = threading.Lock()
        self._in_hand: deque[tuple[str, int]] = deque()
        self._pid = os.getpid()

    # -- request threads ------------------------------------------------------------------

    def submit(self, exchange: Exchange) -> None:
        """Take an exchange; returns at once, whatever state everything else is in."""
        if self._pid != os.getpid():
            # uWSGI forks without telling. A lock of this process's own: the first thread makes
            # the new buffer, and no second one takes it away again.
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                if self._pid != os.getpid():
                    self._fresh()
        exchange.producer_epoch = self._epoch
        exchange.seq = next(self._numbers)
        refused = self.buffer.put(exchange)
        if refused is not None:
            metrics.rejected.inc(reason=refused)
            self._refused[refused] += 1
        self._sender.ensure_running()
        if refused is not None or self.buffer.nearly_full:
            self._sender.wake()
            self._overflow.ensure_running()
            self._overflow.wake()
        elif self._idle:
            # One request in many wakes the sender: it then gathers what comes, and its work does
            # not fall into the request that woke it.
            self._idle = False
            self._sender.wake()

    # -- background threads ---------------------------------------------------------------

    def _send_step(self) -> float:
        if not self._gathering and len(self.buffer) and not self.buffer.nearly_full:
            self._gathering = True
            return _LINGER
        self._gathering = False
        with self._sender_hands:
            batch = self.buffer.take(self._options.BATCH_SIZE)
            metrics.buffer_depth.set(len(self.buffer))
            self._in_hand.extend(self._encode(batch))
            while self._in_hand:
                self._dispatch(*self._in_hand[0])
                self._in_hand.popleft()
        if batch and self.buffer.nearly_full:
            return 0.0
        # Also while there is traffic, which may never end.
        pause = self._replay()
        if batch:
            return min(pause, _LINGER)
        self._idle = True
        # One that came since, and saw no need to wake anybody.
        return 0.0 if len(self.buffer) else pause

    def _overflow_step(self) -> float:
        since = self._sending_since
        nearly_full = self.buffer.nearly_full
        # Here and not where it happens: writing to a log is I/O.
        if self._refused:
            refused, self._refused = self._refused, Counter()
            said = ", ".join(f"{count} {reason}" for reason, count in list(refused.items()))
            self._warn("events are LOST: %s", said)
        if not nearly_full:
            return _IDLE * 60
        self._warn("the buffer is 80 %% full: %s events", len(self.buffer))
        if since is None or time.monotonic() - since < _HELD_UP:
            # The sender is at work: it empties the buffer itself.
            return _HELD_UP / 2
        with self._overflow_hands:
            for payload, count in self._encode(self.buffer.take(self._options.BATCH_SIZE)):
                self._keep(payload, count, "overflow")
        return 0.0

    def _encode(self, batch: Sequence[Exchange]) -> list[tuple[str, int]]:
        """Return `batch` as payloads of JSON lines, each with its number of events."""
        payloads: list[tuple[str, int]] = []
        lines: list[str] = []
        size = 0
        # One builder, two threads.
        with self._build_lock:
            for exchange in batch:
                try:
                    line = self._builder.encode(self._builder.build(exchange))
                except Exception:
                    metrics.rejected.inc(reason="build_failed")
                    logger.exception("an event could not be built and is lost")
                    continue
                if lines and size + len(line) > self._options.BATCH_BYTES:
                    payloads.append(("\n".join(lines), len(lines)))
                    lines, size = [], 0
                lines.append(line)
                size += len(line)
        if lines:
            payloads.append(("\n".join(lines), len(lines)))
        return payloads

    def _dispatch(self, payload: str, count: int) -> None:
        if not self.breaker.allows:
            self._keep(payload, count, "broker_down")
        elif self._try_send(payload, count):
            metrics.queued.inc(count)
        else:
            self._keep(payload, count, "broker_down")

    def _try_send(self, payload: str, count: int) -> bool:
        self._sending_since = time.monotonic()
        try:
            self._send(payload, count)
        except Exception as error:
            self.breaker.failed()
            self._warn("the Celery broker does not take events; they are spooled: %s", error)
            return False
        finally:
            self._sending_since = None
        self.breaker.succeeded()
        return True

    def _keep(self, payload: str, count: int, reason: str) -> None:
        if self._options.OVERFLOW == "drop":
            metrics.rejected.inc(count, reason="overflow_drop")
            return
        record = Record(payload.encode(), headers=((EVENTS_HEADER, str(count).encode()),))
        try:
            self.spool.append(STREAM, [record])
        except SpoolError as error:
            lost = "spool_full" if isinstance(error, SpoolFull) else "spool_unavailable"
            metrics.rejected.inc(count, reason=lost)
            self._warn("%s events are LOST: %s", count, error)
            return
        metrics.spooled.inc(count, reason=reason)
        self._measure()

    def _measure(self) -> None:
        try:
            metrics.spool_bytes.set(self.spool.used_bytes(), spool="capture")
        except SpoolError:
            # The next write says what is wrong with it.
            pass

    def _replay(self) -> float:
        """Send what lies in the spool; return how long to wait for more to do."""
        now = time.monotonic()
        if now < self._replay_at:
            return min(_IDLE, self._replay_at - now)
        if not self.breaker.allows:
            return _IDLE
        # Nothing was ever spooled on this host: leave the disk alone.
        if not self.spool.path.exists():
            self._replay_at = now + _IDLE
            return _IDLE
        try:
            records = self.spool.lease(
                STREAM, seconds=60.0, owner=f"{os.getpid()}", max_records=1, max_bytes=64 << 20
            )
            if not records:
                self._replay_at = now + _IDLE
                return _IDLE
            record = records[0]
            count = int(dict(record.headers).get(EVENTS_HEADER) or b"1")
            if not self._try_send(record.value.decode(), count):
                self.spool.release(STREAM, records)
                return _IDLE
            self.spool.settle(STREAM, records)
        except SpoolError as error:
            # Sent and not settled: it is sent again later, and the lake has each event once.
            self._warn("the spool cannot be replayed: %s", error)
            self._replay_at = now + _IDLE
            return _IDLE
        metrics.replayed.inc(count, spool="capture")
        self._measure()
        return 0.0

    # -- the end --------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Empty the buffer within `timeout` seconds (SHUTDOWN_SECONDS); return whether it is.

        The sender and the overflow thread may have events in hand, which would die with the
        process: they are waited for, and what the sender cannot get rid of goes to the spool.
        """
        if self._pid != os.getpid():
            return True
        limit = self._options.SHUTDOWN_SECONDS if timeout is None else timeout
        start = time.monotonic()
        # Half of the time for the broker; the rest is the spool's, which is quick.
        sender = self._sender_hands.acquire(timeout=limit / 2)
        overflow = self._overflow_hands.acquire(timeout=limit / 2)
        try:
            if not sender:
                # It hangs in the broker. If that takes the batch after all, it is there twice,
                # and once in the lake.
                for payload, count in list(self._in_hand):
                    self._keep(payload, count, "broker_down")
            while len(self.buffer) and (spent := time.monotonic() - start) < limit:
                for payload, count in self._encode(self.buffer.take(self._options.BATCH_SIZE)):
                    if sender and spent < limit / 2:
                        self._dispatch(payload, count)
                    else:
                        self._keep(payload, count, "broker_down")
        finally:
            if sender:
                self._sender_hands.release()
            if overflow:
                self._overflow_hands.release()
        left = self.buffer.take(len(self.buffer))
        if left:
            metrics.rejected.inc(len(left), reason="shutdown")
            logger.warning("%s events are LOST: no time left at exit", len(left))
        return not left

    def close(self) -> None:
        """Flush and end the threads; for tests and for a process that goes on without us."""
        self._sender.stop(self._options.SHUTDOWN_SECONDS)
        self._overflow.stop(self._options.SHUTDOWN_SECONDS)
        self.flush()
        atexit.unregister(self.flush)
        self.spool.close()

    def _warn(self, message: str, *args: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(message, -_WARN_EVERY) >= _WARN_EVERY:
            self._warned[message] = now
            logger.warning(message, *args)


_instances: weakref.WeakSet[Transport] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for transport in list(_instances):
        transport._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


_transport: Transport | None = None
_transport_lock = threading.Lock()


def get_transport() -> Transport:
    """Return this process's transport, made on first use."""
    global _transport
    if _transport is None:
        with _transport_lock:
            if _transport is None:
                from .celery import send_batch

                _transport = Transport(send_batch)
    return _transport


def set_transport(transport: Transport | None) -> Transport | None:
    """Replace this process's transport; return the one before. For tests."""
    global _transport
    before, _transport = _transport, transport
    return before
