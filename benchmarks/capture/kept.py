"""Counts what lies in the embedded broker and in the spool: what became of the events."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any


def events(audit: Path) -> tuple[int, int]:
    """Events in the embedded broker, and in capture spools, below the folder DATA_DIR."""
    queued = spooled = 0
    for value, _ in _records(audit, "broker*.sqlite3"):
        arguments = json.loads(base64.b64decode(json.loads(value)["body"]))[0]
        queued += arguments[1]
    for _, headers in _records(audit, "capture-spool*.sqlite3"):
        spooled += int(dict(json.loads(headers)).get("events", 1))
    return queued, spooled


def _records(audit: Path, pattern: str) -> Iterator[tuple[Any, Any]]:
    for path in audit.rglob(pattern):
        with closing(sqlite3.connect(path)) as connection:
            yield from connection.execute("SELECT value, headers FROM record")
