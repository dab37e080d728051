"""The service that is measured: one view, 2 KB of JSON in and out, Django's default middleware.

It is configured from a :class:`Spec`, which also travels in an environment variable, so that
gunicorn's and uvicorn's workers serve the very same (`benchmarks.capture.wsgi`, `.asgi`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import contenders

VARIABLE = "BENCHMARK_SERVICE"
PATH = "/iac/v1/inventory"

#: Django's own default, as `startproject` writes it.
APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


@dataclass(frozen=True)
class Spec:
    """One process to measure.

    :param contender: whose recorder is installed, or beside whom a bare service stands.
    :param recorded: False for the bare service.
    :param folder: what the process may write to.
    :param mode: "sync" (WSGI) or "async" (ASGI).
    :param chain: with Django's default middleware; else with the recorder alone.
    :param options: further options of AUDIT_LOGGING.
    :param database: Django's DATABASES["default"]; a file of SQLite in `folder`, if empty.
    :param body_bytes: bytes of JSON, about, in and out.
    """

    contender: str
    recorded: bool
    folder: str
    mode: str = "sync"
    chain: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    database: dict[str, Any] = field(default_factory=dict)
    body_bytes: int = 2000

    def dump(self) -> str:
        """As the environment and the command line carry it."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Spec:
        """Read what :meth:`dump` wrote."""
        return cls(**json.loads(text))


_DATABASE = "db.sqlite3"

_body: bytes = b""


def document(size: int) -> dict[str, Any]:
    """An order of about `size` bytes of JSON: ids, texts, numbers, as callers send them."""
    line = {
        "item": "00068700011825",
        "description": "Tomatoes, diced, no salt added",
        "quantity": 3,
        "price": {"amount": 12.49, "currency": "USD"},
        "delivered": False,
    }
    order: dict[str, Any] = {
        "store": 4108,
        "order_id": "7c1b2c5e-6a0f-4f27-9d9d-3f8c2f6a4a10",
        "requested_at": "2026-11-23T10:15:00.123Z",
        "contact": {"name": "Jo Doe", "email": "jo@example.com", "password": "a-secret"},
        "lines": [],
    }
    length = len(json.dumps(order))
    while length < size:
        order["lines"].append({**line, "line": len(order["lines"]) + 1})
        length += len(json.dumps(order["lines"][-1])) + len(", ")
    return order


def body() -> bytes:
    """The request's body."""
    return _body


def configure(spec: Spec) -> None:
    """Set Django up in this process, its tables included."""
    global _body
    from django.conf import settings

    _body = json.dumps(document(spec.body_bytes)).encode()
    who = contenders.contender(spec.contender)
    folder = Path(spec.folder)
    chain = list(MIDDLEWARE) if spec.chain else []
    apps = list(APPS)
    more: dict[str, Any] = {}
    if who.drf:
        apps.append("rest_framework")
    if spec.recorded:
        apps += who.apps
        chain.insert(0 if who.outermost else len(chain), who.middleware)
        more = who.settings(folder)
        if who.ours:
            more["AUDIT_LOGGING"].update(spec.options)
    settings.configure(
        SECRET_KEY="benchmark",  # noqa: S106
        ALLOWED_HOSTS=["*"],
        DEBUG=False,
        ROOT_URLCONF=f"{__package__}.urls",
        INSTALLED_APPS=apps,
        MIDDLEWARE=chain,
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        DATABASES={
            "default": spec.database
            or {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / _DATABASE)}
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        STATIC_URL="static/",
        USE_TZ=True,
        DATA_UPLOAD_MAX_MEMORY_SIZE=32 << 20,
        BENCHMARK_DRF=who.drf,
        BENCHMARK_ASYNC=spec.mode == "async",
        **more,
    )
    import django

    fresh = not (folder / _DATABASE).exists()
    django.setup()
    if spec.recorded and not spec.database and fresh:
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
