"""One look at a time, on a thread of its own, for askers who wait no longer than a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from django.db import connections

T = TypeVar("T")


class Look(Generic[T]):
    """Asks `look` in the background, and answers in time whether it is done or not.

    However many ask, and however long a look hangs, there is one thread.

    :param look: may block for any time; it must not raise.
    :param clock: returns seconds, monotonic.
    """

    def __init__(self, look: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._done = threading.Condition()
        self._looking = False
        self._began = 0.0
        self._count = 0
        self._last: tuple[T, float] | None = None

    def ask(self, patience: float, good_for: float) -> T | None:
        """Return what a look says, or what the last one said.

        :param patience: seconds to wait for this look.
        :param good_for: seconds for which an older answer is good enough.
        :returns: None: this look is not done, and there is no answer that is young enough.
        """
        with self._done:
            if not self._looking:
                self._looking, self._began = True, self._clock()
                threading.Thread(target=self._run, name="audit readiness", daemon=True).start()
            count = self._count
            finished = self._done.wait_for(lambda: self._count > count, patience)
            if self._last is None:
                return None
            said, at = self._last
            return said if finished or self._clock() - at <= good_for else None

    def seconds(self) -> float:
        """For how long the look that is under way has taken; 0 when there is none."""
        return self._clock() - self._began if self._looking else 0.0

    def _run(self) -> None:
        try:
            said = self._look()
            with self._done:
                self._last = (said, self._clock())
        finally:
            with self._done:
                self._looking = False
                self._count += 1
                self._done.notify_all()
            # Those of this thread.
            connections.close_all()
