"""Gunicorn's configuration for the publisher: ``gunicorn -c python:audit_publisher.gunicorn …``.

Its workers are event loops (see :mod:`.http.worker`): a slow client costs a socket, not a thread.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

from audit_logging.options import AppSettings, option


class ServerSettings(AppSettings):
    """Options of the publisher's HTTP server."""

    prefix = "GUNICORN"
    foreign_prefixes = ("GUNICORN_CMD_ARGS",)
    in_django_settings = False
    about = (
        "How `gunicorn -c python:audit_publisher.gunicorn` serves the publisher and the admin. "
        "Environment variables only; gunicorn's own `GUNICORN_CMD_ARGS` works as ever."
    )

    APP: str = option(
        "config.asgi:application", "The ASGI application; see `audit_publisher.asgi.front`."
    )
    BIND: str = option("127.0.0.1:8001", "Address and port to listen on.")
    WORKERS: int = option(2, "Processes.", minimum=1)
    TIMEOUT: int = option(
        30,
        "A worker that is silent for so long is killed. Above what two regions and the spool may "
        "take one after the other.",
        unit="seconds",
        minimum=1,
    )
    READ_TIMEOUT: float = option(
        10,
        "How long a client may take to send one request, with its body, and to read the answer. "
        "A slower one is cut off, or told so with 408.",
        unit="seconds",
        minimum=0.1,
    )
    GRACEFUL_TIMEOUT: int = option(
        20, "What requests in progress get at a stop.", unit="seconds", minimum=0
    )
    KEEPALIVE: int = option(
        75,
        "Idle connections are kept so long: longer than proxies do, so that they close first.",
        unit="seconds",
        minimum=0,
    )
    MAX_REQUESTS: int = option(
        0,
        "A worker is replaced after so many requests, should some library leak; 0: never. Each "
        "leaves files of its metrics behind.",
        minimum=0,
    )
    ACCESS_LOG: str = option("", "File of the access log; `-` is standard output. Empty: none.")


#: How the names of folders begin in which workers count together.
_METRICS = "audit-metrics-"
#: The file in them that is locked while they are in use.
_IN_USE = "in-use"
#: Files that a worker may open, if the system lets it: connections for the most part.
_FILES = 16_384

server = ServerSettings()
server.enforce()

wsgi_app = server.APP
bind = server.BIND
workers = server.WORKERS
worker_class = "audit_publisher.http.worker.Worker"
timeout = server.TIMEOUT
graceful_timeout = server.GRACEFUL_TIMEOUT
keepalive = server.KEEPALIVE
max_requests = server.MAX_REQUESTS
# Jitter keeps workers from ending together.
max_requests_jitter = max_requests // 10
# Newer gunicorns open one for each user in its home, so that two services would share it.
control_socket_disable = True

accesslog = server.ACCESS_LOG or None
errorlog = "-"


def on_starting(arbiter: Any) -> None:
    """Let the workers have files for many connections, and count together, so that /metrics
    answers for all of them."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(most, _FILES)
    if files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    if server.WORKERS > 1 and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        # In memory: with its pages on a disk that is full, to count is to die (SIGBUS).
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108
        _remove_left(Path(memory))
        folder = _make_folder(memory)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        atexit.register(_remove, folder, os.getpid())


def _make_folder(parent: str) -> str:
    """Make a folder for metrics that is seen to be in use while one process of ours lives.

    By a lock, which workers inherit: process ids mean nothing to who shares the memory from another
    container.
    """
    folder = Path(tempfile.mkdtemp(prefix=_METRICS, dir=parent))
    made = folder / f".{_IN_USE}"
    # Open until the process ends.
    lock = os.open(made, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made.rename(folder / _IN_USE)
    return str(folder)


def _remove_left(parent: Path) -> None:
    """Remove this user's folders of servers that were killed."""
    for folder in parent.glob(f"{_METRICS}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / _IN_USE, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            # Somebody else's, or just being made.
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(lock)


def _remove(folder: str, pid: int) -> None:
    # A worker is forked with the arbiter's exit hooks; the folder is the arbiter's.
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


def post_worker_init(worker: Any) -> None:
    """Be ready before the first request: keys, routes, the schema's id and the regions' state."""
    from audit_publisher.http.warm import warm_up

    warm_up()
    # What is there now stays. To go through all of it again and again, looking for garbage, would
    # take a fifth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def worker_exit(server: Any, worker: Any) -> None:
    """Let go of the event log's connections; nothing waits in them, requests have ended."""
    from audit_publisher import eventlog, publish
    from audit_publisher.operating.reports import reporter

    publish.reset()
    reporter.leave()
    eventlog.close_regions()


def child_exit(server: Any, worker: Any) -> None:
    """Tell the metrics of all processes that one has ended."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)
