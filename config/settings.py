"""Django settings of the runnable project; every value comes from `config.environment`."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from .environment import BASE_DIR as BASE_DIR
from .environment import environment

environment.enforce()

DATA_DIR = environment.DATA_DIR.absolute()
# Databases, spools and buckets in it hold what callers sent: nobody else's to read.
try:
    DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
except OSError as error:
    raise ImproperlyConfigured(
        f"AUDIT_DATA_DIR: {DATA_DIR} cannot be made: {error.strerror}. Name a folder that this "
        "process can write."
    ) from error

DEBUG = environment.DEBUG
SECRET_KEY = environment.secret_key()
ALLOWED_HOSTS = list(environment.ALLOWED_HOSTS)
CSRF_TRUSTED_ORIGINS = list(environment.CSRF_TRUSTED_ORIGINS)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = environment.TLS
if environment.TLS:
    # The proxy that ends TLS says so; everything else is sent to it, probes and metrics apart.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^health/", r"^metrics$", r"^v1/"]
    SECURE_HSTS_SECONDS = 31_536_000

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "audit_logging",
    "audit_publisher",
]
# A host that only publishes need not install what the sink needs.
if all(find_spec(name) for name in ("django_celery_beat", "pyarrow", "pyruhvro")):
    INSTALLED_APPS += ["django_celery_beat", "audit_sink"]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": dj_database_url.parse(
        environment.database_url(), conn_max_age=60, conn_health_checks=True
    )
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Several processes share the file: readers must not block the one writer, and a writer that
    # has to wait must wait at BEGIN, not fail halfway.
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
elif DATABASES["default"]["ENGINE"].endswith("postgresql"):
    # A database that hangs must not hold a thread for ever: seconds, and milliseconds where said.
    DATABASES["default"].setdefault("OPTIONS", {}).setdefault("connect_timeout", 5)
    for _option, _value in {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "options": "-c statement_timeout=60000 -c idle_in_transaction_session_timeout=120000",
    }.items():
        DATABASES["default"]["OPTIONS"].setdefault(_option, _value)

LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
STATIC_ROOT.mkdir(exist_ok=True)
# Admin pages work without a collectstatic step.
WHITENOISE_USE_FINDERS = True

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Audit publisher",
    "DESCRIPTION": "Takes audit events; a 2xx answer means that they are durable.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVERS": [],
}

# Celery: one project app for the sink's schedule; deliveries of audited services share the broker.
CELERY_BROKER_URL = environment.broker_url()
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_TIMEZONE = "UTC"

AUDIT_LOGGING = {
    "SERVICE_NAME": "audit",
    "DATA_DIR": DATA_DIR / "capture",
    "BROKER_URL": environment.broker_url(),
}
AUDIT_PUBLISHER = {"DATA_DIR": DATA_DIR / "publisher"}
AUDIT_SINK = {"DATA_DIR": DATA_DIR / "sink"}


def _no_probe(record: logging.LogRecord) -> bool:
    """Whether a record is about something other than a probe that was told «not yet»."""
    path = getattr(getattr(record, "request", None), "path", "")
    return not path.startswith("/health/")


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "filters": {
        "no_probe": {"()": "django.utils.log.CallbackFilter", "callback": _no_probe},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        name: {"level": environment.LOG_LEVEL}
        for name in ("audit_logging", "audit_publisher", "audit_sink")
    }
    # A line for each 404 would let strangers fill the disk; the access log has them, if wanted.
    | {"django.request": {"filters": ["no_probe"], "level": "ERROR"}},
}
