"""Transport: from the buffer to the broker, in the background; to the local spool when that fails.

Two threads serve one process's buffer. The *sender* builds events and sends them to the broker;
where the broker fails it spools them, and when the broker is back it replays the spool. The
*overflow* thread takes over when the sender is held up (a broker that does not answer can hold it
for seconds) and the buffer is nearly full: it builds events and spools them, if there is a spool.

Both share the interpreter with the service, and whoever runs Python code holds it: up to 5 ms
against a request that wants it back. So they work in short slices with naps between (see
:class:`Slices`), and leave the long parts to code that lets go of it: compression, disk, network.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import checks, metrics, tracing
from .background import Loop
from .batch import pack
from .breaker import Breaker
from .buffer import Buffer, Hand
from .capture import Exchange
from .conf import LoggingSettings, conf
from .event import EventBuilder, complete, is_incomplete
from .flags import in_test_run
from .outbox import IDLE, STREAM, Outbox, Outcome, Send
from .producers import Producer
from .remote_builder import Load, RemoteBuilder, Room

__all__ = ["STREAM", "Send", "Transport", "get_transport", "set_transport"]

logger = logging.getLogger(__name__)

#: Seconds after which others help a sender that waits: for the broker, and for its builder process.
_HELD_UP = 0.05
_BUILDING = 2.0
#: Seconds: how long a slice of work may hold the interpreter, with all the time in the world and
#: with hardly any, and how long it is then left alone. A busy service gives it away every 5 ms.
_SLICE = 0.0001
_LONGEST_SLICE = 0.001
_NAP = 0.00005
#: Seconds between looks whether a builder process is there by now.
_SOON = 0.02
#: Bytes of exchanges that the builder process gets at once, beside the first.
_FRAME_BYTES = 4 << 20

#: Of so many requests one tells what the audit took of its time.
_OBSERVED = 64

Place = Callable[[bytes, int], Outcome]


def _complete(exchange: Exchange) -> None:
    if not is_incomplete(exchange):
        return
    before = {connection.alias for connection in _open_connections()}
    complete(exchange)
    # The service's code ran on a thread that nobody else closes connections of.
    for connection in _open_connections():
        if connection.alias not in before:
            # An event is not lost for that.
            with suppress(Exception):
                connection.close()


def _open_connections() -> list[BaseDatabaseWrapper]:
    """This thread's; there are some already where a request thread flushes."""
    return [one for one in connections.all(initialized_only=True) if one.connection is not None]


class Slices:
    """Breaks long work into slices; called by the work at every point where it could pause.

    :param pressure: says how much the work is in a hurry: from a half on the slices grow with it,
        and from 1 on naps cannot be afforded.
    :param seconds: how long a slice is without any hurry.
    """

    def __init__(self, pressure: Callable[[], float], seconds: float = _SLICE) -> None:
        self._pressure = pressure
        self._shortest = self._length = seconds
        self._began = time.perf_counter()

    def __call__(self) -> None:
        """Nap if the slice is over. A nap and not a mere release of the interpreter, which whoever
        releases it takes again before the one that waits is awake."""
        if time.perf_counter() - self._began < self._length:
            return
        pressure = self._pressure()
        if pressure < 1:
            time.sleep(_NAP)
        stretch = max(0.0, 2 * pressure - 1)
        self._length = self._shortest + (_LONGEST_SLICE - self._shortest) * stretch
        self._began = time.perf_counter()


def show_buffer(buffer: Buffer) -> None:
    """Set the gauges of a buffer."""
    metrics.buffer_depth.set(len(buffer))
    metrics.buffer_fill.set(max(len(buffer) / buffer.max_events, buffer.bytes / buffer.max_bytes))


