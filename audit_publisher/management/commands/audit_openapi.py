"""`manage.py audit_openapi`: write, or check, the committed OpenAPI document."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_publisher.http import openapi


class Command(BaseCommand):
    """Writes the OpenAPI document."""

    help = (
        "Write audit_publisher/openapi.json from the views and the event's type. With --check "
        "nothing is written: the command fails when the committed document is not the served one."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare --check and --print."""
        parser.add_argument(
            "--check", action="store_true", help="Fail if the document is out of date."
        )
        parser.add_argument("--print", action="store_true", help="Print it instead.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write, print or compare."""
        text = openapi.text()
        if options["print"]:
            self.stdout.write(text, ending="")
        elif options["check"]:
            path = openapi.DOCUMENT_PATH
            if not path.exists() or path.read_text() != text:
                raise CommandError(f"{path} is out of date. Run: python manage.py audit_openapi")
            self.stdout.write(f"{path} is up to date.")
        else:
            openapi.DOCUMENT_PATH.write_text(text)
            self.stdout.write(f"Wrote {openapi.DOCUMENT_PATH}.")
