"""The processes of the embedded system, as anybody would start them, and how each says ready."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .prepare import CONSUMER, KEY_VERSION, ROOT, Places, shown
from .processes import Program, clean_environ, log_says

#: Each in its own project, as its settings say.
_DOCTOR = ("-m", "django", "audit_doctor", "--json")
#: No talking to other workers: it starts sooner.
_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers listen."""

    service_port: int
    publisher_port: int

    @property
    def service(self) -> str:
        """The example service."""
        return f"http://127.0.0.1:{self.service_port}"

    @property
    def publisher(self) -> str:
        """The publisher, the admin and the API's documentation."""
        return f"http://127.0.0.1:{self.publisher_port}"


class Programs:
    """Makes the demo's programs, ranked so that what makes work stops first, then what does it.

    :param places: the demo's folder.
    :param addresses: where the servers listen.
    :cvar pool: Celery's pool. Threads start and stop sooner than processes.
    """

    pool = "threads"

    def __init__(self, places: Places, addresses: Addresses) -> None:
        self.places = places
        self.addresses = addresses

    def project_environ(self) -> dict[str, str]:
        """The environment of the publisher's and the sink's processes."""
        return clean_environ(
            {
                "DJANGO_SETTINGS_MODULE": "config.settings",
                "AUDIT_DATA_DIR": str(self.places.audit),
                # People watch: small batches soon, rather than large ones later.
                "AUDIT_SINK_FLUSH_SECONDS": "1",
            }
        )

    def service_environ(self) -> dict[str, str]:
        """The environment of the example service and of the worker that delivers its events."""
        return clean_environ(
            {
                "DJANGO_SETTINGS_MODULE": "examples.inventory_api.settings",
                "INVENTORY_BIND": f"127.0.0.1:{self.addresses.service_port}",
                "AUDIT_LOGGING_DATA_DIR": str(self.places.service),
                "AUDIT_LOGGING_PUBLISHER_URL": self.addresses.publisher,
                "AUDIT_LOGGING_CONSUMER_ID": CONSUMER,
                "AUDIT_LOGGING_KEY_VERSION": KEY_VERSION,
                "AUDIT_LOGGING_PRIVATE_KEY_PATH": str(self.places.private_key),
            }
        )

    def database(self, password: str) -> Program:
        """Sets up the project's database, and ends."""
        extra = {"DEMO_PUBLIC_KEY": str(self.places.public_key), "DEMO_PASSWORD": password}
        return _python("database", self.project_environ() | extra, "-m", "examples.demo.prepare")

    def doctors(self) -> tuple[Program, Program]:
        """Examine the configuration, of the audit and of the service, and end."""
        return (
            _python("doctor-audit", self.project_environ(), *_DOCTOR),
            _python("doctor-service", self.service_environ(), *_DOCTOR),
        )

    def publisher(self) -> Program:
        """The publisher, which also serves the admin."""
        return _python(
            "publisher",
            self.project_environ(),
            *("-m", "gunicorn", "-c", "python:audit_publisher.gunicorn"),
            *("--bind", f"127.0.0.1:{self.addresses.publisher_port}"),
            ready=_answers(self.addresses.publisher_port, "/health/ready"),
            rank=2,
        )

    def sink(self) -> Program:
        """The worker that moves events from the event log to the buckets."""
        log = self.places.logs / "sink.log"
        return _python(
            "sink",
            self.project_environ(),
            *("-m", "celery", "-A", "config", *self._worker("sink")),
            ready=log_says(log, " ready."),
            rank=1,
        )

    def beat(self) -> Program:
        """Gives the sink its tasks, by the schedule that admins edit."""
        log = self.places.logs / "beat.log"
        return _python(
            "beat",
            self.project_environ(),
            *("-m", "celery", "-A", "config", "beat", "--pidfile=", "-l", "INFO"),
            ready=log_says(log, "beat: Starting"),
        )

    def delivery(self) -> Program:
        """The worker that delivers the example service's events to the publisher."""
        log = self.places.logs / "delivery.log"
        return _python(
            "delivery",
            self.service_environ(),
            *("-m", "celery", "-A", "audit_logging", *self._worker("delivery")),
            ready=log_says(log, " ready."),
            rank=1,
        )

    def _worker(self, name: str) -> tuple[str, ...]:
        options = ("--pool", self.pool, "-c", "2", "-l", "INFO", "-n", f"{name}@%h")
        return ("worker", *options, *_QUIET)

    def service(self) -> Program:
        """The example service."""
        return _python(
            "inventory-api",
            self.service_environ(),
            *("-m", "gunicorn", "-c", "examples/inventory_api/gunicorn.conf.py"),
            "examples.inventory_api.wsgi",
            ready=_answers(self.addresses.service_port, "/health"),
        )


def _python(
    name: str,
    environ: Mapping[str, str],
    *arguments: str,
    ready: Callable[[], bool] = lambda: True,
    rank: int = 0,
) -> Program:
    return Program(name, [sys.executable, *arguments], environ, ready, folder=ROOT, rank=rank)


def _answers(port: int, path: str) -> Callable[[], bool]:
    def ask() -> bool:
        # Not urllib: a proxy that the shell names would get the question.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        finally:
            connection.close()

    return ask


def manage_command(places: Places) -> str:
    """How a person runs the project's command line against the demo's data."""
    return f"AUDIT_DATA_DIR={shown(places.audit)} {shown(Path(sys.executable))} manage.py"
