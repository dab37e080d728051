"""Writes down what the application lives through, so that two runs can be compared."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.core.signals import got_request_exception, request_finished, request_started
from django.db.backends.signals import connection_created


class ProjectConfig(AppConfig):
    name = "tests.integration.servers.project"
    label = "project"

    def ready(self) -> None:
        connection_created.connect(_watch_queries, weak=False)
        request_started.connect(_said("started"), weak=False)
        request_finished.connect(_said("finished"), weak=False)
        got_request_exception.connect(_said("exception"), weak=False)


def note(line: str) -> None:
    """Add a line to the run's notes; whole lines, also from several processes."""
    path = Path(os.environ["SERVERS_ROOT"]) / "notes"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _said(what: str) -> Any:
    def receiver(**kwargs: Any) -> None:
        note(what)

    return receiver


def _watch_queries(connection: Any, **kwargs: Any) -> None:
    # Flags are looked up on a thread of the audit's own, which no request waits for.
    ours = threading.current_thread().name.startswith("audit-")
    # A connection is opened anew for each request, on the same wrapper.
    if not ours and _watch_query not in connection.execute_wrappers:
        connection.execute_wrappers.append(_watch_query)


def _watch_query(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
    note(f"query {sql}")
    return execute(sql, params, many, context)
