"""`audit_verify`: does the ledger agree with itself, with the buckets, and with the producers?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_sink.exceptions import QueryError
from audit_sink.lake.ledger import ledger_problems
from audit_sink.models import Batch, LakeFile
from audit_sink.query.completeness import DAYS, GRACE, Completeness, completeness


class Command(BaseCommand):
    """Check ranges, counts, files and numbers; exit status 1 when anything is wrong."""

    help = (
        "Checks that batches have no gap or overlap, that all records are accounted for, that "
        "each file is there unaltered and known, and that every event that a capture process "
        "numbered is in the lake; names those that are not. Exit status 1 when something is wrong "
        "or lost without a reason."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print for a program")
        parser.add_argument(
            "--quick", action="store_true", help="compare sizes, do not read the files"
        )
        parser.add_argument(
            "--days",
            type=float,
            default=DAYS,
            help="look for missing events of the last so many days (%(default)g); 0: of all time",
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=GRACE,
            metavar="SECONDS",
            help="how long an event may be on its way before it is missing (%(default)g)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["days"] < 0 or options["grace"] < 0:
            raise CommandError("--days and --grace must be 0 or more.", returncode=2)
        problems = ledger_problems(contents=not options["quick"])
        counts = {"batches": Batch.objects.count(), "files": LakeFile.objects.count()}
        numbers: Completeness | None = None
        failure = ""
        if not options["quick"]:
            try:
                numbers = completeness(days=options["days"], grace=options["grace"])
            except QueryError as error:
                failure = str(error)
        lost = [each for each in numbers.incomplete if each.unexplained] if numbers else []
        if options["json"]:
            found = [asdict(problem) for problem in problems]
            if failure:
                found.append({"kind": "unreadable", "where": "lake", "message": failure})
            answer: dict[str, Any] = {"ok": not (found or lost), **counts, "problems": found}
            if numbers is not None:
                answer["producers"] = numbers.as_dict()
            self.stdout.write(json.dumps(answer, indent=1))
        else:
            self._tell(problems, counts, numbers, failure)
        if problems or lost or failure:
            raise SystemExit(1)

    def _tell(
        self,
        problems: list[Any],
        counts: dict[str, int],
        numbers: Completeness | None,
        failure: str,
    ) -> None:
        for problem in problems:
            self.stdout.write(self.style.ERROR(str(problem)))
        line = f"{counts['batches']:,} batches, {counts['files']:,} files: "
        if problems:
            self.stdout.write(line + f"{len(problems)} problems")
        else:
            self.stdout.write(self.style.SUCCESS(line + "all is well"))
        if failure:
            self.stdout.write(self.style.ERROR(failure))
        if numbers is None:
            return
        for each in numbers.incomplete:
            style = self.style.ERROR if each.unexplained else self.style.WARNING
            self.stdout.write(style(str(each)))
        line = f"{numbers.checked:,} producers, {numbers.stored:,} events: "
        if not numbers.incomplete:
            self.stdout.write(self.style.SUCCESS(line + "none is missing"))
            return
        missing = sum(each.missing for each in numbers.incomplete)
        reasonless = sum(each.unexplained for each in numbers.incomplete)
        self.stdout.write(
            line + f"{missing:,} are missing, {reasonless:,} of them without a reason"
        )
        if numbers.waiting:
            self.stdout.write(
                f"{numbers.waiting:,} records wait in the event log: ask again when audit_status "
                "shows no lag."
            )
