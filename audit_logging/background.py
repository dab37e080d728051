"""Background loops and refreshed snapshots: daemon threads that survive fork and their own errors.

A thread does not survive ``fork``: a process that preloads the application and then forks has a
loop object without a thread. So a loop starts its thread on first use, in whichever process that
is, and notices by process id (uWSGI skips Python's at-fork hooks) that it must start a new one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_instances: weakref.WeakSet[Loop] = weakref.WeakSet()


class Loop:
    """Call `step` again and again on a daemon thread of the current process.

    :param step: the work; returns the seconds to wait before the next call (0: at once). Its
        exceptions are logged and the loop goes on: one failure must not end all later work.
    :param name: the thread's name.
    :param on_error: seconds to wait after an exception.
    """

    def __init__(self, step: Callable[[], float], *, name: str, on_error: float = 1.0) -> None:
        self._step = step
        self._name = name
        self._on_error = on_error
        self._locks: dict[int, threading.Lock] = {}
        self._fresh()
        _instances.add(self)

    def _fresh(self) -> None:
        # Everything that a fork may have copied in a locked or set state.
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def running(self) -> bool:
        """Whether this process has a live thread for the loop."""
        return self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def ensure_running(self) -> None:
        """Start the thread if this process has none; costs one comparison when it has."""
        pid = os.getpid()
        if self._pid == pid and self._thread is not None:
            return
        # A lock of this process's own: one that a fork copied may be locked for ever.
        with self._locks.setdefault(pid, threading.Lock()):
            if self._pid not in (0, pid):
                self._fresh()
            if self._thread is not None or self._stopping:
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            # A start that fails (no thread to be had) is tried again by the next caller.
            thread.start()
            self._thread, self._pid = thread, pid

    def wake(self) -> None:
        """Run the next step now instead of after its wait."""
        self._wake.set()

    def stop(self, timeout: float) -> bool:
        """End the loop after its current step; return whether it ended within `timeout` seconds."""
        self._stopping = True
        self._wake.set()
        thread = self._thread
        if thread is None or self._pid != os.getpid() or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                pause = self._step()
            except BaseException:  # also SystemExit, which would end the thread without a word
                logger.exception("%s failed; it goes on in %s s", self._name, self._on_error)
                pause = self._on_error
            if pause > 0:
                self._wake.wait(pause)
            self._wake.clear()


def _after_fork_in_child() -> None:
    for loop in list(_instances):
        loop._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Snapshot(Generic[T]):
    """The last known answer of a slow or fallible source, refreshed in the background.

    Readers call :meth:`get`: no lock, no I/O (but for `load_first`). A source that fails leaves
    the last known value in force.

    :param load: fetches the value; may block and may raise.
    :param initial: the value until the first successful load.
    :param interval: seconds between refreshes.
    :param load_first: load once in the first reader, before returning; never on a request path
        that promised to do no I/O.
    :param before: called before each load on the background thread, and there alone.
    """

    def __init__(
        self,
        load: Callable[[], T],
        *,
        initial: T,
        interval: float,
        name: str,
        load_first: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._load = load
        self._value = initial
        self._interval = interval
        self._name = name
        self._load_first = load_first
        self._before = before
        self._failing = False
        self._tried = False
        self.loaded_at: float | None = None
        self._loop = Loop(self._step, name=name)

    def get(self) -> T:
        """Return the last known value."""
        if self._load_first and not self._tried:
            self.refresh()
        self._loop.ensure_running()
        return self._value

    def prime(self, timeout: float) -> bool:
        """Load once before the first reader; return whether it worked within `timeout` seconds.

        On a thread of its own: the caller may run in an event loop, where the ORM refuses to work.
        """
        thread = threading.Thread(target=self.refresh, name=self._name, daemon=True)
        thread.start()
        thread.join(timeout)
        return self.loaded_at is not None

    def refresh(self) -> bool:
        """Load now, in this thread; return whether it worked."""
        try:
            self._value = self._load()
        except Exception as error:
            if not self._failing:
                logger.warning("%s: kept the last known value: %s", self._name, error)
            self._failing = True
            self._tried = True
            return False
        if self._failing:
            logger.info("%s: the source answers again", self._name)
        self._failing = False
        self.loaded_at = time.monotonic()
        # Now, not before: until then every reader would have the initial value for the first.
        self._tried = True
        return True

    def stop(self, timeout: float = 1.0) -> None:
        """End the background refresh."""
        self._loop.stop(timeout)

    def _step(self) -> float:
        try:
            if self._before is not None:
                self._before()
        except Exception:
            # The source says what is wrong, if it still is.
            logger.debug("%s: could not be prepared", self._name, exc_info=True)
        self.refresh()
        return self._interval
