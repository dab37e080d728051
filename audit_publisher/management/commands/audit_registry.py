"""`manage.py audit_registry`: what the schema registry knows of our topics, and enforces."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_publisher import routing
from audit_publisher.avro.registry import ConfluentRegistry, open_registry
from audit_publisher.codec import schema_text
from audit_publisher.exceptions import RegistryError


class Command(BaseCommand):
    """Registers our schema, shows whether BACKWARD is enforced, and has it enforced."""

    help = (
        "Register the schema under the subject of every topic, and show its id and whether the "
        "registry refuses schemas that break readers (BACKWARD). Fails where it does not; with "
        "--enforce that is set, for our subjects alone. The publisher itself never "
        "changes the registry's configuration: its credentials need no right to."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare --enforce."""
        parser.add_argument(
            "--enforce", action="store_true", help="Set BACKWARD where it does not."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Look, set, report."""
        if not routing.refresh():
            raise CommandError("Topic routes could not be read. Run: python manage.py migrate")
        registry = open_registry()
        weak = []
        try:
            for topic in routing.topics():
                subject = f"{topic}-value"
                schema_id = registry.register(subject, schema_text())
                guarded = True
                if isinstance(registry, ConfluentRegistry):
                    guarded = registry.guards(subject, schema_text())
                    if not guarded and options["enforce"]:
                        registry.enforce(subject)
                        guarded = registry.guards(subject, schema_text())
                if not guarded:
                    weak.append(subject)
                said = "refuses what breaks readers" if guarded else "takes everything"
                self.stdout.write(f"{subject:<40} schema {schema_id:<6} {said}")
        except RegistryError as error:
            raise CommandError(str(error)) from error
        finally:
            registry.close()
        if weak:
            raise CommandError(
                f"The registry would take schemas that break readers of {', '.join(weak)}. Run: "
                "python manage.py audit_registry --enforce"
            )
