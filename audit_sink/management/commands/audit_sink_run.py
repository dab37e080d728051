"""`audit_sink_run`: do the sink's work in the foreground, without Celery."""

from __future__ import annotations

import threading
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import close_old_connections

from audit_sink.ingest.run import ingest, ingest_all
from audit_sink.ingest.schedule import due_lanes


class Command(BaseCommand):
    """Store what is waiting and end, or keep at it."""

    help = (
        "Stores everything that waits in the event log, then ends; exit status 1 when a sink "
        "failed. With --follow it goes on until Ctrl-C."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--follow", action="store_true", help="go on until Ctrl-C")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["follow"]:
            try:
                self._follow()
            except KeyboardInterrupt:
                return
        outcomes = ingest_all()
        rows = sum(outcome.rows for outcome in outcomes.values())
        batches = sum(outcome.batches for outcome in outcomes.values())
        self.stdout.write(f"{rows:,} rows stored in {batches:,} batches.")
        failed = {lane: outcome for lane, outcome in outcomes.items() if outcome.error}
        if failed:
            raise CommandError("\n".join(f"{lane}: {one.error}" for lane, one in failed.items()))

    def _follow(self) -> None:
        tick = threading.Event()
        while not tick.wait(1.0):
            close_old_connections()
            for lane in due_lanes():
                outcome = ingest(lane)
                if outcome.batches:
                    self.stdout.write(f"{lane}: {outcome.rows:,} rows")
