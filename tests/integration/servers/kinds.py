"""The project behind each kind of server, with the middleware or without."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration import nginx
from tests.integration.servers import records, wire
from tests.services import processes
from tests.services.base import HOST, Service
from tests.services.errors import Unavailable
from tests.services.install import Debian, Program, on_path

PROJECT = "tests.integration.servers.project"
NGINX = Program("nginx", on_path("nginx"), Debian(("nginx-light",)))


@dataclass(frozen=True)
class Kind:
    """One way to serve the project.

    :ivar forks: there is a master that starts workers, and starts them again.
    :ivar any_method: methods that nobody knows reach the application; uvicorn with httptools, which
        its worker has, answers them by itself.
    """

    name: str
    program: str
    asgi: bool = False
    arguments: tuple[str, ...] = ()
    proxied: bool = False
    forks: bool = True
    any_method: bool = True

    def __str__(self) -> str:
        return self.name


def _gunicorn(name: str, *arguments: str, asgi: bool = False, proxied: bool = False) -> Kind:
    any_method = arguments[:2] != _UVICORN_WORKER
    return Kind(name, "gunicorn", asgi, arguments, proxied, any_method=any_method)


_THREADS = ("-k", "gthread", "--threads", "4")
_UVICORN_WORKER = ("-k", "uvicorn_worker.UvicornWorker")

SYNC = _gunicorn("gunicorn-sync", "-k", "sync")
SYNC_PRELOAD = _gunicorn("gunicorn-sync-preload", "-k", "sync", "--preload")
GTHREAD = _gunicorn("gunicorn-gthread", *_THREADS)
GTHREAD_PRELOAD = _gunicorn("gunicorn-gthread-preload", *_THREADS, "--preload")
ASGI_WORKER = _gunicorn("gunicorn-asgi", "-k", "asgi", asgi=True)
UVICORN_WORKER = _gunicorn("gunicorn-uvicorn", *_UVICORN_WORKER, asgi=True)
UVICORN_WORKER_PRELOAD = _gunicorn(
    "gunicorn-uvicorn-preload", *_UVICORN_WORKER, "--preload", asgi=True
)
UVICORN = Kind("uvicorn", "uvicorn", asgi=True, forks=False)
UWSGI = Kind("uwsgi", "uwsgi")
UWSGI_LAZY = Kind("uwsgi-lazy-apps", "uwsgi", arguments=("--lazy-apps",))
NGINX_GTHREAD = _gunicorn("nginx-gthread", *_THREADS, proxied=True)
NGINX_UVICORN = Kind("nginx-uvicorn", "uvicorn", asgi=True, proxied=True, forks=False)

KINDS = (
    SYNC,
    SYNC_PRELOAD,
    GTHREAD,
    GTHREAD_PRELOAD,
    ASGI_WORKER,
    UVICORN_WORKER,
    UVICORN_WORKER_PRELOAD,
    UVICORN,
    UWSGI,
    UWSGI_LAZY,
    NGINX_GTHREAD,
    NGINX_UVICORN,
)


class Served(Service):
    """The project behind one kind of server, in a folder of its own.

    :param audited: with the middleware.
    :param options: options of the audit, on top of those in the project's settings.
    """

    env_name = "AUDIT_TEST_NO_SUCH_ADDRESS"
    ready_within = 60.0

    def __init__(
        self,
        kind: Kind,
        *,
        audited: bool = True,
        workers: int = 1,
        gzip: str = "inside",
        options: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(own=True)
        self.kind = kind
        self.audited = audited
        self.name = f"{kind}-{'audited' if audited else 'bare'}"
        self._workers = workers
        self._env = {
            "SERVERS_AUDITED": "1" if audited else "0",
            "SERVERS_GZIP": gzip,
            "SERVERS_OPTIONS": json.dumps(dict(options or {})),
            "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings",
            "PYTHONPATH": str(processes.REPOSITORY),
            "PYTHONWARNINGS": "ignore",
            # Many small allocations' arenas would look like a leak of memory maps.
            "PYTHONUNBUFFERED": "1",
            **(env or {}),
        }
        self._inner_port = 0

    # -- life -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def folder(self) -> Path:
        """The run's folder; it holds the project's database, its notes and what was captured."""
        assert self.root is not None
        return self.root

    def install(self) -> None:
        if self.kind.proxied:
            NGINX.ensure()
        if self.kind.program == "uwsgi" and not _uwsgi().exists():
            raise Unavailable(
                "uWSGI", "it is not installed", "pip install -r requirements/dev.lock"
            )

    def prepare(self) -> None:
        self._inner_port = processes.free_port() if self.kind.proxied else self.port
        self._env["SERVERS_ROOT"] = str(self.folder)

    def launch(self) -> None:
        if self.kind.proxied:
            self._proxy()
        self.spawn(self._command(), env=self._env)

    def ask(self) -> None:
        processes.knock(self._inner_port)
        processes.knock(self.port)

    def _command(self) -> list[str]:
        address = f"{HOST}:{self._inner_port}"
        application = f"{PROJECT}.{'asgi' if self.kind.asgi else 'wsgi'}:application"
        if self.kind.program == "gunicorn":
            common = ["-b", address, "-w", str(self._workers), "--graceful-timeout", "15"]
            common += ["--no-control-socket", "--timeout", "60"]
            return [sys.executable, "-m", "gunicorn", *common, *self.kind.arguments, application]
        if self.kind.program == "uvicorn":
            host, port = address.split(":")
            common = ["--host", host, "--port", port, "--no-access-log", "--http", "h11"]
            return [sys.executable, "-m", "uvicorn", *common, *self.kind.arguments, application]
        common = ["--master", "--http-socket", address, "--processes", str(self._workers)]
        common += ["--module", application, "--virtualenv", sys.prefix, "--enable-threads"]
        # By die-on-term it would leave out the exit handlers of workers in a request.
        common += ["--hook-master-start", "unix_signal:15 gracefully_kill_them_all"]
        common += ["--threads", "4", "--thunder-lock"]
        return [str(_uwsgi()), *common, *self.kind.arguments]

    def _proxy(self) -> None:
        config = self.folder / "nginx.conf"
        config.write_text(
            nginx.config(
                self.folder,
                self.port,
                self._inner_port,
                http="underscores_in_headers on;",
                location="proxy_request_buffering off; proxy_buffering off;",
            )
        )
        self.spawn([NGINX.ensure(), "-c", config, "-p", self.folder])

    # -- looking --------------------------------------------------------------------------

    def send(self, sent: bytes) -> bytes:
        """Send a request, and return the raw answer."""
        return wire.exchange(self.port, sent)

    def get(self, target: str) -> wire.Answer:
        """The answer to a simple request."""
        return wire.parse(self.send(wire.message("GET", target)))

    def notes(self) -> list[str]:
        """What the application wrote down, see project/apps.py."""
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def records(self) -> list[dict[str, Any]]:
        """Every event that reached the broker or the spool so far."""
        return records.everywhere(self.folder / "capture")

    def open_gate(self, name: str) -> None:
        """Let the views that wait at a gate of this name answer."""
        (self.folder / name).touch()

    def descriptors(self) -> list[str]:
        """What every process of the server has open: files, sockets, pipes."""
        assert self.pid is not None
        return [
            target
            for pid in [self.pid, *processes.descendants(self.pid)]
            for target in _open_in(pid)
        ]

    def tell(self, number: int) -> None:
        """Send the server's first process a signal."""
        self._processes[-1].send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the server a signal and wait until it has ended; return its exit code."""
        self.tell(number)
        return self._processes[-1].wait(30)


def _open_in(pid: int) -> Iterable[str]:
    folder = Path(f"/proc/{pid}/fd")
    try:
        links = list(folder.iterdir())
    except OSError:
        return
    for link in links:
        try:
            yield os.readlink(link)  # noqa: PTH115 - sockets and pipes are no paths
        except OSError:
            continue


def _uwsgi() -> Path:
    return Path(sys.executable).parent / "uwsgi"


def wait_for_exit(pid: int, timeout: float = 20.0) -> None:
    """Return when a process is gone."""
    deadline = time.monotonic() + timeout
    while Path(f"/proc/{pid}/stat").exists():
        if time.monotonic() > deadline:
            raise AssertionError(f"process {pid} did not end within {timeout:g} s")
        time.sleep(0.01)
