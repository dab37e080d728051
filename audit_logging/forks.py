"""What a background thread of ours is within when the service forks.

Libraries take locks of the whole process for moments: kombu around its connections; SQLite around
its memory, and in its list of files that a transaction of this process has locked. A child that is
forked in such a moment has them locked for ever. So a fork waits
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
        #: Whoever forks holds it against those who want in.
        self._gate = threading.Lock()
        self._lock = threading.Lock()
        self._threads = 0
        self._local = threading.local()

    def __enter__(self) -> None:
        depth = getattr(self._local, "depth", 0)
        if not depth:
            with self._gate, self._lock:
                self._threads += 1
        self._local.depth = depth + 1

    def __exit__(self, *exc: object) -> None:
        self._local.depth -= 1
        if not self._local.depth:
            with self._lock:
                self._threads -= 1

    def hold(self) -> None:
        """Keep everybody out, if they leave in time; for the thread that forks."""
        end = time.monotonic() + _PATIENCE
        self._local.holds = False
        if not self._gate.acquire(timeout=_PATIENCE):
            return
        itself = 1 if getattr(self._local, "depth", 0) else 0
        while self._threads > itself:
            if time.monotonic() >= end:
                self._gate.release()
                return
            time.sleep(_PAUSE)
        self._local.holds = True

    def let_go(self) -> None:
        """Let everybody in again."""
        if self._local.holds:
            self._gate.release()


within = _Within()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=within.hold, after_in_parent=within.let_go, after_in_child=within.reset
    )
