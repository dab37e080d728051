"""The capture tier's metrics: a closed list, each with its meaning and what to do about it.

They count in plain Python, under a lock that is held for one addition: the request thread takes
it. Where ``prometheus_client`` is installed its registry asks us for the counts when it is
scraped. In its multiprocess mode it wants to be told instead, which is file I/O and done by a
thread of our own (:func:`export`).
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .background import Loop
from .histogram import Histogram
from .metric_files import Files

try:
    import prometheus_client
    import prometheus_client.core
    import prometheus_client.values
except ImportError:
    prometheus_client = None  # type: ignore[assignment]


_names = {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} & os.environ.keys()
#: Whether values are kept in files; prometheus_client decides so at its import, as we do.
_IN_FILES = bool(_names)
#: Files of our own, where there is no prometheus_client to keep some.
_files = None
if _names and prometheus_client is None:
    _files = Files(Path(os.environ[min(_names)]))
_EXPORT_EVERY = 1.0

_lock = threading.Lock()
#: Held within prometheus_client while it may be at its files.
_export_lock = threading.Lock()


#: Seconds that a fork, which is the host's, waits at most for whoever is at those files.
_FORK_WAITS = 0.05
_export_held = False


def _before_fork() -> None:
    global _export_held
    held = _export_lock.acquire(timeout=_FORK_WAITS)
    _lock.acquire()
    # Under the lock: another thread may be at a fork of its own.
    _export_held = held


def _after_fork_in_parent() -> None:
    held = _export_held
    _lock.release()
    if held:
        _export_lock.release()


def _after_fork_in_child() -> None:
    global _lock, _export_lock
    _lock, _export_lock = threading.Lock(), threading.Lock()
    if not _export_held:
        _free_prometheus()
    for metric in METRICS:
        # What the parent counted is the parent's to export.
        metric.forked()


if hasattr(os, "register_at_fork"):
    # A thread that counts at the moment of a fork would leave its lock (and that of
    # prometheus_client, taken within it) locked for ever in the child: on its request threads.
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


def _free_prometheus() -> None:
    """Open the locks of prometheus_client that an exporting thread held at the fork.

    That thread is not in this child, and one of the locks is shared by all metrics of the host.
    What they guard is whole: prometheus_client begins its files anew in a child.
    """
    if prometheus_client is None:
        return
    held = [getattr(getattr(metric, "_exported", None), "_lock", None) for metric in METRICS]
    made = getattr(prometheus_client.values.ValueClass, "__init__", None)
    held += [cell.cell_contents for cell in getattr(made, "__closure__", None) or ()]
    for lock in held:
        # As the standard library does with its own.
        open_again = getattr(lock, "_at_fork_reinit", None)
        if open_again is not None:
            open_again()


def export() -> None:
    """Write what changed to the files of prometheus_client, or to ours; else nothing."""
    with _export_lock:
        for metric in METRICS:
            for key, value in metric.take_due().items():
                if _files is None:
                    metric.hand_on(key, value)
                else:
                    _files.take(metric, key, value)
        if _files is not None:
            _files.write()


def files() -> Files | None:
    """Return the files of our own that several processes count in, if they do."""
    return _files


def keep_in_files(folder: Path) -> None:
    """Count in files of our own from now on: this process, and all that it forks.

    For a process that is about to fork, in which nobody has set PROMETHEUS_MULTIPROC_DIR.
    """
    global _IN_FILES, _files
    with _export_lock:
        _IN_FILES, _files = True, Files(folder)
        for metric in METRICS:
            metric.in_files()


def _export_step() -> float:
    export()
    return _EXPORT_EVERY


_exporter = Loop(_export_step, name="audit-metrics")
if _IN_FILES:
    # Registered before, and so run after, that which empties the buffer at exit.
    atexit.register(export)


class _Metric:
    def __init__(self, name: str, help: str, labels: tuple[str, ...] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = {}
        #: What export() has to hand on.
        self.due: dict[tuple[str, ...], float] = {}
        self._exported = self._export() if _IN_FILES and prometheus_client is not None else None
        METRICS.append(self)

    def _export(self) -> Any:
        raise NotImplementedError

    def family(self) -> Any:
        """Return the present values as prometheus_client's registry wants them."""
        raise NotImplementedError

    def value(self, **labels: str) -> float:
        """Return the count of this process; without labels, the sum over all of them."""
        if not labels and self.labels:
            return sum(self.values().values())
        return self._values.get(self._key(labels), 0.0)

    def values(self) -> dict[tuple[str, ...], float]:
        """Return the values of this process by their labels' values."""
        with _lock:
            values = dict(self._values)
        return values or ({} if self.labels else {(): 0.0})

    def _key(self, labels: dict[str, str]) -> tuple[str, ...]:
        return tuple([str(labels[name]) for name in self.labels]) if self.labels else ()

    def take_due(self) -> dict[tuple[str, ...], float]:
        """Return what is to be handed on, and forget it."""
        with _lock:
            due, self.due = self.due, {}
        return due

    def in_files(self) -> None:
        """From now on values are handed on; those there are, too."""
        with _lock:
            self.due = dict(self._values)

    def forked(self) -> None:
        """Forget what the parent process has to hand on."""
        self.due.clear()

    def hand_on(self, key: tuple[str, ...], value: float) -> None:
        """Give a change to prometheus_client's files."""
        if self._exported is not None:
            self._apply(self._exported.labels(*key) if key else self._exported, value)

    def _apply(self, child: Any, value: float) -> None:
        raise NotImplementedError


