"""A circuit breaker: what is known to be down is not asked again until its time has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from . import metrics
from .chance import chance

#: Seconds. What the other side asks for is a wish: a slip of its hand, or of a proxy between, must
#: not close the way until a restart.
LONGEST_WISH = 60.0


class Breaker:
    """Closed while all is well; open for a growing, jittered time after each failure.

    When that time is over one try is allowed (half open): its success closes the breaker, its
    failure opens it for longer.

    :param first: seconds open after the first failure.
    :param longest: bound on the seconds open.
    :param clock: monotonic seconds.
    :param to: what is behind it, in the metrics; "" for none.
    """

    def __init__(
        self,
        first: float = 0.5,
        longest: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        to: str = "",
    ) -> None:
        self._first = first
        self._longest = longest
        self._clock = clock
        self._to = to
        self._failures = 0
        self._open_until = 0.0
        # Not held while anything is waited for, but a fork may copy it all the same: breakers are
        # made anew in a child.
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether the last try worked."""
        return self._failures == 0

    @property
    def allows(self) -> bool:
        """Whether a try may be made now."""
        return self._failures == 0 or self._clock() >= self._open_until

    def admits(self, seconds: float) -> bool:
        """Whether the caller may try, who then does so and says what came of it.

        As :attr:`allows`, but while the last try failed it admits one caller alone: a way that is
        still closed is to cost one thread its timeout, and not all of them.

        :param seconds: how long the try may take; after that the next caller is admitted.
        """
        if self._failures == 0:
            return True
        with self._lock:
            if not self.allows:
                return False
            self._open_until = self._clock() + seconds
            return True

    def succeeded(self) -> None:
        """A try worked."""
        self._show(0)
        self._failures = 0

    def failed(self, retry_after: float | None = None) -> None:
        """A try did not work.

        :param retry_after: seconds the other side asked to wait; heeded up to LONGEST_WISH.
        """
        pause = min(self._longest, self._first * 2 ** min(self._failures, 16))
        # Jitter, so that many processes do not all come back in the same instant.
        pause *= 0.5 + chance.random()
        self._show(1)
        self._failures += 1
        self._open_until = self._clock() + max(pause, min(retry_after or 0.0, LONGEST_WISH))

    def _show(self, is_open: int) -> None:
        if self._to and bool(self._failures) != bool(is_open):
            metrics.breaker_open.set(is_open, to=self._to)
