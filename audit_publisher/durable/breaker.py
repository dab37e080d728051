"""Regions and topics left alone for now: a dead one costs no request its timeout."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

#: A topic of a region, or with "" the region as a whole.
Key = tuple[str, str]


@dataclass(slots=True)
class _State:
    failures: int = 0
    open: bool = False
    #: It did not even answer a question since; when it does again, it is back.
    silent: bool = False
    #: It answered all the while, and is to show with one request that it takes records, too.
    on_trial: bool = False
    tried_until: float = 0.0
    probe_at: float = 0.0


class Breaker:
    """Remembers failures by region, and by region and topic.

    Requests never look whether a region is there again: the background does, by questions about
    itself (:meth:`answered`). One that was silent is back then. One that answered all the while
    may still take no record: it gets one request, and the others when it took that
    (:meth:`succeeded`).

    :param cooldown: seconds until the first probe; doubled with each further failure, eight-fold
        at most.
    :param clock: returns seconds, monotonic.
    """

    def __init__(self, cooldown: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._cooldown = cooldown
        self._clock = clock
        self._states: dict[Key, _State] = {}

    def allows(self, region: str, topic: str) -> bool:
        """Whether any request may try this topic in this region."""
        return not (self._is_open((region, "")) or self._is_open((region, topic)))

    def admits(self, region: str, topic: str) -> bool:
        """Whether this request may try: as :meth:`allows`, or it is the one of a trial."""
        if not self._states:
            return True
        if self._is_open((region, topic)):
            return False
        state = self._states.get((region, ""))
        if state is None or not state.open:
            return True
        now = self._clock()
        if not state.on_trial or now < state.tried_until:
            return False
        # If nobody tells what became of it, another one tries.
        state.tried_until = now + self._cooldown
        return True

    def is_shut(self, region: str, topic: str = "") -> bool:
        """Whether nothing gets there, not even on trial."""
        state = self._states.get((region, ""))
        shut = state is not None and state.open and not state.on_trial
        return shut or (bool(topic) and self._is_open((region, topic)))

    def failed(self, region: str, topic: str = "", *, silent: bool = False) -> bool:
        """Open the entry; return whether it was closed before.

        :param silent: it did not answer a question about itself.
        """
        state = self._states.setdefault((region, topic), _State())
        was_closed = not state.open
        now = self._clock()
        if was_closed or now >= state.probe_at:
            # Many requests that fail together are one failure.
            state.failures += 1
            state.probe_at = now + self._cooldown * min(2 ** (state.failures - 1), 8)
        state.open = True
        state.on_trial = False
        state.silent = silent or (state.silent and not was_closed)
        return was_closed

    def may_probe(self, region: str, topic: str = "") -> bool:
        """Whether the background should look again."""
        state = self._states.get((region, topic))
        return state is None or not state.open or self._clock() >= state.probe_at

    def failures(self, region: str, topic: str = "") -> int:
        """How often the entry failed since it last succeeded."""
        state = self._states.get((region, topic))
        return state.failures if state is not None else 0

    def answered(self, region: str, topic: str = "") -> None:
        """It says that it is there: close the entry, or put a region on trial.

        Failures are remembered: after the next one it is left alone for longer.
        """
        state = self._states.get((region, topic))
        if state is None or not state.open:
            return
        if topic or state.silent:
            state.open = state.silent = False
        elif not state.on_trial:
            state.on_trial = True
            state.tried_until = 0.0

    def succeeded(self, region: str, topic: str) -> bool:
        """Close the region's and the topic's entries, and forget their failures.

        :returns: whether there were any.
        """
        if not self._states:
            return False
        whole = self._states.pop((region, ""), None)
        return self._states.pop((region, topic), whole) is not None

    def _is_open(self, key: Key) -> bool:
        state = self._states.get(key)
        return state is not None and state.open
