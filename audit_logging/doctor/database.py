"""Django's database: it answers, has every table, and takes writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import DatabaseError, connections, router, transaction

from .clock import compare
from .examinations import Finding, failure, modules, ok


def aliases() -> list[str]:
    """The databases that our apps' models lie in."""
    names = _names()
    found = {
        router.db_for_write(model) or "default"
        for config in apps.get_app_configs()
        if config.name in names
        for model in config.get_models()
    }
    return sorted(found)


def look(alias: str) -> Iterator[Finding]:
    """Examine one database."""
    connection = connections[alias]
    where = _where(connection)
    began = time.monotonic()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        yield failure(
            f"{where}: {' '.join(str(error).split())[:300]}",
            "Look at DATABASES (AUDIT_DATABASE_URL): host, port, name, user, password, TLS.",
        )
        return
    yield ok(f"{where} answers in {(time.monotonic() - began) * 1000:.0f} ms")
    missing = _not_migrated(connection)
    if missing:
        names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        yield failure(
            f"{len(missing)} migrations are not applied: {names}.", "Run manage.py migrate."
        )
        return
    yield ok("every migration is applied")
    yield from _writable(alias)


def clock(alias: str) -> Iterator[Finding]:
    """Our clock against the database's, where that is another host's."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        return
    try:
        connection.ensure_connection()
        before = time.time()
        with connection.cursor() as cursor:
            cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
            theirs = float(cursor.fetchone()[0])
    except DatabaseError:
        # Its own lines say it.
        return
    yield from compare("the database", theirs, before, time.time(), step=0.0)


def _where(connection: Any) -> str:
    settings = connection.settings_dict
    host = settings.get("HOST") or ""
    return f"{connection.vendor} {host + '/' if host else ''}{settings.get('NAME', '')}"


def _not_migrated(connection: Any) -> list[str]:
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    # A host service's own are its own business; publisher and sink need those of all.
    ours = {name.rpartition(".")[2] for name in _names()}
    alone = ours == {"audit_logging"}
    return [
        f"{migration.app_label}.{migration.name}"
        for migration, _ in plan
        if not alone or migration.app_label in ours
    ]


def _names() -> set[str]:
    return {module.partition(".")[0] for module in modules()}


def _writable(alias: str) -> Iterator[Finding]:
    connection = connections[alias]
    model = next(
        model
        for config in apps.get_app_configs()
        if getattr(config, "audit_doctor", "")
        for model in config.get_models()
        if (router.db_for_write(model) or "default") == alias
    )
    table = connection.ops.quote_name(model._meta.db_table)
    key = connection.ops.quote_name(model._meta.pk.column)
    try:
        with transaction.atomic(using=alias), connection.cursor() as cursor:
            # No row is touched; the right to write, and a database that takes writes, are needed.
            cursor.execute(f"UPDATE {table} SET {key} = {key} WHERE 1 = 0")  # noqa: S608
    except DatabaseError as error:
        yield failure(
            f"It takes no writes: {' '.join(str(error).split())[:300]}",
            "Use the primary, not a replica, and a user with the right to write; or look at the "
            "disk and the mode of the file.",
        )
    else:
        yield ok("it takes writes")
