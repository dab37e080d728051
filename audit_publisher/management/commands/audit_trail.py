"""`manage.py audit_trail`: who changed what, and when; for people and for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from audit_logging import changes, uptake
from audit_publisher.operating import trail
from audit_publisher.operating.printing import to_reader


class Command(BaseCommand):
    """Prints the trail of changes."""

    help = (
        "Print the trail: every change of consumers, keys, topic routes, capture flags and "
        "regions, and what was done with spooled events; the oldest line first. Example: "
        "audit_trail --since 2026-01-31 --json >> trail.jsonl"
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare --since, --after and --json."""
        parser.add_argument(
            "--since", help="An ISO 8601 time (UTC if it names no zone), or such as 24h, 7d."
        )
        parser.add_argument(
            "--after", type=int, default=0, help="Only lines after this id: to go on exporting."
        )
        parser.add_argument("--json", action="store_true", help="JSON, one line each.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print."""
        with to_reader(self.stdout):
            for line in trail.lines(_since(options["since"]), options["after"]):
                self.stdout.write(trail.to_json(line) if options["json"] else _row(line))


def _row(line: trail.TrailLine) -> str:
    fields = "; ".join(
        f"{name}: {value[0]} → {value[1]}" if line.about_fields else f"{name}: {value}"
        for name, value in line.fields.items()
    )
    why = f"  ({line.reason})" if line.reason else ""
    row = f"{line.at:%Y-%m-%d %H:%M:%S}  {line}{why}  {fields}".rstrip()
    # One line is one line, whatever the values hold, and the terminal obeys none of them.
    return changes.printable(" ".join(row.splitlines()))


def _since(text: str | None) -> datetime | None:
    if not text:
        return None
    units = {"h": "hours", "d": "days", "m": "minutes"}
    if text[:-1].isdigit() and text[-1] in units:
        return timezone.now() - timedelta(**{units[text[-1]]: int(text[:-1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"--since: {text!r} is no time such as 2026-01-31T00:00Z, 24h or 7d."
        ) from error
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return uptake.moment(found.timestamp())
