"""The ways of DELIVERY: what takes a batch from a service's background thread, and where it goes.

celery   the thread hands it to the Celery broker; a worker posts it to the publisher
kafka    the thread hands it to the Celery broker; a worker appends it to the event log by itself
direct   the thread posts it to the publisher; there is no broker and no worker
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .batch import Batch
from .conf import LoggingSettings, conf
from .delivery import Deliverer, PerProcess
from .exceptions import DeliveryUnavailable
from .outcome import Target
from .publisher_client import Publisher

logger = logging.getLogger(__name__)

#: The publisher's own way to the event log. By name, as the capture tier imports nothing of the
#: other tiers, and does not install what they need.
EVENT_LOG = "audit_publisher.in_process.EventLog"


def make_send(options: LoggingSettings = conf) -> Callable[[bytes, int], None]:
    """Return what hands a packed batch of so many events over; it raises when that fails.

    For background threads alone.
    """
    _flush_when_a_celery_child_ends()
    if options.DELIVERY == "direct":
        return DirectSend(options)
    # Not at the top: a service without Celery does not load it.
    from .celery import prepare, send_batch

    try:
        prepare()
    except Exception:
        # It says so with the first batch, which is spooled then.
        logger.debug("Celery is not ready to send", exc_info=True)
    return send_batch


def sends_beside(options: LoggingSettings = conf) -> bool:
    """Whether a builder process may hand batches over by itself.

    Not where the publisher is asked directly, as there is more to that than one attempt; nor where
    the broker is this process's own memory.
    """
    return options.DELIVERY != "direct" and not options.broker_url().startswith("memory:")


def make_target(options: LoggingSettings = conf) -> Target:
    """Return where this host's deliveries go.

    :raises DeliveryUnavailable: DELIVERY asks for what is not installed.
    """
    if options.DELIVERY != "kafka":
        return Publisher(options)
    problem = event_log_problem()
    if problem:
        raise DeliveryUnavailable(problem)
    module, _, name = EVENT_LOG.rpartition(".")
    made: Target = getattr(import_module(module), name)(options)
    return made


def event_log_problem() -> str:
    """Say why DELIVERY cannot be kafka in this installation; empty when it can."""
    from django.apps import apps

    app = EVENT_LOG.partition(".")[0]
    if not apps.is_installed(app):
        return (
            f"DELIVERY is kafka, which is {app}'s work. Add it to INSTALLED_APPS, and "
            "pip install 'django-api-audit[publisher,kafka]'."
        )
    try:
        import_module(EVENT_LOG.rpartition(".")[0])
    except ImportError as error:
        return f"DELIVERY is kafka, but {error}. pip install 'django-api-audit[publisher,kafka]'."
    return ""


class DirectSend:
    """Posts batches to the publisher from the process that captured them.

    It tries once, and waits no longer than it would for a broker: what is not taken is its
    caller's to spool and to send again.
    """

    def __init__(self, options: LoggingSettings) -> None:
        self._options = options
        self._deliverer = PerProcess(self._make)

    def _make(self) -> Deliverer:
        patience = self._options.BROKER_TIMEOUT
        publisher = Publisher(
            self._options,
            connect_timeout=patience,
            timeout=min(self._options.DELIVERY_TIMEOUT, 3 * patience),
        )
        deliverer = Deliverer(publisher, self._options)
        # Also where nothing waits yet: others leave batches here, or send letters again.
        deliverer.start()
        return deliverer

    def __call__(self, batch: bytes, count: int) -> None:
        """Post a batch.

        :raises AuditLoggingError: it was not taken.
        """
        self._deliverer().hand_over(Batch.from_record(batch, count))

    def close(self) -> None:
        """End this process's background work."""
        self._deliverer().stop()


def _flush_when_a_celery_child_ends() -> None:
    """A child of a Celery worker, the service's own or ours, ends without running exit hooks."""
    if "celery" not in sys.modules:
        return
    from celery.signals import worker_process_shutdown

    worker_process_shutdown.connect(
        celery_child_ends, weak=False, dispatch_uid="audit_logging.worker_process_shutdown"
    )


def celery_child_ends(**kwargs: Any) -> None:
    """Empty the buffer of a process that is about to end, and write its counts."""
    from . import metrics, transport

    if transport._transport is not None:
        transport._transport.shutdown()
    metrics.export()
