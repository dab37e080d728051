"""The Celery app of deliveries, for every audited service: ``celery -A audit_logging worker``.

It stands beside the service's own Celery app, if it has one, and never replaces it: it has its
own broker setting, and is not made the current app.
"""

from __future__ import annotations

import base64
import os
import threading
from contextlib import suppress
from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from . import tracing
from .conf import conf
from .forks import within

# The durable local broker is spelled durable:///path in any URL.
TRANSPORT_ALIASES.setdefault("durable", "audit_logging.broker:Transport")

APP_NAME = "audit_logging"
DELIVER = "audit_logging.deliver"


def configure(app: Celery, broker_url: str, visibility: float | None = None) -> Celery:
    """Give `app` what every tier's Celery app has: at-least-once tasks over `broker_url`.

    :param visibility: seconds after which an unfinished task is handed out again.
    """
    app.conf.update(
        broker_url=broker_url,
        broker_connection_retry_on_startup=True,
        # For ever: by default a worker ends when its broker was away for an hour.
        broker_connection_max_retries=None,
        broker_transport_options=transport_options(broker_url, visibility),
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # A task is acknowledged when it is done, so that a killed worker loses none.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # A busy host takes more than the default 4 s to start ten processes, and Celery then
        # kills them, again and again.
        worker_proc_alive_timeout=60.0,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        # Broadcasts need a broker that fans out; nothing here uses them.
        worker_enable_remote_control=not broker_url.startswith("durable:"),
        enable_utc=True,
    )
    return app


def transport_options(broker_url: str, visibility: float | None = None) -> dict[str, Any]:
    """Return kombu's options for a broker: when an unfinished task is handed out again.

    :param visibility: after how many seconds; RabbitMQ knows by itself.
    """
    if broker_url.startswith("durable:"):
        return {"visibility_timeout": visibility or 60, "polling_interval": 0.1}
    if broker_url.startswith("redis"):
        return {
            "visibility_timeout": visibility or 300,
            "socket_keepalive": True,
            # Looks every ten seconds for what dead workers left; by default every hundred.
            "unacked_restore_throttle": 1,
        }
    if broker_url.startswith("amqp"):
        return {"confirm_publish": True}
    return {}


def visibility() -> float:
    """Seconds until a dead worker's batch is handed out again.

    Twice what the longest delivery takes, as a batch may wait behind another in a worker's hands:
    any sooner, a slow publisher would get everything twice.
    """
    tries = 1 + conf.DELIVERY_RETRIES
    # For each a connection, an answer and the pause after it.
    return max(60.0, 2 * tries * (3.0 + conf.DELIVERY_TIMEOUT + 2.0))


def make_app() -> Celery:
    """Return the deliveries' app by the settings in force."""
    app = Celery(APP_NAME, set_as_current=False)
    configure(app, conf.broker_url(), visibility())
    app.conf.task_default_queue = conf.CELERY_QUEUE
    app.conf.include = ["audit_logging.tasks"]
    return app


if os.environ.get("DJANGO_SETTINGS_MODULE"):
    # `celery -A audit_logging` imports this before anything has set Django up.
    import django
    from django.apps import apps

    if not apps.apps_ready and not apps.loading:
        django.setup()

app = make_app()


class _Sender:
    """One thread's way to the broker: an app and a connection that nobody else uses.

    Not Celery's pools: kombu keeps them for the whole process by the broker's address, and a
    forked child has them as they were: with a connection that a thread of its parent was using,
    and that nobody gives back.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._app = _patient_for_moments(make_app())
        self._connection = self._app.connection_for_write()
        self._producer = self._app.amqp.Producer(self._connection, auto_declare=False)

    def send(self, payload: str, count: int) -> None:
        self._app.send_task(
            DELIVER,
            args=(payload, count),
            queue=conf.CELERY_QUEUE,
            headers=tracing.headers(),
            producer=self._producer,
            retry=False,
            ignore_result=True,
        )

    def close(self) -> None:
        with suppress(Exception):
            self._connection.release()


_threads = threading.local()
#: Of a parent process: left alone, as closing them would tell the broker so in its name.
_inherited: list[_Sender] = []


def send_batch(batch: bytes, count: int) -> None:
    """Hand a batch (see batch.py) to the broker; for background threads only.

    :raises Exception: whatever the broker's client raises; the batch was not accepted.
    """
    payload = base64.b64encode(batch).decode("ascii")
    with within:
        sender: _Sender | None = getattr(_threads, "sender", None)
        if sender is not None and sender.pid != os.getpid():
            _inherited.append(sender)
            sender = None
        if sender is None:
            sender = _threads.sender = _Sender()
        try:
            sender.send(payload, count)
        except Exception:
            # Nobody knows in what state its connection is.
            _threads.sender = None
            sender.close()
            raise


def prepare() -> None:
    """Import what sending needs, and connect to nothing.

    At the start: done with the first batch, an import may be under way when the service forks, and
    a child waits for ever for a module that a thread of its parent was importing.
    """
    from celery.app import events  # noqa: F401
    from celery.events import dispatcher, receiver  # noqa: F401

    app = make_app()
    with app.connection_for_write() as connection:
        connection.get_transport_cls()
        app.amqp.Producer(connection, auto_declare=False)
    # Every task that is sent has a result to be asked for, though nobody asks.
    app.AsyncResult("none", backend=app.backend)


def forget_connection() -> None:
    """Close this thread's connection to the broker; the next batch opens one anew. For tests."""
    sender: _Sender | None = getattr(_threads, "sender", None)
    _threads.sender = None
    if sender is not None:
        sender.close()


def _patient_for_moments(app: Celery) -> Celery:
    """Give `app` little patience: a broker that is down holds a plain Celery client for seconds."""
    timeout = conf.BROKER_TIMEOUT
    options = dict(app.conf.broker_transport_options)
    if conf.broker_url().startswith("redis"):
        options |= {
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
            "retry_on_timeout": False,
        }
    elif conf.broker_url().startswith("amqp"):
        options |= {"connect_timeout": timeout, "read_timeout": timeout * 3}
    # One try: the breaker above decides when the next is due.
    options |= {"max_retries": 0, "interval_start": 0, "interval_step": 0}
    app.conf.update(broker_transport_options=options, broker_connection_timeout=timeout)
    return app
