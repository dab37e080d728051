"""DELIVERY = "direct" under a real server: forked workers post by themselves, through an outage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.services.processes import free_port
from tests.support import eventually
from tests.unit.audit_logging.test_delivery import Script, script, server

__all__ = ["script", "server"]

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]

SERVICE = """
import os, sys
from django.conf import settings
settings.configure(
    ROOT_URLCONF=__name__, SECRET_KEY="x", ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.contenttypes", "audit_logging"],
    MIDDLEWARE=["audit_logging.middleware.AuditMiddleware"],
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DELIVERY": "direct", "FLAGS_SOURCE": "settings",
                   "DEAD_LETTERS": "file"},
)
from django.core.wsgi import get_wsgi_application
application = get_wsgi_application()
from django.http import JsonResponse
from django.urls import path

def item(request, pk):
    loaded = sorted({"celery", "kombu"} & set(sys.modules))
    return JsonResponse({"pid": os.getpid(), "loaded": loaded})

urlpatterns = [path("items/<int:pk>", item)]
"""


def paths(script: Script) -> set[str]:
    return {json.loads(line).get("path") for line in script.stored} - {None}


@pytest.mark.parametrize("preload", [True, False])
def test_every_request_arrives_through_an_outage_and_a_stop(
    script: Script, server: Any, tmp_path: Path, preload: bool
) -> None:
    (tmp_path / "direct_service.py").write_text(SERVICE)
    port = free_port()
    log = tmp_path / "service.log"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("AUDIT_", "DJANGO_"))} | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}",
        "AUDIT_LOGGING_DATA_DIR": str(tmp_path / "data"),
        "AUDIT_LOGGING_PUBLISHER_URL": f"http://127.0.0.1:{server.server_port}",
        "AUDIT_LOGGING_SHUTDOWN_SECONDS": "20",
    }
    gunicorns = []

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            gunicorns.append(subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "-w", "2", "-k", "gthread"),
                    *("--threads", "2", *(["--preload"] if preload else [])),
                    *("-b", f"127.0.0.1:{port}", "direct_service:application"),
                ],
                env=environ, cwd=tmp_path, stdout=out, stderr=out,
            ))  # fmt: skip
        return gunicorns[-1]

    def ask(n: int) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/items/{n}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def answers() -> bool:
        try:
            ask(0)
        except OSError:
            return False
        return True

    try:
        gunicorn = start()
        eventually(answers, 60, log.read_text)
        served = [ask(n) for n in range(1, 60)]
        assert {tuple(answer["loaded"]) for answer in served} == {()}
        eventually(lambda: len(paths(script)) == 60, 60, log.read_text)

        script.answer = lambda lines: (503, {}, b"")
        for n in range(60, 120):
            ask(n)
        assert len(paths(script)) == 60
        script.answer = script.take
        eventually(lambda: len(paths(script)) == 120, 90, log.read_text)

        for n in range(120, 180):
            ask(n)
        gunicorn.send_signal(signal.SIGTERM)
        assert gunicorn.wait(60) == 0, log.read_text()
        # What was in memory left with the end of the workers: to the publisher, or to the spool by
        # the worker that had yet to try the publisher again. The next start sends that.
        gunicorn = start()
        eventually(lambda: paths(script) >= {f"/items/{n}" for n in range(180)}, 90, log.read_text)

        # Workers that know of no outage send all they have before they end.
        eventually(answers, 60, log.read_text)
        for n in range(180, 240):
            ask(n)
        gunicorn.send_signal(signal.SIGTERM)
        assert gunicorn.wait(60) == 0, log.read_text()
        assert paths(script) == {f"/items/{n}" for n in range(240)}, log.read_text()
    finally:
        for each in gunicorns:
            if each.poll() is None:
                each.kill()
                each.wait()
