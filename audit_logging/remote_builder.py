"""The builder process as the service sees it: started when first needed, replaced when it dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .breaker import Breaker
from .buffer import Parcel
from .builder_process import (
    READY,
    frame_of,
    plain,
    read_frame,
    settings_of,
    state_of,
    write_frame,
)
from .capture import Exchange
from .conf import LoggingSettings
from .exceptions import BuilderUnavailable
from .forks import within
from .sensitive import normalise_key, sensitive_key

logger = logging.getLogger(__name__)

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
_ROOM = 96 << 20
_CGROUP = Path("/sys/fs/cgroup")


def has_room(cgroup: Path = _CGROUP) -> bool:
    """Whether this container's memory has room for one process more; where nothing limits it, or
    nobody can tell, it has."""
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        # Of what is used the cache of files is given back at need.
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        used -= int(stat.get("inactive_file", 0))
        return most == "max" or int(most) - used >= _ROOM
    except (OSError, ValueError):
        return True


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


class RemoteBuilder:
    """Builds events in a process beside this one; for one background thread.

    :ivar ready: whether it can be asked now.
    """

    def __init__(self, options: LoggingSettings) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._breaker = Breaker(first=1.0, longest=60.0)
        self._used_at = time.monotonic()
        self._extra = frozenset(normalise_key(key) for key in options.REDACT_KEYS)

    @property
    def unused(self) -> bool:
        """Whether it has built nothing for a long time."""
        return time.monotonic() - self._used_at > _UNUSED

    @property
    def ready(self) -> bool:
        """Whether it can be asked now; starts it if there is none."""
        if self._ready:
            return True
        if not self._breaker.allows:
            return False
        try:
            if self._process is None:
                self._start()
            elif self._answered():
                self._ready = True
        except Exception as error:  # noqa: BLE001 - events are built here, whatever it is
            self._failed(error)
        return self._ready

    def build(self, exchanges: list[Exchange]) -> tuple[list[Parcel], int]:
        """Return the batches of `exchanges`, and how many could not be built.

        :raises BuilderUnavailable: it is not there, or cannot take these; none was built.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise BuilderUnavailable("There is no builder process.")
        frame = self._frame(exchanges)
        try:
            write_frame(process.stdin.fileno(), frame, _PATIENCE)
            parcels, failed = read_frame(process.stdout.fileno(), _PATIENCE)
            if sum(count for _, count in parcels) + failed != len(exchanges):
                raise EOFError("it answered something else than it was asked")
        except Exception as error:
            # Whatever it is, what comes next out of the pipe cannot be trusted.
            self._failed(error)
            raise BuilderUnavailable(f"It failed: {type(error).__name__}") from error
        self._breaker.succeeded()
        self._used_at = time.monotonic()
        return parcels, failed

    def _frame(self, exchanges: list[Exchange]) -> bytes:
        try:
            states = [state_of(exchange, self._is_sensitive) for exchange in exchanges]
            try:
                return frame_of(states)
            except ValueError:
                return frame_of(plain(states))
        except Exception as error:
            # Something of the service's own; nothing was written yet. Its text may hold anything.
            kind = type(error).__name__
            raise BuilderUnavailable(f"An exchange cannot be sent to it: {kind}") from error

    def _is_sensitive(self, name: str) -> bool:
        return sensitive_key(name, self._extra)

    def close(self) -> None:
        """End the process."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return
        _close_pipes(process)
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(1.0)

    def let_go(self) -> None:
        """In a forked child: leave to the parent what is the parent's."""
        process, self._process, self._ready = self._process, None, False
        if process is not None:
            _close_pipes(process)
            # Not ours to wait for.
            process.returncode = 0

    def _start(self) -> None:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(_NOT_INHERITED)
        }
        environ["PYTHONPATH"] = os.pathsep.join(str(entry or Path.cwd()) for entry in sys.path)
        # A child that is forked in the midst has copies of pipes it does not know of: the start
        # would wait for it to close one, and the process for the other, for as long as it lives.
        with within:
            self._process = process = subprocess.Popen(
                [_python(), "-m", "audit_logging.builder_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=environ,
            )
        if process.stdin is None:
            return
        os.set_blocking(process.stdin.fileno(), False)
        write_frame(process.stdin.fileno(), frame_of(settings_of(self._options)), _PATIENCE)

    def _answered(self) -> bool:
        process = self._process
        if process is None or process.stdout is None:
            return False
        try:
            return read_frame(process.stdout.fileno(), 0.0) == READY
        except TimeoutError:
            return False

    def _failed(self, error: Exception) -> None:
        self._breaker.failed()
        logger.warning("the builder process is gone, and events are built here: %r", error)
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.kill()
        self.close()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _python() -> str:
    """Return the interpreter; a server that embeds it, as uWSGI does, names itself instead."""
    if "python" in Path(sys.executable or "").name:
        return sys.executable
    for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3", "python"):
        found = Path(sys.prefix, "bin", name)
        if found.exists():
            return str(found)
    raise FileNotFoundError(f"There is no Python interpreter in {sys.prefix}/bin.")
