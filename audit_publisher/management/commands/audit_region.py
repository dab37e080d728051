"""`manage.py audit_region`: how publishers see the regions; drain one, fail over, and back."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from audit_logging import changes
from audit_publisher.operating.overview import TIME, Overview, RegionView, look
from audit_publisher.operating.printing import to_reader
from audit_publisher.operating.region_actions import ACTIONS, Overtaken, carry_out, plan


class Command(BaseCommand):
    """Shows regions, and says what is wanted of them, as the admin's page does."""

    help = (
        "Show how every publisher process sees the regions, and say what is wanted of them: "
        "`drain` (nothing more is sent there) and `take-back`, `fail-over` (use it first) and "
        "`fail-back`. Publishers follow within seconds. Example: audit_region drain primary "
        "--reason 'new disks'"
    )
    # Wanted most when something is wrong: a failing check must not stand in the way.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare list, drain, take-back, fail-over and fail-back."""
        actions = parser.add_subparsers(
            dest="action", required=True, metavar="|".join(("list", *ACTIONS))
        )
        listed = actions.add_parser("list", help="Show regions and processes.")
        listed.add_argument("--json", action="store_true", help="Print JSON.")
        for name in ACTIONS:
            action = actions.add_parser(name)
            action.add_argument("region", help="Such as primary.")
            action.add_argument("--reason", required=True, help="Kept in the trail.")
            action.add_argument(
                "--yes", action="store_true", help="Also where events can then only be spooled."
            )

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what was asked."""
        try:
            overview = look()
            with to_reader(self.stdout):
                if options["action"] == "list":
                    self._list(overview, options["json"])
                else:
                    self._act(overview, options)
        except Error as error:
            raise CommandError(f"The database does not answer: {error}") from error

    def _act(self, overview: Overview, options: dict[str, Any]) -> None:
        region = options["region"]
        try:
            found = plan(options["action"], region, overview)
        except KeyError as error:
            raise CommandError(
                f"There is no region {region!r}: {', '.join(overview.names)}."
            ) from error
        if found.impossible:
            raise CommandError(found.impossible)
        if found.dangers and not options["yes"]:
            raise CommandError(" ".join([*found.dangers, "With --yes it is done all the same."]))
        try:
            with changes.because(options["reason"]):
                found = carry_out(found, whatever=options["yes"])
        except Overtaken as overtaken:
            said = ["Somebody else was quicker.", str(overtaken)]
            if not overtaken.plan.impossible:
                said.append("With --yes it is done all the same.")
            raise CommandError(" ".join(said)) from overtaken
        for line in [*found.effects, *found.dangers]:
            self.stdout.write(line)

    def _list(self, overview: Overview, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(_document(overview), indent=2, default=str))
            return
        for region in overview.regions:
            seen = "is seen up by" if region.drained else "takes records in"
            self.stdout.write(
                f"{region.name:<12} {_wanted(region)}; {seen} {region.good} of {region.seen} "
                f"processes {'; '.join(region.problems[:1])}".rstrip()
            )
        if not overview.settled:
            self.stdout.write(
                f"{overview.taken_up} of {len(overview.live)} running processes have taken that up."
            )
        for process in overview.processes:
            states = ", ".join(
                f"{sight.region} {sight.state or 'none'}" for sight in process.sights
            )
            silent = " (silent)" if process.stale else " (upkeep hangs)" if process.late else ""
            self.stdout.write(
                f"{process.row.host} {process.row.pid}, {process.age:.0f} s ago{silent}: {states}; "
                f"order: {', '.join(process.order) or 'spool only'}"
                + ("" if process.stale or process.taken_up else "; NOT YET AS WANTED")
            )
        for spool in overview.spools:
            self.stdout.write(f"spool of {spool}")
        if not overview.processes:
            self.stdout.write("No publisher process has been heard.")


def _wanted(region: RegionView) -> str:
    """What is wanted of a region; who wanted it, when and why, if it is more than nothing."""
    wanted = "drained" if region.drained else f"number {region.place} in the order"
    if region.first and region.place:
        wanted += " by wish"
    wish = region.wish
    if wish is None or not (region.drained or region.first) or wish.wished_at is None:
        return wanted
    said = (
        f"{wanted} (asked by {wish.wished_by}, {wish.wished_at:{TIME}}: {wish.note or 'no reason'})"
    )
    return changes.printable(said)


def _document(overview: Overview) -> dict[str, Any]:
    return {
        "drained": sorted(overview.wishes.drained),
        "first": overview.wishes.first,
        "regions": [
            {
                "region": region.name,
                "place": region.place,
                "drained": region.drained,
                "first": region.first,
                "processes": region.seen,
                "seen_up": region.good,
                "takes_records": 0 if region.drained else region.good,
                "asked_by": region.wish.wished_by if region.wish else "",
                "asked_at": region.wish.wished_at if region.wish else None,
                "reason": region.wish.note if region.wish else "",
                "problems": region.problems,
            }
            for region in overview.regions
        ],
        "processes": [
            {
                "host": process.row.host,
                "pid": process.row.pid,
                "seconds_ago": round(process.age, 1),
                "stale": process.stale,
                "taken_up": process.taken_up,
                **process.row.state,
            }
            for process in overview.processes
        ],
        "spools": [spool.document() for spool in overview.spools],
    }
