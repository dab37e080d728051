"""The project's own environment variables: what Django's settings are built from."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from audit_logging.conf import BROKERS
from audit_logging.options import AppSettings, option, readable_file, url_of

BASE_DIR = Path(__file__).resolve().parent.parent

_DATABASES = {
    "sqlite": ("", ""),
    "postgresql": ("psycopg", "production"),
    "postgres": ("psycopg", "production"),
}


def _database(value: str) -> None:
    url_of(_DATABASES)(value)
    try:
        dj_database_url.parse(value or "sqlite://")
    except (ValueError, KeyError) as error:
        # Not the value: it may hold a password.
        raise ValueError(
            "It cannot be read. Use postgresql://user:password@host:5432/name, with special "
            "characters of the password percent-encoded."
        ) from error


def _host_names(values: tuple[str, ...]) -> None:
    for value in values:
        if "/" in value or " " in value:
            raise ValueError(f"{value!r} is no host name. Give names alone, without scheme.")


class ProjectSettings(AppSettings):
    """Options of the runnable project."""

    prefix = "AUDIT"
    foreign_prefixes = ("AUDIT_LOGGING_", "AUDIT_PUBLISHER_", "AUDIT_SINK_", "AUDIT_TEST_")
    in_django_settings = False
    about = (
        "What the publisher, the sink and the admin are built from. "
        "Environment variables only: Django's settings are made of them."
    )

    DATA_DIR: Path = option(
        lambda: BASE_DIR / "var",
        "Where the embedded system keeps everything: databases, event log, spools, buckets, keys.",
        default_text="var/ in the checkout",
    )
    DEBUG: bool = option(False, "Django's debug pages. Never in production.")
    SECRET_KEY_FILE: Path | None = option(
        None,
        "File that holds Django's secret key, for example a mounted secret. Without it a key is "
        "made once and kept in DATA_DIR, readable by the owner alone.",
        validate=readable_file,
    )
    ALLOWED_HOSTS: tuple[str, ...] = option(
        ("127.0.0.1", "localhost", "[::1]"),
        "Host names this installation answers to.",
        validate=_host_names,
    )
    CSRF_TRUSTED_ORIGINS: tuple[str, ...] = option(
        (), "Origins, with scheme, that may post to the admin through a proxy."
    )
    TLS: bool = option(
        False,
        "On wherever a proxy ends TLS in front of this installation and sets X-Forwarded-Proto: "
        "cookies go over TLS alone, people are redirected to it, browsers told to remember.",
    )
    DATABASE_URL: str = option(
        "",
        "Django's database, which holds flags, topics, sites and the sink's ledger: "
        "`postgresql://user:password@host:5432/name`. Empty: SQLite in DATA_DIR.",
        validate=_database,
    )
    BROKER_URL: str = option(
        "",
        "Celery's broker: `redis://…`, `amqp://…`, or `durable:///path/broker.sqlite3`, which "
        "needs no server. Empty: durable, in DATA_DIR.",
        validate=url_of(BROKERS),
    )
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = option(
        "INFO", "Level of this project's own loggers."
    )

    def database_url(self) -> str:
        """DATABASE_URL, or the embedded database."""
        return self.DATABASE_URL or f"sqlite:///{self.DATA_DIR.absolute()}/audit.sqlite3"

    def broker_url(self) -> str:
        """BROKER_URL, or the embedded broker."""
        return self.BROKER_URL or f"durable://{self.DATA_DIR.absolute()}/broker.sqlite3"

    def secret_key(self) -> str:
        """Django's secret key, from its file; made on first use when none is configured."""
        path = self.SECRET_KEY_FILE or self.DATA_DIR / "secret_key"
        if self.SECRET_KEY_FILE is None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_urlsafe(50))
            try:
                # Create-only: of two processes that start together, one key wins.
                path.hardlink_to(temporary)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        key = path.read_text().strip()
        if not key:
            raise ImproperlyConfigured(
                f"AUDIT_SECRET_KEY_FILE: {path} is empty. Put 50 random characters into it."
            )
        return key


environment = ProjectSettings()
