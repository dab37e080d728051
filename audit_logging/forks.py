"""What a background thread of ours is within when the service forks.

Libraries take locks of the whole process for moments: SQLite around its memory, kombu around its
connections. A child that is forked in such a moment has them locked for ever. So a fork waits
until our threads are out of them, and they wait until it is done; neither for long: a thread that
stays within waits for a disk or a network, and holds no such lock.
"""

from __future__ import annotations

import os
import threading
import time

#: Seconds that a fork may wait.
_PATIENCE = 0.05
_PAUSE = 0.0005


class _Within:
    """``with within: …`` around calls of libraries that take locks of the whole process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what threads of a parent process were doing."""
        self._lock = threading.Lock()
        self._threads = 0
        self._local = threading.local()

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._threads -= 1

    def hold(self) -> None:
        """Keep everybody out, if they leave in time; for the thread that forks."""
        end = time.monotonic() + _PATIENCE
        self._local.holds = False
        while time.monotonic() < end:
            if self._lock.acquire(timeout=_PATIENCE):
                if not self._threads:
                    self._local.holds = True
                    return
                self._lock.release()
            time.sleep(_PAUSE)

    def let_go(self) -> None:
        """Let everybody in again."""
        if self._local.holds:
            self._lock.release()


within = _Within()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=within.hold, after_in_parent=within.let_go, after_in_child=within.reset
    )
