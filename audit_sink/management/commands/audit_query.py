"""`audit_query "SELECT …"`: ask the lake a question in SQL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_sink.exceptions import QueryError, SinkError
from audit_sink.query.engine import query
from audit_sink.query.output import FORMATS, write_csv, write_json, write_parquet, write_table


class Command(BaseCommand):
    """Print the answer to one SELECT over the table `audit_logs`."""

    help = (
        "Asks the lake a question in SQL, over the one table audit_logs: "
        'audit_query "SELECT response_code, count(*) FROM audit_logs GROUP BY 1". '
        "Exit status 2 when the question is wrong."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("sql", help="one SELECT; - reads it from standard input")
        parser.add_argument("--format", choices=FORMATS, default="table")
        parser.add_argument("--output", type=Path, help="write to this file instead of the screen")
        parser.add_argument(
            "--site",
            action="append",
            default=[],
            help="read only this site's files, for example US; may be given again",
        )
        parser.add_argument("--limit", type=int, help="rows of the answer at most")

    def handle(self, *args: Any, **options: Any) -> None:
        sql = sys.stdin.read() if options["sql"] == "-" else options["sql"]
        if options["limit"] is not None and options["limit"] < 0:
            raise CommandError("--limit must be 0 or more.", returncode=2)
        try:
            answer = query(
                sql, sites=[site.upper() for site in options["site"]], limit=options["limit"]
            )
        except QueryError as error:
            raise CommandError(str(error), returncode=2) from error
        except SinkError as error:
            raise CommandError(str(error)) from error
        try:
            self._write(answer, options["format"], options["output"])
        except BrokenPipeError:
            # The reader (head, less) has seen enough.
            pass
        except OSError as error:
            raise CommandError(f"{options['output']}: {error.strerror or error}") from error
        except (OverflowError, ValueError) as error:
            # An interval or a date beyond what Python, or the format, can hold.
            raise CommandError(
                f"A value of the answer cannot be written as {options['format']}: {error}. "
                "Cast the column to VARCHAR.",
                returncode=2,
            ) from error

    def _write(self, answer: Any, form: str, output: Path | None) -> None:
        if form == "parquet":
            if output is None:
                if sys.stdout.isatty():
                    raise CommandError("Parquet is no text. Add --output FILE.", returncode=2)
                write_parquet(answer, sys.stdout.buffer)
                return
            with output.open("wb") as file:
                write_parquet(answer, file)
            return
        write = {"table": write_table, "json": write_json, "csv": write_csv}[form]
        if output is None:
            # Django's wrapper would end each write with a newline.
            self.stdout.ending = ""
            write(answer, self.stdout)
            return
        with output.open("w", encoding="utf-8", newline="") as file:
            write(answer, file)
