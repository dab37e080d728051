"""The builder process as the service sees it: started when first needed, replaced when it dies."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .breaker import Breaker
from .buffer import Parcel
from .builder_process import (
    READY,
    SENDING,
    frame_of,
    packed_state,
    receive_frame,
    send_frame,
    settings_of,
)
from .capture import Exchange
from .chance import chance
from .conf import LoggingSettings
from .exceptions import BuilderUnavailable
from .forks import within
from .sensitive import normalise_key, sensitive_key

logger = logging.getLogger(__name__)

#: Seconds between two looks whether the process that was started is there.
_LOOK_EVERY = 0.05
#: Seconds that it takes to start at most, where all is well, and where it is given up.
_STARTING = 3.0
_NEVER = 30.0
#: Seconds that the building of one frame may take, in a process that has stopped, say.
_PATIENCE = 10.0
#: What it asks the environment for is told to it instead; the rest is not its business.
_NOT_INHERITED = ("AUDIT_LOGGING_", "DJANGO_SETTINGS_MODULE", "PROMETHEUS_MULTIPROC_DIR")
#: Seconds over which it is looked how much the building takes, and the share of one core from
#: which it is worth a process.
_WINDOW = 3.0
_WORTH_IT = 0.03
#: Seconds without a frame after which a process that was started for its load is ended.
_UNUSED = 120.0
#: Bytes of memory that must be left where it is limited: what a process needs, and as much again.
_ROOM = 112 << 20
#: Seconds, at most, between two looks whether there is room.
_ASK_AGAIN = 4.0
_CGROUP = Path("/sys/fs/cgroup")


class Room:
    """Whether this container's memory has room for one process more.

    :param cgroup: where the kernel tells of the container.
    :param clock: returns monotonic seconds.
    """

    def __init__(self, cgroup: Path = _CGROUP, clock: Callable[[], float] = time.monotonic) -> None:
        self._cgroup = cgroup
        self._clock = clock
        self._ask_at: float | None = None

    def there(self) -> bool:
        """Whether there is; where nothing limits it, or nobody can tell, there is.

        Where it is limited the first answer is no, and a "no" holds for some seconds: in a burst
        each process of a service asks in the same moment, and none sees what the others will take.
        """
        now = self._clock()
        if self._ask_at is not None and now < self._ask_at:
            return False
        left = self._left()
        if left is None:
            return True
        first, self._ask_at = self._ask_at is None, now + _ASK_AGAIN * chance.random()
        return not first and left >= _ROOM

    def _left(self) -> int | None:
        try:
            most = (self._cgroup / "memory.max").read_text().strip()
            used = int((self._cgroup / "memory.current").read_text())
            # Of what is used the cache of files is given back at need.
            text = (self._cgroup / "memory.stat").read_text()
            stat = dict(line.split() for line in text.splitlines())
            used -= int(stat.get("inactive_file", 0))
            return None if most == "max" else int(most) - used
        except (OSError, ValueError):
            return None


class Load:
    """Tells whether a thread's work has grown to what is worth a process of its own.

    :param clock: returns monotonic seconds.
    :param cpu: returns the thread's own CPU seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._began: tuple[float, float] | None = None

    def heavy(self) -> bool:
        """Whether it was so in the window that has just ended; called by that thread, often."""
        now = self._clock()
        if self._began is None:
            self._began = now, self._cpu()
            return False
        elapsed = now - self._began[0]
        if elapsed < _WINDOW:
            return False
        used = self._cpu() - self._began[1]
        self._began = now, self._cpu()
        return used / elapsed >= _WORTH_IT


class Built(NamedTuple):
    """What became of some exchanges in the builder process.

    :ivar sent: how many events the broker has.
    :ivar parcels: the batches that it does not have.
    :ivar failed: how many events could not be built.
    :ivar error: why the broker did not take a batch; None where it took all that it was asked to.
    """

    sent: int
    parcels: list[Parcel]
    failed: int
    error: str | None


