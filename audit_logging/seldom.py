"""A log that is not flooded: the same kind of message once in a while, and how often it came."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable


class Seldom:
    """Logs each kind of message at most once in `every` seconds.

    :param logger: where to.
    :param every: seconds.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def say(self, level: int, message: str, *args: object) -> None:
        """Log `message`, which also names its kind, unless it was logged a moment ago."""
        now = self._clock()
        with self._lock:
            if now - self._last.get(message, float("-inf")) < self._every:
                self._kept_back[message] = self._kept_back.get(message, 0) + 1
                return
            self._last[message] = now
            more = self._kept_back.pop(message, 0)
        if more:
            self._logger.log(level, message + " (and %s more times)", *args, more)
        else:
            self._logger.log(level, message, *args)