class Transport:
    """One process's way from captured exchanges to the broker.

    :param send: hands a batch to the broker; raises on failure.
    :param options: sizes and bounds.
    :param beside: whether a builder process may send as well as `send` does.
    """

    def __init__(
        self, send: Send, options: LoggingSettings = conf, *, beside: bool = False
    ) -> None:
        self._options = options
        self._beside = beside
        self.outbox = Outbox(send, options)
        self.spool = self.outbox.spool
        self._sender = Loop(self._send_step, name="audit-sender")
        self._overflow = Loop(self._overflow_step, name="audit-overflow")
        self._remote: RemoteBuilder | None = None
        self._locks: dict[int, threading.Lock] = {}
        self._fresh()
        _instances.add(self)
        atexit.register(self.shutdown)

    def _fresh(self) -> None:
        # A forked child starts empty: what the parent had buffered is the parent's to send.
        self.buffer = Buffer(
            self._options.BUFFER_SIZE,
            self._options.BUFFER_BYTES,
            overflow=self._options.OVERFLOW == "spool",
        )
        self.outbox.fresh()
        self.producer = Producer(self._options)
        if self._remote is not None:
            self._remote.let_go()
            self._remote = None
        if self._options.BUILD_IN == "process":
            self._remote = RemoteBuilder(self._options, sends=self._beside)
        self._load = Load()
        self._room = Room()
        #: Whether the builder process may send, by what came of it while the broker was there.
        self._beside_breaker = Breaker(first=30.0, longest=600.0)
        self._ended = False
        self._idle = True
        self._gathering = False
        self._flushing = False
        #: Whether both threads were woken for a buffer that is nearly full.
        self._alarmed = False
        self._attached = False
        self._refused: Counter[str] = Counter()
        self._sender_hand = Hand()
        self._overflow_hand = Hand()
        #: Since when (monotonic) the builder process has been at it.
        self._building_since: float | None = None
        self._pid = os.getpid()

    # -- request threads ------------------------------------------------------------------

    def submit(self, exchange: Exchange) -> None:
        """Take an exchange; returns at once, whatever state everything else is in."""
        pid = os.getpid()
        if self._pid != pid:
            # uWSGI forks without telling. A lock of this process's own: the first thread makes
            # the new buffer, and no second one takes it away again.
            with self._locks.setdefault(pid, threading.Lock()):
                if self._pid != pid:
                    self._fresh()
        producer = self.producer
        exchange.producer_epoch = producer.epoch
        refused = self.buffer.put(exchange, producer.number)
        if refused is not None:
            metrics.rejected.inc(reason=refused)
            self._refused[refused] += 1
        if refused is not None or self.buffer.nearly_full:
            if not self._alarmed:
                # Once: woken by each request they would be in the way of all of them.
                self._sender.ensure_running()
                self._overflow.ensure_running()
                self._alarmed = True
                self._sender.wake()
                self._overflow.wake()
        elif self._idle:
            # One request in many wakes the sender: it then gathers what comes, and its work does
            # not fall into the request that woke it.
            self._sender.ensure_running()
            self._idle = False
            self._sender.wake()

    # -- background threads ---------------------------------------------------------------

    def _send_step(self) -> float:
        linger = self._options.LINGER_SECONDS
        # Before the first batch, which may hang at the broker: a kill then loses what it holds.
        self._attach()
        if not self._gathering and len(self.buffer) and not self.buffer.nearly_full:
            self._gathering = True
            return linger
        self._gathering = False
        # Before the work, which a burst makes long.
        self._choose_builder()
        hand = self._sender_hand
        with hand.at_work:
            show_buffer(self.buffer)
            # What an error left in the hand goes first: the bound is the buffer's.
            taken = len(hand) or hand.take(self.buffer, self._options.BATCH_SIZE)
            with tracing.span("batch", events=taken) if taken else nullcontext():
                self._work_off(hand, self.outbox.dispatch)
        # Also when it never rests: nothing else tells how far its numbers have come.
        self._report()
        if taken and self.buffer.nearly_full:
            return 0.0
        # Also while there is traffic, which may never end.
        pause = self.outbox.replay()
        if taken:
            return min(pause, linger)
        self._idle = True
        # One that came since, and saw no need to wake anybody.
        return linger if len(self.buffer) else pause

    def _overflow_step(self) -> float:
        since = self.outbox.sending_since
        # Before the look: whoever fills the buffer after it wakes this thread again.
        self._alarmed = False
        nearly_full = self.buffer.nearly_full
        show_buffer(self.buffer)
        # Here and not where it happens: writing to a log is I/O.
        if self._refused:
            refused, self._refused = self._refused, Counter()
            said = ", ".join(f"{count} {reason}" for reason, count in list(refused.items()))
            if not self.outbox.warn("events are LOST: %s", said):
                # Kept back for now: the next line gives the sum since the last.
                self._refused.update(refused)
        if not nearly_full:
            return IDLE * 60
        held_up = since is not None and time.monotonic() - since >= _HELD_UP
        building = self._building_since
        if building is not None:
            # It has many at once, and its time: help would be in the way of the requests.
            patience = _HELD_UP if self.buffer.pressure >= 1 else _BUILDING
            held_up = held_up or time.monotonic() - building >= patience
        if held_up or self.buffer.pressure >= 1:
            self.outbox.warn("the buffer is 80 %% full: %s events", len(self.buffer))
        if not held_up or not self.buffer.overflow:
            # The sender is at work: it empties the buffer itself.
            return 2 * _HELD_UP
        hand = self._overflow_hand
        with hand.at_work:
            taken = len(hand) or hand.take(self.buffer, self._options.BATCH_SIZE)
            self._work_off(hand, partial(self.outbox.keep, reason="overflow"))
        return 0.0 if taken else 2 * _HELD_UP

    def _work_off(self, hand: Hand, place: Place, until: float | None = None) -> None:
        """Bring what is in `hand` to a place, batch by batch; begin no event after `until`."""
        in_hurry = until is not None
        breathe = Slices(lambda: 1 if in_hurry else self.buffer.pressure)
        # Made here, as two threads must not share one; it is light.
        builder = EventBuilder(self._options, breathe)
        while True:
            remote = self._remote if hand is self._sender_hand else None
            there = remote is not None and remote.ready
            if (
                remote is not None
                and remote.starting
                and not in_hurry
                and self._has_time
                and len(hand)
            ):
                # It builds without being in the way of the requests, and will be there soon.
                time.sleep(_SOON)
                continue
            group = hand.next(self._options.BATCH_SIZE, _FRAME_BYTES) if there else hand.next()
            if not group or (until is not None and time.monotonic() >= until):
                break
            for exchange in group:
                if not exchange.seq % _OBSERVED:
                    metrics.added_seconds.observe(exchange.added)
            if remote is not None and there:
                # What was built here before it goes first.
                self._seal(hand)
                if self._build_remotely(remote, hand, group, place):
                    continue
            for exchange in group:
                if until is not None and time.monotonic() >= until:
                    break
                breathe()
                if not self._build_here(builder, hand, exchange, place):
                    break
        self._seal(hand)
        self._place(hand, place)

    def _build_here(
        self, builder: EventBuilder, hand: Hand, exchange: Exchange, place: Place
    ) -> bool:
        """Build an event; return whether it was still the hand's."""
        try:
            _complete(exchange)
            line = builder.encode(builder.build(exchange))
        except Exception:
            logger.exception("an event could not be built and is lost")
            ours = hand.encoded(exchange, None)
            if ours:
                metrics.rejected.inc(reason="build_failed")
            return ours
        size = len(line) if line.isascii() else len(line.encode())
        if hand.size and hand.size + size >= self._options.BATCH_BYTES:
            self._seal(hand)
            self._place(hand, place)
        # Not ours any more: flush() has it, and its line would be a second event.
        return hand.encoded(exchange, line, size + 1)

    @property
    def _has_time(self) -> bool:
        return not self._flushing and self.buffer.pressure < 0.5

    def _choose_builder(self) -> None:
        """With BUILD_IN = "auto": a process for the building as long as there is much of it."""
        if self._options.BUILD_IN != "auto" or self._ended or in_test_run():
            return
        if self._remote is None:
            # Heavy, or a burst: what waits is more than one round of the sender takes.
            burst = self.buffer.max_events * (2 if self.buffer.overflow else 0.8)
            heavy = self._load.heavy() or len(self.buffer) >= burst
            if heavy and self._room.there():
                logger.info("building events takes its share of this process: a process is started")
                self._remote = remote = RemoteBuilder(self._options, sends=self._beside)
                if self._ended:
                    # Since the look above, by another thread.
                    remote.close()
        elif self._remote.unused:
            self._remote.close()
            self._remote = None

    def _build_remotely(
        self, remote: RemoteBuilder, hand: Hand, group: list[Exchange], place: Place
    ) -> bool:
        self._building_since = time.monotonic()
        # Hardly anything is done here, and each time the interpreter changes hands costs a busy
        # service more than that: few and long slices.
        breathe = Slices(lambda: 0.0, _LONGEST_SLICE)
        # Where a hand-over is a span of this process's traces, it is this process's work.
        may_send = (
            self._beside_breaker.allows and self.outbox.breaker.allows and not tracing.set_up()
        )
        try:
            for exchange in group:
                _complete(exchange)
            built = remote.build(group, breathe, may_send=may_send)
        except Exception as error:
            # What is wrong with one event costs that event alone, when they are built here.
            self.outbox.warn("events are built in the service's own process: %s", error)
            return False
        finally:
            self._building_since = None
        if hand.packed(group, built.parcels):
            if built.failed:
                metrics.rejected.inc(built.failed, reason="build_failed")
            if built.sent:
                if built.error is None:
                    self.outbox.breaker.succeeded()
                metrics.queued.inc(built.sent)
        # What it could not send is tried here: that shows whether the broker is away. Where it is
        # not, something is amiss with that process, and it is left out of it for some time.
        self._place(hand, place)
        if built.error is not None:
            self.outbox.warn("the builder process could not hand events over: %s", built.error)
        if built.sent:
            self._beside_breaker.succeeded()
        elif built.error is not None and self.outbox.breaker.closed:
            self._beside_breaker.failed()
        return True

    @staticmethod
    def _seal(hand: Hand) -> None:
        lines = hand.lines()
        if lines:
            hand.sealed(lines, pack(lines))

    @staticmethod
    def _place(hand: Hand, place: Place) -> None:
        while parcel := hand.parcel():
            counter, labels = place(*parcel)
            if not hand.placed(parcel):
                return
            counter.inc(parcel[1], **labels)

    def _attach(self) -> None:
        if self._attached:
            return
        # Once: where it cannot be made, it is not tried with every batch.
        self._attached = True
        checks.report_serving()
        try:
            self.producer.attach()
        except Exception as error:
            self.outbox.warn("what this process numbers is not known if it is killed: %s", error)

    def _report(self) -> None:
        """Say how many numbers were given, and what dead processes left; see producers.py."""
        try:
            self._tell(self.producer.due(time.monotonic()), self.outbox.dispatch)
        except Exception as error:
            self.outbox.warn("what this process has numbered could not be reported: %s", error)

    def _tell(self, lines: list[str], place: Place) -> None:
        # They are no events, and counted as none.
        if lines and place(pack(lines), 0)[0] is not metrics.rejected:
            self.producer.settled(lines)

    # -- the end --------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Empty the buffer within `timeout` seconds (SHUTDOWN_SECONDS); return whether it is.

        The sender and the overflow thread may have events in hand, which would die with the
        process: they are waited for, and then taken over. What the broker holds up is spooled; if
        it takes that after all, the lake still has each event once.
        """
        if self._pid != os.getpid():
            return True
        limit = self._options.SHUTDOWN_SECONDS if timeout is None else timeout
        end = time.monotonic() + limit
        # Half of the time for the broker; the rest is the spool's, which is quick.
        half = end - limit / 2
        keep = partial(self.outbox.keep, reason="broker_down")
        others = (self._sender_hand, self._overflow_hand)
        self._flushing = True
        idle = [hand.at_work.acquire(timeout=max(0.0, half - time.monotonic())) for hand in others]
        sender_idle = idle[0]

        def place(batch: bytes, count: int) -> Outcome:
            if sender_idle and time.monotonic() < half:
                return self.outbox.dispatch(batch, count)
            return keep(batch, count)

        hand = Hand()
        try:
            for other in others:
                hand.receive(other.surrender())
                if time.monotonic() < end:
                    self._place(hand, keep)
                    self._seal(hand)
                    self._place(hand, keep)
            while time.monotonic() < end and (
                hand.next() or hand.take(self.buffer, self._options.BATCH_SIZE)
            ):
                self._work_off(hand, place, end)
            hand.take(self.buffer, len(self.buffer))
            left = len(hand.surrender())
        finally:
            self._flushing = False
            for other, held in zip(others, idle, strict=True):
                other.reopen()
                if held:
                    other.at_work.release()
        if left:
            metrics.rejected.inc(left, reason="shutdown")
            logger.warning("%s events are LOST: no time left at exit", left)
        return not left

    def shutdown(self) -> None:
        """Empty the buffer, and say that this process numbers no more; for its very end."""
        if self._pid != os.getpid():
            return
        emptied = self.flush()
        try:
            way = (
                self.outbox.dispatch if emptied else partial(self.outbox.keep, reason="broker_down")
            )
            self._tell(self.producer.close(), way)
        except Exception as error:
            logger.warning("the end of this process could not be reported: %s", error)
        # The sender may be at work still.
        self._ended = True
        remote, self._remote = self._remote, None
        if remote is not None:
            remote.close()

    def close(self) -> None:
        """Flush and end the threads; for tests and for a process that goes on without us."""
        self._sender.stop(self._options.SHUTDOWN_SECONDS)
        self._overflow.stop(self._options.SHUTDOWN_SECONDS)
        self.shutdown()
        atexit.unregister(self.shutdown)
        self.spool.close()


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
                from .handover import make_send, sends_beside

                _transport = Transport(make_send(conf), beside=sends_beside(conf))
    return _transport


def set_transport(transport: Transport | None) -> Transport | None:
    """Replace this process's transport; return the one before. For tests."""
    global _transport
    before, _transport = _transport, transport
    return before
