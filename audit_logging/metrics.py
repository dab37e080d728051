"""The capture tier's metrics: a closed list, each with its meaning and what to do about it.

They count in plain Python, so that the light tier needs no further package; where
``prometheus_client`` is installed the same counts are exported through it (also in its
multiprocess mode).
"""

from __future__ import annotations

import os
import threading
from typing import Any

try:
    import prometheus_client
except ImportError:
    prometheus_client = None  # type: ignore[assignment]


_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that counts at the moment of a fork would leave its lock (and that of
    # prometheus_client, taken within it) locked for ever in the child: on its request threads.
    os.register_at_fork(
        before=lambda: _lock.acquire(),
        after_in_parent=lambda: _lock.release(),
        after_in_child=_after_fork_in_child,
    )


class _Metric:
    def __init__(self, name: str, help: str, labels: tuple[str, ...] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = {}
        self._exported = self._export()
        METRICS.append(self)

    def _export(self) -> Any:
        raise NotImplementedError

    def value(self, **labels: str) -> float:
        """Return the count of this process; without labels, the sum over all of them."""
        if not labels and self.labels:
            with _lock:
                return sum(self._values.values())
        return self._values.get(self._key(labels), 0.0)

    def _key(self, labels: dict[str, str]) -> tuple[str, ...]:
        return tuple(str(labels[name]) for name in self.labels)

    def _child(self, labels: dict[str, str]) -> Any:
        if self._exported is None:
            return None
        return self._exported.labels(**labels) if self.labels else self._exported


class Counter(_Metric):
    """A count that only grows."""

    def _export(self) -> Any:
        if prometheus_client is None:
            return None
        return prometheus_client.Counter(self.name, self.help, self.labels)

    def inc(self, amount: float = 1, **labels: str) -> None:
        """Add `amount`."""
        key = self._key(labels)
        with _lock:
            self._values[key] = self._values.get(key, 0.0) + amount
            child = self._child(labels)
            if child is not None:
                child.inc(amount)


class Gauge(_Metric):
    """A value that goes up and down."""

    def _export(self) -> Any:
        if prometheus_client is None:
            return None
        return prometheus_client.Gauge(
            self.name, self.help, self.labels, multiprocess_mode="livesum"
        )

    def set(self, value: float, **labels: str) -> None:
        """Set the value."""
        with _lock:
            self._values[self._key(labels)] = value
            child = self._child(labels)
            if child is not None:
                child.set(value)


METRICS: list[_Metric] = []

captured = Counter(
    "audit_log_captured_total",
    "Requests recorded by the middleware. Flat while the service has traffic: look at the flags "
    "and endpoint rules, then at audit_log_internal_errors_total.",
)
skipped = Counter(
    "audit_log_skipped_total",
    "Requests left out on purpose: flag (audit off), rule (level none), excluded (path) or "
    "sampled. Not a loss; change the flags or rules to record them.",
    ("reason",),
)
rejected = Counter(
    "audit_log_rejected_total",
    "Events LOST, by reason: buffer_full (raise BUFFER_SIZE, or find what blocks the background "
    "thread), buffer_bytes (raise BUFFER_BYTES or lower MAX_BODY_BYTES), spool_full (raise "
    "SPOOL_MAX_BYTES, and bring the broker or publisher back), spool_unavailable (disk full or "
    "read-only), overflow_drop (OVERFLOW is drop), shutdown (raise SHUTDOWN_SECONDS), "
    "dead_letters_full (look at the dead letters; raise SPOOL_MAX_BYTES), build_failed (a bug of "
    "ours: see the log).",
    ("reason",),
)
queued = Counter(
    "audit_log_queued_total",
    "Events the Celery broker took, straight from the buffer. Captured events are queued, spooled, "
    "rejected or still in the buffer.",
)
spooled = Counter(
    "audit_log_spooled_total",
    "Events kept in the local spool because the buffer was nearly full (overflow), the broker "
    "(broker_down) or the publisher (publisher_down) did not take them. They are replayed; a "
    "rate that stays up wants the broker or publisher looked at.",
    ("reason",),
)
replayed = Counter(
    "audit_log_replayed_total", "Events taken from a local spool and handed on.", ("spool",)
)
delivered = Counter(
    "audit_log_delivered_total", "Events the publisher acknowledged as durable.", ("status",)
)
dead_lettered = Counter(
    "audit_log_dead_lettered_total",
    "Events the publisher refused for good; kept in the dead-letter store of the worker's host. "
    "Read the reason with `manage.py audit_spool dead-letters`, fix it, then redeliver.",
)
delivery_failures = Counter(
    "audit_log_delivery_failures_total",
    "Deliveries that did not get through, by reason. They are tried again from the spool.",
    ("reason",),
)
internal_errors = Counter(
    "audit_log_internal_errors_total",
    "Errors of the audit itself that were kept from the service, by place. Each is a bug: the log "
    "has the traceback.",
    ("place",),
)
buffer_depth = Gauge(
    "audit_log_buffer_events", "Events in memory, waiting. Near BUFFER_SIZE: see rejected."
)
spool_bytes = Gauge(
    "audit_log_spool_bytes",
    "Bytes in a local spool. At SPOOL_MAX_BYTES events are lost.",
    ("spool",),
)