class Counter(_Metric):
    """A count that only grows."""

    def _export(self) -> Any:
        return prometheus_client.Counter(self.name, self.help, self.labels)

    def family(self) -> Any:
        family = prometheus_client.core.CounterMetricFamily(
            self.name, self.help, labels=self.labels
        )
        for key, value in self.values().items():
            family.add_metric(key, value)
        return family

    def _apply(self, child: Any, value: float) -> None:
        child.inc(value)

    def inc(self, amount: float = 1, **labels: str) -> None:
        """Add `amount`."""
        key = self._key(labels) if labels else ()
        with _lock:
            self._values[key] = self._values.get(key, 0.0) + amount
            if _IN_FILES:
                self.due[key] = self.due.get(key, 0.0) + amount
        if _IN_FILES:
            _exporter.ensure_running()


class Gauge(_Metric):
    """A value that goes up and down.

    :param across: how the values of several processes make one (prometheus_client's
        ``multiprocess_mode``).
    """

    def __init__(self, name: str, help: str, labels: tuple[str, ...] = (), *, across: str) -> None:
        self.across = across
        super().__init__(name, help, labels)

    def _export(self) -> Any:
        return prometheus_client.Gauge(
            self.name,
            self.help,
            self.labels,
            multiprocess_mode=self.across,  # type: ignore[arg-type]
        )

    def family(self) -> Any:
        family = prometheus_client.core.GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for key, value in self.values().items():
            family.add_metric(key, value)
        return family

    def _apply(self, child: Any, value: float) -> None:
        child.set(value)

    def set(self, value: float, **labels: str) -> None:
        """Set the value."""
        key = self._key(labels)
        with _lock:
            self._values[key] = value
            if _IN_FILES:
                self.due[key] = value
        if _IN_FILES:
            _exporter.ensure_running()


class _Collector:
    """What prometheus_client's registry asks when it is scraped."""

    def collect(self) -> Iterator[Any]:
        for metric in METRICS:
            yield metric.family()


def _histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
    histogram = Histogram(name, help, buckets, in_files=_IN_FILES)
    METRICS.append(histogram)
    return histogram


