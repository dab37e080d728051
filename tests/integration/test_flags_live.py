"""Flags in running services: changed, taken up by each process, told, kept without their source."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_host_suites import SEVERAL
from tests.services.processes import free_port
from tests.support import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORKERS = 2

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).parent
SECRET_KEY = "not a secret"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["audit_logging"]
MIDDLEWARE = ["audit_logging.middleware.AuditMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}
AUDIT_LOGGING = {"SERVICE_NAME": "shop"}
"""

URLS = """
import os
from django.http import JsonResponse
from django.urls import path
from audit_logging.flags import shared

def state(request):
    return JsonResponse({"pid": os.getpid(), "enabled": shared().policy.enabled})

urlpatterns = [path("state", state)]
"""

WSGI = """
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
"""


class Program:
    """A gunicorn of two workers, preloaded; ends with the test."""

    def __init__(self, folder: Path, application: str, environment: dict[str, str]) -> None:
        self.folder, self.application, self.environment = folder, application, environment
        self.port = free_port()
        self.log = folder / f"{application}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--preload", "-w", str(WORKERS), "--threads",
                 "2", "--no-control-socket", "-b", f"127.0.0.1:{self.port}", self.application],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=10
            ) as answer:
                return json.load(answer)
        except OSError:
            return None


class World:
    """A service of two workers, and where its flags come from."""

    def __init__(self, source: str, folder: Path, *, several: bool = False) -> None:
        host = folder / "host"
        host.mkdir()
        for name, text in (("settings.py", SETTINGS), ("urls.py", URLS), ("app.py", WSGI)):
            (host / name).write_text(text)
        if several:
            (host / "settings.py").write_text(SETTINGS + SEVERAL)
        base = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AUDIT", "DJANGO", "PYTEST", "PROMETHEUS"))
        }
        self.publisher: Program | None = None
        environment = base | {
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": f"{host}{os.pathsep}{ROOT}",
            "AUDIT_LOGGING_FLAGS_SOURCE": source,
            "AUDIT_LOGGING_DATA_DIR": str(folder / "capture"),
        }
        if source == "publisher":
            central = base | {
                "PYTHONPATH": str(ROOT),
                "DJANGO_SETTINGS_MODULE": "config.settings",
                "AUDIT_DATA_DIR": str(folder),
                "AUDIT_PUBLISHER_SIGNATURE": "off",
            }
            self.publisher = Program(folder, "config.wsgi", central)
            environment["AUDIT_LOGGING_PUBLISHER_URL"] = f"http://127.0.0.1:{self.publisher.port}"
            self._migrate(central)
            (self.database,) = folder.glob("*.sqlite3")
            self.publisher.start()
        else:
            self._migrate(environment, "other" if several else "default")
            self.database = host / ("other.sqlite3" if several else "db.sqlite3")
        self.service = Program(host, "app", environment)

    @staticmethod
    def _migrate(environment: dict[str, str], database: str = "default") -> None:
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "-v0", "--database", database],
            env=environment,
            check=True,
        )

    def close(self) -> None:
        self.service.stop()
        if self.publisher is not None:
            self.publisher.stop()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=20)) as connection:
            rows = connection.execute(statement).fetchall()
            connection.commit()
            return rows

    def states(self) -> dict[int, bool]:
        """What each worker has in force, once all have answered."""
        found: dict[int, bool] = {}

        def all_answered() -> bool:
            answer = self.service.get("/state")
            if answer is not None:
                found[answer["pid"]] = answer["enabled"]
            return len(found) == WORKERS

        eventually(all_answered, 30, lambda: f"{found}\n{self.service.log.read_text()}")
        return found

    def all_are(self, enabled: bool) -> bool:
        return list(self.states().values()) == [enabled] * WORKERS

    def told(self) -> dict[int, str]:
        """Which flags each process has told that it has."""
        return dict(self.sql("SELECT pid, flags_etag FROM audit_logging_captureprocess"))

    def away(self) -> None:
        """The source does not answer any more."""
        if self.publisher is not None:
            self.publisher.stop()
        else:
            self.database.rename(self.database.with_suffix(".away"))
            self.database.write_bytes(b"no database at all " * 1000)

    def back(self) -> None:
        if self.publisher is not None:
            self.publisher.start()
        else:
            self.database.with_suffix(".away").rename(self.database)


@pytest.fixture(params=["database", "one database of several", "publisher"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    source = "publisher" if request.param == "publisher" else "database"
    made = World(source, tmp_path, several="several" in request.param)
    try:
        yield made
    finally:
        made.close()


def test_flags_are_taken_up_told_and_kept(world: World) -> None:
    world.service.start()
    log = world.service.log.read_text
    eventually(lambda: world.all_are(True), 30, log)
    world.sql(
        "INSERT INTO audit_logging_captureflags (service_name, enabled, response_bodies, "
        "sample_rate, updated_at) VALUES ('shop', 0, 1, 1.0, '2026-01-01 00:00:00')"
    )
    eventually(lambda: world.all_are(False), 20, log)
    workers = set(world.states())

    # All have told, and the process that only preloads the application is not among them.
    def one_tag() -> bool:
        told = world.told()
        return set(told) == workers and len(set(told.values())) == 1 and all(told.values())

    eventually(one_tag, 20, lambda: f"{workers}: {world.told()}")
    (tag,) = set(world.told().values())

    # Without their source they stay, over a restart too, and from the first request on.
    world.away()
    assert world.all_are(False)
    world.service.stop()
    world.service.start()
    assert world.all_are(False)

    world.back()
    world.sql("UPDATE audit_logging_captureflags SET enabled = 1")
    eventually(lambda: world.all_are(True), 30, log)
    now = set(world.states())
    eventually(
        lambda: {world.told().get(pid) for pid in now}.isdisjoint({tag, None, ""}),
        20,
        lambda: f"{now}: {world.told()}",
    )
