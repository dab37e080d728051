"""`manage.py audit_topics`: create, or verify, the topics in each region."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_publisher import eventlog, routing
from audit_publisher.conf import conf
from audit_publisher.exceptions import EventLogError, UnknownTopic
from audit_publisher.names import DEAD_LETTER_SUFFIX

#: What headers, key and framing may add to an event.
ENVELOPE_BYTES = 4096


class Command(BaseCommand):
    """Creates and verifies topics."""

    help = (
        "Look at every topic (the default one, each topic route's, and their dead-letter topics) "
        "in every region. With --create, those that are missing are made. Fails when a topic is "
        "missing or takes smaller records than we accept, a region does not answer, or regions "
        "differ in partitions."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare --create, --partitions and --json."""
        parser.add_argument("--create", action="store_true", help="Create what is missing.")
        parser.add_argument(
            "--partitions",
            type=int,
            help="Partitions of topics that are created (TOPIC_PARTITIONS); dead-letter topics "
            "get one.",
        )
        parser.add_argument("--json", action="store_true", help="Print JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Look, create, report."""
        partitions = options["partitions"] or conf.TOPIC_PARTITIONS
        if partitions < 1:
            raise CommandError("--partitions: use 1 or more.")
        if not routing.refresh():
            raise CommandError("Topic routes could not be read. Run: python manage.py migrate")
        rows = [
            _look(region, topic, partitions, options["create"])
            for region in eventlog.region_names()
            for topic in wanted()
        ]
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=2))
        else:
            for row in rows:
                count = f"{row['partitions']} partitions" if row["partitions"] else row["error"]
                made = " (created)" if row["created"] else ""
                self.stdout.write(f"{row['region']:<10} {row['topic']:<40} {count}{made}")
        problems = [f"{row['region']}: {row['error']}" for row in rows if row["error"]]
        problems += [
            f"{row['region']}: {row['topic']} takes records up to {row['largest_record']:,} bytes, "
            f"events may have {conf.MAX_EVENT_BYTES:,}: the largest would be lost. Raise the "
            "topic's max.message.bytes, or lower AUDIT_PUBLISHER_MAX_EVENT_BYTES."
            for row in rows
            if not row["error"] and row["largest_record"] < conf.MAX_EVENT_BYTES + ENVELOPE_BYTES
        ]
        for topic in wanted():
            counts = {row["partitions"] for row in rows if row["topic"] == topic} - {0}
            if len(counts) > 1:
                problems.append(f"{topic} has {sorted(counts)} partitions in different regions.")
        if problems:
            raise CommandError("\n".join(problems))


def wanted() -> list[str]:
    """Every topic that must exist: those of events, and the dead-letter topic of each."""
    topics = routing.topics()
    return [*topics, *(topic + DEAD_LETTER_SUFFIX for topic in topics)]


def _look(region: str, topic: str, partitions: int, create: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "region": region,
        "topic": topic,
        "partitions": 0,
        "created": False,
        "largest_record": 0,
        "error": "",
    }
    count = 1 if topic.endswith(DEAD_LETTER_SUFFIX) else partitions
    try:
        log = eventlog.get_region(region)
        try:
            row["partitions"] = log.partitions(topic)
        except UnknownTopic as error:
            if not create:
                row["error"] = f"{error} Create it with: audit_topics --create"
                return row
            log.ensure_topic(topic, count)
            row["partitions"], row["created"] = log.partitions(topic), True
        row["largest_record"] = log.largest_record(topic)
    except EventLogError as error:
        row["error"] = str(error)
    return row
