"""The capture tier stays light: what an audited service installs, and what it imports."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from audit_logging.batch import Batch
from audit_logging.spool import DurableQueue

REPOSITORY = Path(__file__).resolve().parents[3]

#: What no audited service should have to load, or to install.
HEAVY = (
    "audit_publisher", "audit_sink", "config", "confluent_kafka", "django_celery_beat",
    "drf_spectacular", "duckdb", "fastavro", "google", "gcsfs", "kafka", "numpy", "pandas",
    "pyarrow", "pyiceberg", "pyruhvro", "requests", "rest_framework", "rich",
)  # fmt: skip

IMPORTS = """
import importlib, json, pkgutil, sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.admin",
                    "audit_logging"],
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DATA_DIR": sys.argv[1]},
)
import django
django.setup()
import audit_logging
for module in pkgutil.walk_packages(audit_logging.__path__, "audit_logging."):
    importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

SERVICE = """
import sys
from django.conf import settings
settings.configure(
    ROOT_URLCONF="__main__", SECRET_KEY="x", ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.contenttypes", "audit_logging"],
    MIDDLEWARE=["audit_logging.middleware.AuditMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DATA_DIR": sys.argv[1]},
)
import django
django.setup()
from django.core.management import call_command
from django.http import JsonResponse
from django.test import Client
from django.urls import path

urlpatterns = [path("items/<int:pk>", lambda request, pk: JsonResponse({"pk": pk}))]
call_command("migrate", verbosity=0)
call_command("check")
assert Client().get("/items/7").json() == {"pk": 7}
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AUDIT_", "DJANGO_", "PYTHON"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, env=environ, cwd=cwd, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def events_at_the_broker(folder: Path) -> list[dict]:
    events = []
    for record in DurableQueue(folder / "broker.sqlite3").read("audit_logging", 0):
        body = json.loads(base64.b64decode(json.loads(record.value)["body"]))
        payload, count = body[0]
        events += [json.loads(line) for line in Batch.from_message(payload, count).lines()]
    # Beside what the process says of itself.
    return [event for event in events if event.get("record") is None]


def test_imports_run_one_way() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "lint-imports"
    assert "0 broken" in run(linter, "--no-cache", cwd=REPOSITORY)


def test_no_module_of_it_loads_anything_heavy(tmp_path: Path) -> None:
    program = tmp_path / "imports.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{IMPORTS}")
    loaded = json.loads(run(sys.executable, program, tmp_path / "data"))
    assert "audit_logging" in loaded
    assert set(loaded) & set(HEAVY) == set()
    assert not (tmp_path / "data").exists()  # importing makes no files


def test_a_request_reaches_the_broker_of_a_real_process(tmp_path: Path) -> None:
    program = tmp_path / "service.py"
    program.write_text(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{SERVICE}")
    run(sys.executable, program, tmp_path / "data")
    (event,) = events_at_the_broker(tmp_path / "data")
    assert (event["path"], event["endpoint_name"]) == ("/items/7", "items/<pk>")


@pytest.mark.slow
def test_a_clean_environment_needs_the_light_tier_alone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    # A build leaves its marks where it is done.
    shutil.copytree(
        REPOSITORY,
        source,
        ignore=shutil.ignore_patterns(".*", "var", "build", "*.egg-info", "__pycache__", "tests"),
    )
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", source)
    installed = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    names = {package["name"].lower().replace("-", "_") for package in installed}
    assert "django_api_audit" in names
    assert names & {"djangorestframework", "prometheus_client", *HEAVY} == set()
    program = tmp_path / "service.py"
    program.write_text(SERVICE)
    run(python, program, tmp_path / "data", cwd=tmp_path)
    (event,) = events_at_the_broker(tmp_path / "data")
    assert event["service_name"] == "shop"
    program.write_text(IMPORTS)
    loaded = json.loads(run(python, program, tmp_path / "other", cwd=tmp_path))
    assert set(loaded) & set(HEAVY) == set()
