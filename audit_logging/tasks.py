"""Celery's entry points, and what a worker process does at its start and end."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Reject
from celery.signals import worker_init, worker_process_init, worker_process_shutdown

from . import tracing
from .celery import APP_NAME, DELIVER
from .delivery import get_deliverer
from .handover import celery_child_ends

logger = logging.getLogger(__name__)

REQUEUE_SECONDS = 1.0

#: Whether this process, or the one it was forked from, is a worker of deliveries. A service's own
#: workers import this module too, and leave the spools alone.
_ours = False


@shared_task(name=DELIVER, ignore_result=True, bind=True)
def deliver(self: Task, payload: str, events: int) -> None:
    """Bring one batch to the publisher, or to a durable place of this host.

    :param payload: the batch in base64; an older version sent JSON lines as they are.
    :param events: how many it holds.
    """
    try:
        with tracing.span("receive", kind="consumer", parent=_sent_along(self), events=events):
            get_deliverer().deliver(payload, events)
    except Exception as error:
        # Celery acknowledges what fails, which would lose the batch. It goes back to the broker;
        # the pause keeps a worker that can do nothing else from spinning.
        logger.exception("%s events could neither be delivered nor kept; they are requeued", events)
        time.sleep(REQUEUE_SECONDS)
        raise Reject(error, requeue=True) from error


def _sent_along(task: Task) -> dict[str, Any]:
    return {name: task.request.get(name) for name in ("traceparent", "tracestate")}


@worker_init.connect(dispatch_uid="audit_logging.worker_init")
def _worker_started(sender: Any = None, **kwargs: Any) -> None:
    global _ours
    _ours = getattr(getattr(sender, "app", None), "main", None) == APP_NAME
    # Pools without child processes (threads, solo) send no worker_process_init.
    if _ours and "prefork" not in str(getattr(sender, "pool_cls", None)):
        get_deliverer().start()


@worker_process_init.connect(dispatch_uid="audit_logging.worker_process_init")
def _child_started(**kwargs: Any) -> None:
    # What an earlier run left in the spool goes on its way without waiting for new traffic.
    if _ours:
        get_deliverer().start()


worker_process_shutdown.connect(
    celery_child_ends, weak=False, dispatch_uid="audit_logging.worker_process_shutdown"
)
