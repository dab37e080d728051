"""Settings of the project; what differs between two runs of it comes from the environment.

``SERVERS_AUDITED`` (1, 0), ``SERVERS_ROOT`` (the run's folder), ``SERVERS_GZIP`` (outside, inside),
``SERVERS_OPTIONS`` (JSON, on top of the AUDIT_LOGGING below).
"""

import json
import os
from pathlib import Path

ROOT = Path(os.environ["SERVERS_ROOT"])
AUDITED = os.environ.get("SERVERS_AUDITED") == "1"
GZIP_OUTSIDE = os.environ.get("SERVERS_GZIP") == "outside"

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.integration.servers.project.urls"
INSTALLED_APPS = [
    "tests.integration.servers.project.apps.ProjectConfig",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "rest_framework",
]
AUDIT = "audit_logging.middleware.AuditMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"
MIDDLEWARE = [
    *([GZIP] if GZIP_OUTSIDE else []),
    *([AUDIT] if AUDITED else []),
    *([] if GZIP_OUTSIDE else [GZIP]),
    "django.middleware.common.CommonMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",
    "tests.integration.servers.project.middleware.doorkeeper",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ROOT / "project.sqlite3",
        "ATOMIC_REQUESTS": True,
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = 100_000
FILE_UPLOAD_MAX_MEMORY_SIZE = 20_000
FILE_UPLOAD_TEMP_DIR = ROOT
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
}
USE_TZ = True

if AUDITED:
    INSTALLED_APPS += ["audit_logging"]
    AUDIT_LOGGING = {
        "SERVICE_NAME": "shop",
        "DATA_DIR": ROOT / "capture",
        # Our tables are not migrated here, and nothing may come of it.
        "FLAGS_SOURCE": "database",
        "BUFFER_SIZE": 10_000,
        "SHUTDOWN_SECONDS": 10,
        **json.loads(os.environ.get("SERVERS_OPTIONS", "{}")),
    }