class _Launch:
    """Starts a process on a thread of its own.

    The start waits for the other end of a pipe to be closed. A child that the service forks at
    that moment has a copy of it, and may live for ever: nobody else is to wait for that.

    :ivar process: the process, when it is there.
    :ivar error: why there is none.
    """

    def __init__(self, line: socket.socket) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.error: Exception | None = None
        self._line = line
        self._unwanted = False
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="audit-start", daemon=True).start()

    def give_up(self) -> None:
        """Nobody wants it any more: a process that comes later is ended."""
        with self._lock:
            self._unwanted = True
            process = self.process
        if process is not None:
            _end_process(process)

    def _run(self) -> None:
        try:
            # A fork waits for this, if it does not take too long.
            with within, self._line as line:
                process = subprocess.Popen(
                    [_python(), "-m", "audit_logging.builder_process"],
                    stdin=line.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=_environ(),
                )
        except Exception as error:  # noqa: BLE001 - told to whoever looks
            self.error = error
            return
        with self._lock:
            self.process = process
            unwanted = self._unwanted
        if unwanted:
            _end_process(process)


class RemoteBuilder:
    """Builds events in a process beside this one, and sends them; for one background thread.

    :param sends: whether it may hand batches to the broker.
    :ivar ready: whether it can be asked now.
    """

    def __init__(self, options: LoggingSettings, *, sends: bool = False) -> None:
        self._options = options
        self._sends = sends
        self._launch: _Launch | None = None
        self._line: socket.socket | None = None
        #: Held by whoever uses the line: it is closed by nobody else.
        self._in_use = threading.Lock()
        self._ready = False
        self._ended = False
        self._breaker = Breaker(first=1.0, longest=60.0)
        self._used_at = time.monotonic()
        self._look_at = self._started_at = 0.0
        # One batch more than it sends in its time may hang at the broker.
        more = SENDING + 4 * options.BROKER_TIMEOUT if sends else 0.0
        self._patience = _PATIENCE + more
        self._extra = frozenset(normalise_key(key) for key in options.REDACT_KEYS)

    @property
    def pid(self) -> int | None:
        """The process's id, when there is one."""
        process = self._launch.process if self._launch is not None else None
        return None if process is None else process.pid

    @property
    def unused(self) -> bool:
        """Whether it has built nothing for a long time."""
        return time.monotonic() - self._used_at > _UNUSED

    @property
    def ready(self) -> bool:
        """Whether it can be asked now; starts it if there is none."""
        if self._ready:
            return True
        if self._ended:
            return False
        # To ask is to let go of the interpreter, which a busy service takes its time to give back.
        now = time.monotonic()
        if now < self._look_at or not self._breaker.allows:
            return False
        self._look_at = now + _LOOK_EVERY
        try:
            with self._in_use:
                if self._launch is None:
                    self._start()
                elif self._launch.error is not None:
                    raise self._launch.error
                elif self._answered():
                    self._ready = True
                elif now - self._started_at > _NEVER:
                    raise TimeoutError(f"it is not ready after {_NEVER:.0f} s")
        except Exception as error:  # noqa: BLE001 - events are built here, whatever it is
            self._failed(error)
        return self._ready

    @property
    def starting(self) -> bool:
        """Whether it was started, and is likely to be ready in a moment."""
        there = self._launch is not None and not self._ready
        return there and time.monotonic() - self._started_at < _STARTING

    def build(
        self,
        exchanges: list[Exchange],
        breathe: Callable[[], None] = lambda: None,
        *,
        may_send: bool = False,
    ) -> Built:
        """Build the events of `exchanges`, and send them if that may be.

        :param breathe: called wherever the work could pause.
        :param may_send: whether the broker is to be asked now.
        :raises BuilderUnavailable: it is not there, or cannot take these; none was built, or
            nobody knows: each of the same events may come a second time.
        """
        frame = self._frame(exchanges, breathe, may_send)
        try:
            with self._in_use:
                built = self._ask(frame)
            there = sum(count for _, count in built.parcels) + built.sent + built.failed
            if there != len(exchanges):
                raise EOFError("it answered something else than it was asked")
        except BaseException as error:
            # Whatever it is, what comes next over the line cannot be trusted.
            self._failed(error)
            if not isinstance(error, Exception):
                raise
            raise BuilderUnavailable(f"It failed: {type(error).__name__}") from error
        self._breaker.succeeded()
        self._used_at = time.monotonic()
        return built

    def _ask(self, frame: bytes) -> Built:
        line = self._line
        if line is None:
            raise BuilderUnavailable("There is no builder process.")
        try:
            send_frame(line, frame)
            return Built(*receive_frame(line))
        except BlockingIOError:
            raise TimeoutError(f"no answer in {self._patience:.0f} s") from None

    def _frame(
        self, exchanges: list[Exchange], breathe: Callable[[], None], may_send: bool
    ) -> bytes:
        states = []
        try:
            for exchange in exchanges:
                states.append(packed_state(exchange, self._is_sensitive))
                breathe()
            return frame_of((may_send, states))
        except Exception as error:
            # Something of the service's own; nothing was written yet. Its text may hold anything.
            kind = type(error).__name__
            raise BuilderUnavailable(f"An exchange cannot be sent to it: {kind}") from error

    def _is_sensitive(self, name: str) -> bool:
        return sensitive_key(name, self._extra)

    def close(self) -> None:
        """End the process, for good."""
        self._ended = True
        self._end()

    def _end(self) -> None:
        launch, line = self._launch, self._line
        self._launch, self._line, self._ready = None, None, False
        if line is not None:
            # Whoever waits at it, in another thread, is woken; who uses it is not overtaken.
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            if self._in_use.acquire(timeout=1.0):
                line.close()
                self._in_use.release()
        if launch is not None:
            launch.give_up()

    def let_go(self) -> None:
        """In a forked child: leave to the parent what is the parent's."""
        launch, line = self._launch, self._line
        self._launch, self._line, self._ready = None, None, False
        self._in_use = threading.Lock()
        if line is not None:
            line.close()
        if launch is not None and launch.process is not None:
            # Not ours to wait for.
            launch.process.returncode = 0

    def _start(self) -> None:
        line, other = socket.socketpair()
        # Not as socket.setdefaulttimeout() of the service has it.
        other.setblocking(True)
        _set_patience(line, self._patience)
        self._look_at, self._started_at = 0.0, time.monotonic()
        self._line, self._launch = line, _Launch(other)
        # It waits in the line until the process reads it.
        send_frame(line, frame_of(settings_of(self._options, sends=self._sends)))
        if self._ended:
            # By another thread, which saw nothing of this yet.
            launch, self._launch, self._line = self._launch, None, None
            line.close()
            launch.give_up()

    def _answered(self) -> bool:
        line = self._line
        if line is None:
            return False
        line.setblocking(False)
        try:
            return receive_frame(line) == READY
        except BlockingIOError:
            return False
        finally:
            _set_patience(line, self._patience)

    def _failed(self, error: BaseException) -> None:
        if not self._ended:
            self._breaker.failed()
            logger.warning("the builder process is gone, and events are built here: %r", error)
        self._end()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process whose line is closed; it may be killed at any time."""
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that the kernel holds is left to itself.
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def _environ() -> dict[str, str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(_NOT_INHERITED)
    }
    environ["PYTHONPATH"] = os.pathsep.join(str(entry or Path.cwd()) for entry in sys.path)
    return environ


def _set_patience(line: socket.socket, seconds: float) -> None:
    """Let each call wait for so long."""
    if socket.socket.__module__ == "socket":
        # By the kernel: Python's own timeouts take two calls for each.
        line.setblocking(True)
        timeval = struct.pack("ll", int(seconds), 0)
        with suppress(OSError):
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                line.setsockopt(socket.SOL_SOCKET, option, timeval)
            return
    # Sockets of gevent's, which know no other; or a system whose kernel counts time otherwise.
    line.settimeout(seconds)


def _python() -> str:
    """Return the interpreter; a server that embeds it, as uWSGI does, names itself instead."""
    if "python" in Path(sys.executable or "").name:
        return sys.executable
    for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3", "python"):
        found = Path(sys.prefix, "bin", name)
        if found.exists():
            return str(found)
    raise FileNotFoundError(f"There is no Python interpreter in {sys.prefix}/bin.")
