"""Gunicorn's configuration for the publisher: ``gunicorn -c python:audit_publisher.gunicorn …``.

Gunicorn drops header names with an underscore, because ``WM_CONSUMER.ID`` and ``WM-CONSUMER.ID``
become one name for the application. Clients send both, so the ones we know are let through; a
request that carries both spellings arrives with one comma-merged value, which the publisher
refuses. Gunicorn passes them only from trusted peers, so every peer is trusted with exactly these
names and with nothing else (no scheme headers, no SCRIPT_NAME).
"""

from __future__ import annotations

import os
from typing import Any

from audit_publisher.names import UNDERSCORE_HEADERS


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


wsgi_app = os.environ.get("GUNICORN_APP", "config.wsgi:application")
bind = os.environ.get("GUNICORN_BIND", "127.0.0.1:8001")
workers = _number("GUNICORN_WORKERS", 2)
threads = _number("GUNICORN_THREADS", 8)
worker_class = "gthread"
# Above what two regions and the spool may take one after the other.
timeout = _number("GUNICORN_TIMEOUT", 30)
graceful_timeout = _number("GUNICORN_GRACEFUL_TIMEOUT", 20)
# Longer than proxies keep an idle connection, so that they close it first.
keepalive = _number("GUNICORN_KEEPALIVE", 75)
# Slow leaks in any library end with the worker; jitter keeps workers from ending together.
max_requests = _number("GUNICORN_MAX_REQUESTS", 200_000)
max_requests_jitter = max_requests // 10
limit_request_fields = 100
limit_request_field_size = 8190
limit_request_line = 4094

header_map = "drop"
forwarder_headers = ",".join(UNDERSCORE_HEADERS)
forwarded_allow_ips = "*"
secure_scheme_headers: dict[str, str] = {}

# Newer gunicorns open one for each user in its home, so that two services would share it.
control_socket_disable = True

accesslog = os.environ.get("GUNICORN_ACCESS_LOG") or None
errorlog = "-"


def post_worker_init(worker: Any) -> None:
    """Probe regions and drain the spool from the start, not from the first request on."""
    from audit_publisher.publish import get_publisher

    get_publisher().start()


def worker_exit(server: Any, worker: Any) -> None:
    """Let go of the event log's connections; nothing waits in them, requests have ended."""
    from audit_publisher import eventlog, publish

    publish.reset()
    eventlog.close_regions()


def child_exit(server: Any, worker: Any) -> None:
    """Tell the metrics of all processes that one has ended."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)
