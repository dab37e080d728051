"""`manage.py audit_publisher_spool`: what waits in this host's spool, and what was refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from audit_logging import changes
from audit_logging.exceptions import SpoolError
from audit_publisher.durable.spool import REFUSED
from audit_publisher.exceptions import PublisherError
from audit_publisher.operating.overview import SpoolView, look
from audit_publisher.operating.printing import to_reader
from audit_publisher.operating.spool_contents import Contents, readable

#: Records that --offsets may name.
_MOST = 100_000


class Command(BaseCommand):
    """Shows this host's spool, and decides about refused records."""

    help = (
        "Look into this host's spool. `list` shows how full every host's is, and the streams of "
        "this one's: a topic's records that wait, and "
        "#refused, those that no region takes. `show` lists a stream's records, or shows one with "
        "its event. `redrive` appends refused records to their topics again, `discard` throws them "
        "away. Example: audit_publisher_spool redrive --all --reason 'limit raised'"
    )
    # Wanted most when something is wrong: a failing check must not stand in the way.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare list, show, redrive and discard."""
        actions = parser.add_subparsers(
            dest="action", required=True, metavar="list|show|redrive|discard"
        )
        listed = actions.add_parser("list", help="Show every spool, and the streams of this one.")
        shown = actions.add_parser("show", help="Show a stream's records, or one with its event.")
        shown.add_argument("--stream", default=REFUSED, help="A topic, or #refused (the default).")
        shown.add_argument("--from", type=int, default=0, dest="start", help="First offset.")
        shown.add_argument("--limit", type=int, default=20, help="Records shown at most (20).")
        shown.add_argument(
            "--event", type=int, metavar="OFFSET", help="Show this one's event; noted in the trail."
        )
        redrive = actions.add_parser("redrive", help="Append refused records again.")
        redrive.add_argument("--topic", default="", help="Another topic than the one it was for.")
        discard = actions.add_parser("discard", help="Throw refused records away, for good.")
        for action in (redrive, discard):
            which = action.add_mutually_exclusive_group(required=True)
            which.add_argument("--offsets", help="Such as 3,5-9.")
            which.add_argument("--all", action="store_true", help="All that are refused now.")
            action.add_argument("--reason", required=True, help="Kept in the trail.")
        for action in (listed, shown, redrive, discard):
            action.add_argument("--json", action="store_true", help="Print JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked."""
        contents = Contents()
        try:
            with to_reader(self.stdout):
                getattr(self, f"_{options['action']}")(contents, options)
        except (SpoolError, PublisherError) as error:
            raise CommandError(str(error)) from error

    def _list(self, contents: Contents, options: dict[str, Any]) -> None:
        rows = [asdict(stream) for stream in contents.streams()]
        everywhere: list[SpoolView] = []
        unknown = ""
        try:
            everywhere = list(look().spools)
        except Error as error:
            # This host's is a file; it can be looked into all the same.
            unknown = f"Other hosts' spools are not known, the database does not answer: {error}"
        if options["json"]:
            place = {
                "host": contents.host,
                "folder": contents.folder,
                "streams": rows,
                "everywhere": [spool.document() for spool in everywhere],
                "everywhere_problem": unknown,
            }
            self.stdout.write(json.dumps(place, indent=2, default=str))
            return
        said = unknown or ("" if everywhere else "no process is heard")
        self.stdout.write(f"Everywhere: {said}".rstrip())
        for spool in everywhere:
            self.stdout.write(f"  {spool}")
        self.stdout.write(f"The spool of {contents.host}: {contents.folder}")
        for row in rows:
            self.stdout.write(
                f"{row['name']:<40} {row['records']:>8,} records {row['bytes']:>14,} bytes, "
                f"the oldest of {row['oldest']:%Y-%m-%d %H:%M:%S %Z}"
            )
        if not rows:
            self.stdout.write("Nothing waits.")

    def _show(self, contents: Contents, options: dict[str, Any]) -> None:
        stream = options["stream"]
        if options["event"] is not None:
            event = contents.event(stream, options["event"])
            if event is None:
                raise CommandError(f"There is no record {options['event']} in {stream}.")
            self.stdout.write(readable(event))
            return
        entries = contents.page(stream, options["start"], options["limit"])
        if options["json"]:
            rows = [asdict(entry) for entry in entries]
            self.stdout.write(json.dumps(rows, indent=2, default=str))
            return
        for entry in entries:
            cause = f"  for {entry.topic}: {entry.cause}" if entry.cause else ""
            self.stdout.write(
                f"{entry.offset:>8}  {entry.at:%Y-%m-%d %H:%M:%S}  {entry.size:>9,} bytes  "
                f"{entry.request_id}  {entry.key}{cause}"
            )
        if not entries:
            self.stdout.write(f"Nothing in {stream} from offset {options['start']} on.")

    def _redrive(self, contents: Contents, options: dict[str, Any]) -> None:
        with changes.because(options["reason"]):
            count = contents.redrive(_offsets(options), options["topic"])
        self._said(count, "will be appended again by the next drain", options)

    def _discard(self, contents: Contents, options: dict[str, Any]) -> None:
        with changes.because(options["reason"]):
            count = contents.discard(_offsets(options))
        self._said(count, "discarded", options)

    def _said(self, count: int, what: str, options: dict[str, Any]) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({"records": count}))
        else:
            self.stdout.write(f"{count} {what}.")


def _offsets(options: dict[str, Any]) -> list[int] | None:
    if options["all"]:
        return None
    found: list[int] = []
    try:
        for part in options["offsets"].split(","):
            first, dash, last = part.strip().partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not numbers or len(found) + len(numbers) > _MOST:
                raise CommandError(f"--offsets: name 1 to {_MOST:,} records, or use --all.")
            found += numbers
    except ValueError as error:
        raise CommandError("--offsets: use numbers and ranges, such as 3,5-9.") from error
    return found
