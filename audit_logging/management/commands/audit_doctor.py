"""`manage.py audit_doctor`: is everything configured right?"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit_logging.doctor.examinations import GROUPS, Asked, Level, load
from audit_logging.doctor.printing import Page, document, summary
from audit_logging.doctor.running import run

_EPILOG = """\
examples:
  manage.py audit_doctor                        everything, for people
  manage.py audit_doctor --deploy               as a production installation must be
  manage.py audit_doctor --only topics registry
  manage.py audit_doctor --json | jq '.findings[] | select(.level != "ok")'

exit status: 0 nothing failed, 1 something failed (with --fail-level warning: or may, one day),
2 wrong usage. Nothing is changed, but for one small marker object in each bucket, by which
writing is tried. Secrets are not shown.
"""


def _groups(text: str) -> list[str]:
    """What --only names: a group, or several with commas."""
    groups = [each.strip() for each in text.split(",")]
    for group in groups:
        if group not in GROUPS:
            known = ", ".join(GROUPS)
            raise argparse.ArgumentTypeError(f"invalid choice: {group!r} (choose from {known})")
    return groups


class Command(BaseCommand):
    """Examines the whole configuration."""

    help = (
        "Examine the configuration of every installed part, for real: settings, keys, clocks, "
        "broker, database, topics, registry, buckets, folders. Prints ok, or what is wrong and "
        "its cure. Run it where the service runs, as its user."
    )
    # What checks say is a part of the answer, and no reason not to give one.
    requires_system_checks: list[str] = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Keep the examples' lines as they are."""
        return super().create_parser(
            prog_name,
            subcommand,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare --only, --deploy, --fail-level and --json."""
        parser.add_argument(
            "--only",
            action="extend",
            nargs="+",
            type=_groups,
            metavar="GROUP",
            help=f"Only these groups, of {', '.join(GROUPS)}.",
        )
        parser.add_argument(
            "--deploy",
            action="store_true",
            help="Be as strict as production needs: also Django's own deployment checks, and "
            "what is embedded, unsigned, unencrypted or kept in one copy.",
        )
        parser.add_argument(
            "--fail-level",
            choices=("error", "warning"),
            default="error",
            help="What makes the exit status 1 (%(default)s).",
        )
        parser.add_argument("--json", action="store_true", help="Print JSON, for a program.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Examine, and say what was found."""
        only = [group for groups in options["only"] or [GROUPS] for group in groups]
        examinations = [each for each in load() if each.group in only]
        began = time.monotonic()
        reports = []
        page = Page(self.stdout, examinations, self._paint)
        if options["verbosity"] < 2:
            # What fails is told here, with its cure, and not by each library once more.
            logging.disable(logging.CRITICAL)
        for report in run(examinations, Asked(deploy=options["deploy"])):
            reports.append(report)
            if not options["json"]:
                page.add(report)
                self.stdout.flush()
        logging.disable(logging.NOTSET)
        levels = [finding.level for report in reports for finding in report.findings]
        failed = "FAIL" in levels or (options["fail_level"] == "warning" and "warning" in levels)
        took = time.monotonic() - began
        if options["json"]:
            answer = {
                "ok": not failed,
                "seconds": round(took, 3),
                "findings": document(reports),
            }
            self.stdout.write(json.dumps(answer, indent=2))
        elif not levels:
            self.stdout.write("Nothing to examine here.")
        else:
            self.stdout.write(f"\n{summary(reports, took)}")
        if failed:
            sys.exit(1)

    def _paint(self, level: Level, text: str) -> str:
        if not self.stdout.isatty():
            return text
        style = {"ok": "SUCCESS", "warning": "WARNING", "FAIL": "ERROR"}[level]
        return str(getattr(self.style, style)(text))
