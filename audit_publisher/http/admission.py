"""How much may be in flight: a request that would take more memory is sent away at the door."""

from __future__ import annotations

from types import TracebackType

from .. import metrics
from ..conf import conf
from .problems import Problem

#: Seconds after which one that was sent away should come again.
_RETRY_AFTER = 1


class Admission:
    """Counts the bytes of all bodies that are being read or made durable, in one process.

    It is for one thread, an event loop's.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._shown = 0

    def show(self) -> None:
        """Set the gauge; called now and then, for it costs more than the counting."""
        if self.bytes != self._shown:
            self._shown = self.bytes
            metrics.IN_FLIGHT_BYTES.set(self.bytes)

    def place(self) -> Place:
        """A request's share; it is given back when the request has ended."""
        return Place(self)


class Place:
    """What one request has taken."""

    __slots__ = ("_admission", "_taken")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._taken = 0

    def take(self, count: int) -> None:
        """Take `count` bytes more.

        :raises Problem: 429, when there are not as many.
        """
        self.look(count)
        admission = self._admission
        admission.bytes += count
        self._taken += count

    def look(self, count: int) -> None:
        """See whether there are `count` bytes more.

        :raises Problem: 429, when there are not.
        """
        admission = self._admission
        # One is let in whatever its size: limits of bodies are other limits.
        if admission.bytes > self._taken and admission.bytes + count > conf.MAX_IN_FLIGHT_BYTES:
            metrics.SENT_AWAY.inc()
            raise Problem(
                429,
                "Too much is under way. Try again later.",
                retry_after=_RETRY_AFTER,
                reason="in_flight",
            )

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.bytes -= self._taken
