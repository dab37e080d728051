"""`manage.py audit_spool`: what waits on this host, and what was refused for good."""

from __future__ import annotations

import json
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit_logging.conf import conf
from audit_logging.delivery import DEAD_STREAM, RETRY_STREAM
from audit_logging.exceptions import SpoolError
from audit_logging.spool import DurableQueue, Record
from audit_logging.transport import STREAM


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
            help="status: how much waits; dead-letters: the refused events and why; redeliver: "
            "move the refused events back to the delivery spool.",
        )
        parser.add_argument("--limit", type=int, default=20, help="dead letters shown at most")
        parser.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action."""
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
        rows = []
        for name, queue, stream in (
            ("capture", capture, STREAM),
            ("delivery", delivery, RETRY_STREAM),
            ("dead-letters", dead, DEAD_STREAM),
        ):
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
        if as_json:
            self.stdout.write(json.dumps(rows))
            return
        for row in rows:
            age = row["oldest_seconds"]
            since = "" if age is None else f", the oldest for {age:,.0f} s"
            self.stdout.write(
                f"{row['spool']:<13} {row['records']:>8,} records {row['bytes']:>12,} bytes{since}"
            )

    def _dead_letters(self, dead: DurableQueue, limit: int, as_json: bool) -> None:
        records = dead.read(DEAD_STREAM, 0, max_records=limit) if dead.path.exists() else []
        for record in records:
            reason = (dict(record.headers).get("reason") or b"").decode("utf-8", "replace")
            event = json.loads(record.value)
            row = {"request_id": event.get("request_id"), "reason": reason}
            self.stdout.write(
                json.dumps(row) if as_json else f"{row['request_id']}  {row['reason']}"
            )
        if not records and not as_json:
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
                    [Record(record.value, headers=(("events", b"1"),)) for record in records],
                )
            except SpoolError:
                dead.release(DEAD_STREAM, records)
                raise
            dead.settle(DEAD_STREAM, records)
            moved += len(records)
        self.stdout.write(f"{moved} events will be delivered again.")
