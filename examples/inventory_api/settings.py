"""Settings of the example service. All that the audit needs is one block near the end."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent

SECRET_KEY = "this service has no sessions, and signs nothing"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ROOT_URLCONF = "examples.inventory_api.urls"
WSGI_APPLICATION = "examples.inventory_api.wsgi.application"
ASGI_APPLICATION = "examples.inventory_api.asgi.application"
INSTALLED_APPS = ["rest_framework"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
# It keeps nothing: the audit does not need the service to have a database.
DATABASES: dict[str, dict[str, str]] = {}
USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False
APPEND_SLASH = False

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
}

#: Bearer token → partner. An example's tokens; a real service asks its identity provider.
PARTNER_TOKENS = {"tok_live_6yq1v8Zr3mKd": "northfield-foods"}

# The switch exists so that a test can compare the answers with and without the audit.
if os.environ.get("INVENTORY_AUDIT", "on") != "off":
    # ---- the audit, whole ----
    INSTALLED_APPS += ["audit_logging"]
    MIDDLEWARE.insert(0, "audit_logging.middleware.AuditMiddleware")
    AUDIT_LOGGING = {
        "SERVICE_NAME": "inventory-api",
        "PUBLISHER_URL": "http://127.0.0.1:8001",
        "CONSUMER_ID": "inventory-api",
        "PRIVATE_KEY_PATH": BASE_DIR / "var" / "inventory-api.pem",
        "FLAGS_SOURCE": "publisher",
    }
    # ---- that was all ----

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
