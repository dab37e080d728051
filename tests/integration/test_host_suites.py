"""A host's own test suite runs with the audit as it does without: under both runners, with one
database or several, forbidden or not, with our tables or without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

SETTINGS = """
from pathlib import Path
BASE_DIR = Path(__file__).parent
SECRET_KEY = "not a secret"
USE_TZ = True
STATIC_URL = "static/"
SILENCED_SYSTEM_CHECKS = ["audit_logging.W001"]
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "shop"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "real.sqlite3"}}
INSTALLED_APPS += ["audit_logging"]
MIDDLEWARE.insert(0, "audit_logging.middleware.AuditMiddleware")
# As eager as can be: what disturbs at all disturbs here.
AUDIT_LOGGING = {"SERVICE_NAME": "shop", "FLAGS_REFRESH_SECONDS": 0.1, "BUFFER_SIZE": 10_000}
"""

SEVERAL = """
DATABASES["other"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "other.sqlite3"}
class ToOther:
    def db_for_read(self, model, **hints):
        return "other" if model._meta.app_label == "audit_logging" else None
    db_for_write = db_for_read
    def allow_relation(self, *args, **hints):
        return True
    def allow_migrate(self, db, app_label, **hints):
        return (db == "other") == (app_label == "audit_logging")
DATABASE_ROUTERS = [ToOther()]
"""

WITHOUT_TABLES = """
class Nowhere:
    def allow_migrate(self, db, app_label, **hints):
        return False if app_label == "audit_logging" else None
DATABASE_ROUTERS = [Nowhere()]
"""

FILE_FOR_TESTS = """
DATABASES["default"]["TEST"] = {"NAME": BASE_DIR / "test.sqlite3"}
"""

FROM_PUBLISHER = """
AUDIT_LOGGING |= {"FLAGS_SOURCE": "publisher", "PUBLISHER_URL": "http://127.0.0.1:9"}
"""

URLS = """
from django.http import HttpResponse
from django.urls import path
from shop.models import Item

def items(request):
    if request.method == "POST":
        Item.objects.create(name=request.POST["name"])
    return HttpResponse(",".join(Item.objects.values_list("name", flat=True)))

urlpatterns = [path("items", items), path("plain", lambda request: HttpResponse("plain"))]
"""

MODELS = """
from django.db import models

class Item(models.Model):
    name = models.CharField(max_length=20)
"""

TESTS = """
import logging
import threading
import urllib.request

from django.conf import settings
from django.test import Client, LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase

# As many projects do; it makes the middleware, before the test run is set up.
from wsgi import application
from shop.models import Item


def ours():
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("audit-flags", "audit-uptake"))]


class Warnings(logging.Handler):
    seen = []
    def emit(self, record):
        self.seen.append(record.getMessage())

for name in ("flags", "policy", "uptake", "background"):
    logging.getLogger("audit_logging." + name).addHandler(Warnings(logging.WARNING))


class Quiet:
    def tearDown(self):
        super().tearDown()
        assert not ours(), ours()
        assert not Warnings.seen, Warnings.seen


class Rows(Quiet, TestCase):
    def test_queries(self):
        with self.assertNumQueries(1):
            self.client.get("/items")
        with self.assertNumQueries(2):
            self.client.post("/items", {"name": "a"})

    def test_many_clients(self):
        for _ in range(20):
            with self.assertNumQueries(1):
                Client().get("/items")


class Forbidden(Quiet, SimpleTestCase):
    def test_no_database(self):
        self.assertEqual(self.client.get("/plain").content, b"plain")


class Committed(Quiet, TransactionTestCase):
    def test_writes(self):
        for n in range(60):
            self.client.post("/items", {"name": str(n)})
        self.assertEqual(Item.objects.count(), 60)

    def test_it_was_flushed(self):
        self.assertEqual(Item.objects.count(), 0)


class Live(Quiet, LiveServerTestCase):
    def test_served(self):
        Item.objects.create(name="live")
        with urllib.request.urlopen(self.live_server_url + "/items") as answer:
            self.assertEqual(answer.read(), b"live")
"""

FLAG_TESTS = """
from audit_logging.models import CaptureFlags
from audit_logging.testing import recorded_events, refresh_flags, reset_flags


class Flags(Quiet, TestCase):
    databases = "__all__"

    def test_flags_when_a_test_asks_for_them(self):
        with recorded_events() as events:
            CaptureFlags.objects.create(service_name="shop", enabled=False)
            self.client.get("/plain")
            self.assertEqual(len(events), 1)
            refresh_flags()
            self.addCleanup(reset_flags)
            self.client.get("/plain")
            self.assertEqual(len(events), 1)

    def test_the_next_test_has_those_of_the_settings(self):
        with recorded_events() as events:
            self.client.get("/plain")
        self.assertEqual(len(events), 1)
"""


def host(folder: Path, *further: str, tests: str = TESTS) -> Path:
    """A small project with a test suite."""
    files = {
        "settings.py": SETTINGS + "".join(further),
        "urls.py": URLS,
        "wsgi.py": "from django.core.wsgi import get_wsgi_application\n"
        "application = get_wsgi_application()\n",
        "shop/__init__.py": "",
        "shop/models.py": MODELS,
        "tests/__init__.py": "",
        "tests/test_shop.py": tests,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(dedent(text))
    return folder


DJANGO = ["-W", "error", "-m", "django", "test", "--noinput"]
PYTEST = ["-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
RUNNERS = [
    pytest.param(DJANGO, id="django"),
    pytest.param([*DJANGO, "--parallel", "2"], id="django in parallel"),
    pytest.param(PYTEST, id="pytest"),
]


def run(folder: Path, runner: list[str]) -> str:
    """Run the suite; return what it said."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AUDIT", "DJANGO", "PYTEST"))
    }
    environment |= {
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
    }
    done = subprocess.run(
        [sys.executable, *runner],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "further",
    [
        pytest.param("", id="one database"),
        pytest.param(FILE_FOR_TESTS, id="a file for tests"),
        pytest.param(SEVERAL, id="several databases"),
        pytest.param(WITHOUT_TABLES, id="without our tables"),
        pytest.param(FROM_PUBLISHER, id="publisher away"),
    ],
)
def test_a_suite_passes_as_without_the_audit(
    tmp_path: Path, runner: list[str], further: str
) -> None:
    folder = host(tmp_path, further)
    (folder / "pytest.ini").write_text("[pytest]\n")
    said = run(folder, runner)
    assert "audit" not in said.lower().replace(str(folder).lower(), "")
    # The database of the service itself was not even opened.
    assert not (folder / "real.sqlite3").exists()
    assert not (folder / "other.sqlite3").exists()
    assert not (folder / "test.sqlite3").exists()


@pytest.mark.parametrize("runner", [RUNNERS[0], RUNNERS[2]])
def test_a_suite_without_a_database_opens_none(tmp_path: Path, runner: list[str]) -> None:
    start, end = TESTS.index("class Rows"), TESTS.index("class Forbidden")
    tests = TESTS[:start] + TESTS[end : TESTS.index("class Committed")]
    folder = host(tmp_path, tests=tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    run(folder, runner)
    assert not (folder / "real.sqlite3").exists()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("further", ["", SEVERAL], ids=["one database", "several databases"])
def test_a_suite_sets_flags_where_it_wants_to(
    tmp_path: Path, runner: list[str], further: str
) -> None:
    folder = host(tmp_path, further, tests=TESTS + FLAG_TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    run(folder, runner)
