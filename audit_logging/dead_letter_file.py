"""The first safe place of dead letters: a file beside the spools, which needs nothing but a disk.

One record is one refused event, or one batch whose bytes are damaged. From here they move into the
database, where there is one; see :mod:`audit_logging.dead_letters`.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import metrics
from .conf import LoggingSettings
from .exceptions import SpoolError
from .gauges import SpoolGauges
from .outcome import Refusal
from .seldom import Seldom
from .spool import DurableQueue, Record, StoredRecord

logger = logging.getLogger(__name__)
_seldom = Seldom(logger)

#: The stream of the file.
DEAD_STREAM = "dead-letters"

_REASON, _STATUS, _ID = "reason", "status", "id"


def open_file(options: LoggingSettings, clock: Callable[[], float] | None = None) -> DurableQueue:
    """Return this host's file; it is made at the first letter."""
    more: dict[str, Any] = {} if clock is None else {"clock": clock}
    return DurableQueue(
        options.DATA_DIR / "dead-letters.sqlite3", max_bytes=options.SPOOL_MAX_BYTES, **more
    )


def bury(file: DurableQueue, refused: Sequence[Refusal]) -> None:
    """Keep what was refused.

    :raises SpoolFull: there is no room; none is kept.
    :raises SpoolUnavailable: the disk failed; none is kept.
    """
    file.append(DEAD_STREAM, [_record(refusal) for refusal in refused])
    metrics.dead_lettered.inc(sum(refusal.events for refusal in refused))
    measure(file)
    _seldom.say(
        logging.ERROR,
        "%s events are refused for good and kept as dead letters: %s",
        sum(refusal.events for refusal in refused),
        refused[0].reason,
    )


def measure(file: DurableQueue) -> None:
    """Set the gauges of the file."""
    SpoolGauges(file, DEAD_STREAM, "dead-letters").measure()
    try:
        metrics.dead_letters.set(file.stats(DEAD_STREAM).records, kept_in="file")
    except SpoolError:
        # The next write says what is wrong with it.
        pass


def _record(refusal: Refusal) -> Record:
    headers: tuple[tuple[str, bytes | None], ...] = (
        (_REASON, refusal.reason.encode("utf-8", "replace")),
        (_ID, uuid.uuid4().hex.encode()),
    )
    if refusal.status is not None:
        headers += ((_STATUS, str(refusal.status).encode()),)
    return Record(refusal.line.encode(), headers=headers)


@dataclass(frozen=True)
class Letter:
    """One dead letter, as the file has it.

    :ivar event: the event's JSON text; of a damaged batch, its bytes in base64.
    :ivar fields: what the event says of itself; empty where it is none.
    :ivar refusal: names this refusal, which is never counted twice.
    :ivar refused_at: epoch seconds.
    """

    event: str
    fields: dict[str, Any]
    reason: str
    status: int | None
    refusal: str
    refused_at: float

    @classmethod
    def of(cls, record: StoredRecord) -> Letter:
        """Read a record of the file, also one that an older version wrote."""
        headers = {
            name: (value or b"").decode("utf-8", "replace") for name, value in record.headers
        }
        event = record.value.decode("utf-8", "replace")
        status = headers.get(_STATUS, "")
        return cls(
            event=event,
            fields=fields_of(event),
            reason=headers.get(_REASON, ""),
            status=int(status) if status.isdigit() else None,
            refusal=headers.get(_ID) or f"{record.timestamp}-{record.offset}",
            refused_at=record.timestamp / 1_000_000,
        )


def fields_of(event: str) -> dict[str, Any]:
    """What an event says of itself; nothing, of what is no event."""
    try:
        fields = json.loads(event) if event.startswith("{") else {}
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
