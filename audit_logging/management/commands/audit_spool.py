"""`manage.py audit_spool`: what waits on this host, and what was refused for good."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from django.core.management.base import BaseCommand, CommandParser

from audit_logging import dead_letters
from audit_logging.conf import conf
from audit_logging.dead_letter_file import DEAD_STREAM, Letter
from audit_logging.delivery import RETRY_STREAM
from audit_logging.exceptions import SpoolError
from audit_logging.outbox import STREAM
from audit_logging.spool import DurableQueue, Record

_BROKER = "broker"
_ONE = (("events", b"1"),)


class Command(BaseCommand):
    """Shows the spools and dead letters of this host, and sends dead letters again."""

    help = __doc__
    # Wanted most when something is wrong: a failing check must not stand in the way.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """`status` (the default), `dead-letters` or `redeliver`."""
        parser.add_argument(
            "action",
            nargs="?",
            default="status",
            choices=["status", "dead-letters", "redeliver"],
            help="status: how much waits; dead-letters: the refused events and why, those still in "
            "the file and those in the database; redeliver: send all of them again.",
        )
        parser.add_argument("--limit", type=int, default=20, help="dead letters shown at most")
        parser.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action."""
        try:
            self._handle(options)
            self.stdout.flush()
        except BrokenPipeError:
            # Whoever reads has seen enough (`| head`). What is left to write goes nowhere, as it
            # is tried once more at the end of the process.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)

    def _handle(self, options: dict[str, Any]) -> None:
        dead = DurableQueue(conf.DATA_DIR / "dead-letters.sqlite3")
        delivery = DurableQueue(conf.DATA_DIR / "delivery-spool.sqlite3")
        if options["action"] == "status":
            self._status(options["json"], dead, delivery)
        elif options["action"] == "dead-letters":
            self._dead_letters(dead, options["limit"], options["json"])
        else:
            self._redeliver(dead, delivery)

    def _status(self, as_json: bool, dead: DurableQueue, delivery: DurableQueue) -> None:
        capture = DurableQueue(conf.DATA_DIR / "capture-spool.sqlite3")
        rows: list[dict[str, Any]] = []
        places = [
            ("capture", capture, STREAM),
            ("delivery", delivery, RETRY_STREAM),
            ("dead-letters", dead, DEAD_STREAM),
        ]
        broker = conf.broker_url()
        if broker.startswith("durable:") and conf.DELIVERY != "direct":
            file = DurableQueue(Path(unquote(urlsplit(broker).path)))
            places.insert(1, (_BROKER, file, conf.CELERY_QUEUE))
        for name, queue, stream in places:
            stats = queue.stats(stream) if queue.path.exists() else None
            oldest = stats.oldest if stats else None
            rows.append(
                {
                    "spool": name,
                    "records": stats.records if stats else 0,
                    "bytes": stats.bytes if stats else 0,
                    "oldest_seconds": None if oldest is None else time.time() - oldest / 1e6,
                }
            )
            if name == _BROKER:
                rows[-1]["leased"] = queue.leased(stream) if stats else 0
        rows += self._in_database()
        if as_json:
            self.stdout.write(json.dumps(rows))
            return
        for row in rows:
            age = row["oldest_seconds"]
            since = "" if age is None else f", the oldest for {age:,.0f} s"
            if row.get("leased"):
                since += f"; {row['leased']:,} of them in workers' hands"
            self.stdout.write(
                f"{row['spool']:<13} {row['records']:>8,} records {row['bytes']:>12,} bytes{since}"
            )

    def _in_database(self) -> list[dict[str, Any]]:
        try:
            records, oldest = dead_letters.waiting()
        except Exception:  # noqa: BLE001 - there is no database, no table, or no way to it
            return []
        age = None if oldest is None else time.time() - oldest.timestamp()
        row = {"spool": "in database", "records": records, "bytes": 0, "oldest_seconds": age}
        return [row] if records else []

    def _dead_letters(self, dead: DurableQueue, limit: int, as_json: bool) -> None:
        records = dead.read(DEAD_STREAM, 0, max_records=limit) if dead.path.exists() else []
        rows = [_row(Letter.of(record)) for record in records]
        try:
            rows += dead_letters.summaries(limit - len(rows))
        except Exception as error:  # noqa: BLE001 - whatever a database's driver raises
            self.stderr.write(f"Those in the database cannot be shown: {error}".strip())
        for row in rows:
            said = " ".join(str(row["reason"]).split())
            self.stdout.write(
                json.dumps(row) if as_json else f"{row['request_id'] or 'damaged'}  {said}"
            )
        if not rows and not as_json:
            self.stdout.write("No event was refused.")

    def _redeliver(self, dead: DurableQueue, delivery: DurableQueue) -> None:
        moved = 0
        while dead.path.exists():
            records = dead.lease(DEAD_STREAM, seconds=60, owner="redeliver", max_records=100)
            if not records:
                break
            try:
                delivery.append(
                    RETRY_STREAM,
                    [Record(_sendable(record.value), headers=_ONE) for record in records],
                )
            except SpoolError:
                dead.release(DEAD_STREAM, records)
                raise
            dead.settle(DEAD_STREAM, records)
            moved += len(records)
        try:
            moved += len(dead_letters.resend(dead_letters.DeadLetter.objects.all()))
        except Exception as error:  # noqa: BLE001 - see above
            self.stderr.write(f"Those in the database stay where they are: {error}".strip())
        self.stdout.write(f"{moved} events will be delivered again.")


def _row(letter: Letter) -> dict[str, Any]:
    return {
        "place": "file",
        "request_id": letter.fields.get("request_id"),
        "reason": letter.reason,
        "status": letter.status,
        "refused_at": datetime.fromtimestamp(letter.refused_at, UTC).isoformat(),
        "state": "waiting",
        "attempts": 1,
    }


def _sendable(value: bytes) -> bytes:
    """What the delivery spool takes: an event as it is, or a damaged batch's own bytes."""
    if value.startswith(b"{"):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        return value
