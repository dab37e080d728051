"""`audit_verify`: does the ledger agree with itself and with the buckets?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit_sink.lake.ledger import ledger_problems
from audit_sink.models import Batch, LakeFile


class Command(BaseCommand):
    """Check ranges, counts and files; exit status 1 when anything is wrong."""

    help = (
        "Checks that batches have no gap or overlap, that all records are accounted for, and that "
        "each file is there unaltered and known. Exit status 1 when not."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print for a program")
        parser.add_argument(
            "--quick", action="store_true", help="compare sizes, do not read the files"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        problems = ledger_problems(contents=not options["quick"])
        counts = {"batches": Batch.objects.count(), "files": LakeFile.objects.count()}
        if options["json"]:
            found = [asdict(problem) for problem in problems]
            self.stdout.write(json.dumps({"ok": not found, **counts, "problems": found}, indent=1))
        else:
            for problem in problems:
                self.stdout.write(self.style.ERROR(str(problem)))
            line = f"{counts['batches']:,} batches, {counts['files']:,} files: "
            if problems:
                self.stdout.write(line + f"{len(problems)} problems")
            else:
                self.stdout.write(self.style.SUCCESS(line + "all is well"))
        if problems:
            raise SystemExit(1)
