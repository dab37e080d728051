"""Celery's entry points, and what a worker process does at its start and end."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import shared_task
from celery.exceptions import Reject
from celery.signals import worker_init, worker_process_init, worker_process_shutdown

from . import metrics
from .celery import DELIVER
from .delivery import get_deliverer

logger = logging.getLogger(__name__)

REQUEUE_SECONDS = 1.0


@shared_task(name=DELIVER, ignore_result=True)
def deliver(payload: str, events: int) -> None:
    """Bring one batch of JSON lines to the publisher, or to a durable place of this host."""
    try:
        get_deliverer().deliver(payload)
    except Exception as error:
        # Celery acknowledges what fails, which would lose the batch. It goes back to the broker;
        # the pause keeps a worker that can do nothing else from spinning.
        logger.exception("%s events could neither be delivered nor kept; they are requeued", events)
        time.sleep(REQUEUE_SECONDS)
        raise Reject(error, requeue=True) from error


@worker_process_init.connect(dispatch_uid="audit_logging.worker_process_init")
def _child_started(**kwargs: Any) -> None:
    # What an earlier run left in the spool goes on its way without waiting for new traffic.
    get_deliverer().start()


@worker_init.connect(dispatch_uid="audit_logging.worker_init")
def _worker_started(sender: Any = None, **kwargs: Any) -> None:
    # Pools without child processes (threads, solo) send no worker_process_init.
    pool = getattr(sender, "pool_cls", None)
    if "prefork" not in str(pool):
        get_deliverer().start()


@worker_process_shutdown.connect(dispatch_uid="audit_logging.worker_process_shutdown")
def _child_ends(**kwargs: Any) -> None:
    # A Celery child ends without running exit hooks.
    from . import transport

    if transport._transport is not None:
        transport._transport.flush()
    metrics.export()
