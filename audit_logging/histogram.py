"""A histogram in plain Python, for what the request path does: to observe is one atomic append."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_left
from collections import deque
from itertools import accumulate
from typing import Any

try:
    import prometheus_client
    import prometheus_client.core
except ImportError:
    prometheus_client = None  # type: ignore[assignment]

#: Observations that wait to be sorted into buckets; more are sorted by whoever observes next.
_WAITING = 512

_instances: weakref.WeakSet[Histogram] = weakref.WeakSet()


class Histogram:
    """How often a quantity was how large.

    :param buckets: upper bounds, ascending; what is larger than all counts too.
    :param in_files: prometheus_client keeps its values in files: the observations are kept for
        :meth:`take_due`, to be handed on by a thread that may do so.
    """

    labels: tuple[str, ...] = ()

    def __init__(
        self, name: str, help: str, buckets: tuple[float, ...], *, in_files: bool = False
    ) -> None:
        self.name = name
        self.help = help
        self.bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._due: list[float] = []
        self._in_files = in_files
        self._waiting: deque[float] = deque()
        self._lock = threading.Lock()
        self._exported = (
            prometheus_client.Histogram(name, help, buckets=buckets)
            if in_files and prometheus_client is not None
            else None
        )
        _instances.add(self)

    def observe(self, value: float) -> None:
        """Take an observation; waits for nobody."""
        self._waiting.append(value)
        if len(self._waiting) >= _WAITING and self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()

    def _sort(self) -> None:
        # Under the lock; others may append meanwhile.
        for _ in range(len(self._waiting)):
            value = self._waiting.popleft()
            self._counts[bisect_left(self.bounds, value)] += 1
            self._sum += value
            if self._in_files:
                self._due.append(value)

    def read(self) -> tuple[list[tuple[float, int]], float]:
        """Return (upper bound, observations up to it) for each bucket, and the sum of all."""
        with self._lock:
            self._sort()
            counts, total = list(self._counts), self._sum
        return list(zip((*self.bounds, float("inf")), accumulate(counts), strict=True)), total

    def tally(self, values: list[float]) -> tuple[list[int], float]:
        """Return how many of `values` are in each bucket, and their sum."""
        counts = [0] * (len(self.bounds) + 1)
        for value in values:
            counts[bisect_left(self.bounds, value)] += 1
        return counts, sum(values)

    def value(self) -> float:
        """Return how many observations there were in this process."""
        return self.read()[0][-1][1]

    # -- what metrics.py asks of every metric -------------------------------------------------

    def take_due(self) -> dict[tuple[str, ...], list[float]]:
        """Return what prometheus_client's files do not have yet."""
        with self._lock:
            self._sort()
            due, self._due = self._due, []
        return {(): due} if due else {}

    def in_files(self) -> None:
        """From now on observations are handed on."""
        self._in_files = True

    def hand_on(self, key: tuple[str, ...], values: list[float]) -> None:
        """Give observations to prometheus_client's files."""
        if self._exported is not None:
            for value in values:
                self._exported.observe(value)

    def family(self) -> Any:
        """Return the present counts as prometheus_client's registry wants them."""
        buckets, total = self.read()
        family = prometheus_client.core.HistogramMetricFamily(self.name, self.help)
        named = [(bound_text(bound), count) for bound, count in buckets]
        family.add_metric([], named, total)
        return family

    def forked(self) -> None:
        """A child has the parent's observations, but not to hand on, and a lock of its own."""
        self._lock = threading.Lock()
        self._due = []
        self._waiting.clear()


def bound_text(bound: float) -> str:
    """A bucket's bound as Prometheus spells it."""
    return "+Inf" if bound == float("inf") else repr(float(bound))


def _after_fork_in_child() -> None:
    for histogram in list(_instances):
        histogram.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