METRICS: list[Any] = []

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
    "dead_letters_full (look at the dead letters; raise SPOOL_MAX_BYTES), discarded (an operator "
    "threw dead letters away; admin's history says who), build_failed (a bug of "
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
    "audit_log_replayed_total",
    "Events taken from a local spool and handed on: capture (to the broker), delivery (to the "
    "publisher). Follows audit_log_spooled_total after an outage; flat while audit_log_spool_bytes "
    "is not 0: nobody replays, start the service or a worker on that host.",
    ("spool",),
)
delivered = Counter(
    "audit_log_delivered_total",
    "Events the publisher acknowledged as durable, by where they are: published (in the event "
    "log), spooled (on the publisher's disk: look at its regions). Flat while events are queued: "
    "no worker runs (manage.py audit_worker), or it cannot deliver.",
    ("status",),
)
dead_lettered = Counter(
    "audit_log_dead_lettered_total",
    "Events the publisher refused for good; kept in the dead-letter store of the worker's host. "
    "Read the reason with `manage.py audit_spool dead-letters`, fix it, then redeliver.",
)
delivery_failures = Counter(
    "audit_log_delivery_failures_total",
    "Deliveries that did not get through, by reason: unavailable (the publisher is away or busy), "
    "declined (it answers, but does not take this batch: the worker's log has the status). All are "
    "tried again from the spool; what stays declined for an hour goes to the dead letters.",
    ("reason",),
)
internal_errors = Counter(
    "audit_log_internal_errors_total",
    "Errors of the audit itself that were kept from the service, by place. Each is a bug: the log "
    "has the traceback.",
    ("place",),
)
added_seconds = _histogram(
    "audit_log_added_seconds",
    "What the audit took of a request's time, measured on one request in 64. Above 0.0005 at the "
    "99th percentile: the process is short of CPU, or its background thread is: lower "
    "MAX_BODY_BYTES, sample, or add processes.",
    (5e-06, 1e-05, 2e-05, 3e-05, 5e-05, 1e-4, 1.5e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1),
)
delivery_seconds = _histogram(
    "audit_log_delivery_seconds",
    "How long the publisher took for a batch, refusals and failures too. Near DELIVERY_TIMEOUT: it "
    "is overloaded; look at its own metrics, and add publishers.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
breaker_open = Gauge(
    "audit_log_breaker_open",
    "1 while the broker, or the publisher, is known to be away and is not asked; events wait in "
    "the spool. More than a few minutes: bring it back, or mend its address.",
    ("to",),
    across="livemax",
)
buffer_depth = Gauge(
    "audit_log_buffer_events",
    "Events in memory, waiting. Near BUFFER_SIZE: see audit_log_buffer_fill_ratio.",
    across="livesum",
)
buffer_fill = Gauge(
    "audit_log_buffer_fill_ratio",
    "How full the buffer is, by events or by bytes, whichever is more, as a share of 1; of several "
    "processes the fullest. From 0.8 on a warning is logged and the spool takes over; with "
    "OVERFLOW=drop events are about to be lost: raise BUFFER_SIZE or BUFFER_BYTES.",
    across="livemax",
)
spool_bytes = Gauge(
    "audit_log_spool_bytes",
    "Bytes in a local spool. At SPOOL_MAX_BYTES events are lost.",
    ("spool",),
    # One file, which every process of the host measures.
    across="mostrecent",
)
spool_fill = Gauge(
    "audit_log_spool_fill_ratio",
    "How full a local spool is, as a share of SPOOL_MAX_BYTES. From 0.8 on: bring back what is "
    "away (audit_log_breaker_open), or raise SPOOL_MAX_BYTES; at 1 events are lost.",
    ("spool",),
    across="mostrecent",
)
spool_oldest = Gauge(
    "audit_log_spool_oldest_timestamp_seconds",
    "When the oldest batch in a local spool was put there, in epoch seconds; 0 when it is empty. "
    "Its age is time() - x, where x > 0. An age that grows while nothing is away: a worker is "
    "missing, or a batch is declined again and again (the worker's log says why).",
    ("spool",),
    across="mostrecent",
)
dead_letters = Gauge(
    "audit_log_dead_letters",
    "Dead letters that wait for somebody, in the file of the worker's host or in the database. "
    "Above 0: read the reason in admin or with `manage.py audit_spool dead-letters`, mend it, then "
    "send them again, or delete them.",
    ("kept_in",),
    across="mostrecent",
)

if prometheus_client is not None and not _IN_FILES:
    prometheus_client.REGISTRY.register(_Collector())
