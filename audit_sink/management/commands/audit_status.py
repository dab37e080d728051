"""`audit_status`: how each sink is doing."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit_sink.status import SinkStatus, human_bytes, human_seconds, sink_statuses


class Command(BaseCommand):
    """Print one line for each sink."""

    help = "Shows for each site: lag, rows, files, newest row, duplicates, dead letters, errors."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print for a program")

    def handle(self, *args: Any, **options: Any) -> None:
        statuses = sink_statuses()
        if options["json"]:
            sinks = [status.as_dict() for status in statuses]
            self.stdout.write(json.dumps({"sinks": sinks}, indent=1))
            return
        self._table(statuses)

    def _table(self, statuses: list[SinkStatus]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("site")
        for name in ("lag", "rows", "files", "size", "newest row", "duplicates", "dead letters"):
            table.add_column(name, justify="right")
        table.add_column("state")
        for status in statuses:
            table.add_row(
                status.sink,
                f"{status.lag:,}",
                f"{status.rows:,}",
                f"{status.files:,}",
                human_bytes(status.bytes),
                human_seconds(status.newest_age),
                f"{status.duplicates:,}",
                f"{status.dead_letters:,}",
                Text(_state(status)),
            )
        self.stdout.ending = ""
        width = None if self.stdout.isatty() else 200
        Console(file=self.stdout, width=width).print(table)


def _state(status: SinkStatus) -> str:
    if status.paused:
        return "paused"
    if status.error:
        kind = "stalled" if status.stalled_lanes else "failing"
        return f"{kind}: {status.error}"
    return "ok"
