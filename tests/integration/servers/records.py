"""What was captured: the events that lie in a broker's file or a spool's, read beside them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audit_logging.batch import unpack
from audit_logging.outbox import STREAM
from audit_logging.spool import DurableQueue

QUEUE = "audit_logging"
_EVERYTHING = {"max_records": 1_000_000, "max_bytes": 1 << 30}


def everywhere(data_dir: Path) -> list[dict[str, Any]]:
    """Every event in the embedded broker and in the capture spool, oldest first."""
    return [*brokered(data_dir / "broker.sqlite3"), *spooled(data_dir)]


def brokered(path: Path) -> list[dict[str, Any]]:
    """The events in the embedded broker's file."""
    if not path.exists():
        return []
    return in_messages(record.value for record in DurableQueue(path).read(QUEUE, 0, **_EVERYTHING))


def spooled(data_dir: Path) -> list[dict[str, Any]]:
    """The events in the capture spool."""
    path = data_dir / "capture-spool.sqlite3"
    if not path.exists():
        return []
    stored = DurableQueue(path).read(STREAM, 0, **_EVERYTHING)
    return _events(record.value for record in stored)


def in_messages(messages: Iterable[bytes]) -> list[dict[str, Any]]:
    """The events in Celery messages as they lie in a broker."""
    bodies = (json.loads(base64.b64decode(json.loads(message)["body"])) for message in messages)
    return _events(base64.b64decode(body[0][0]) for body in bodies)


def _events(batches: Iterable[bytes]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for batch in batches for line in unpack(batch)]
    # Producers' own records travel in the same batches.
    return [line for line in lines if "record" not in line]
