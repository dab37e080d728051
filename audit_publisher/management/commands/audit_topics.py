"""`manage.py audit_topics`: create, or verify, the topics in each region."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_publisher import eventlog, routing
from audit_publisher.conf import conf
from audit_publisher.exceptions import EventLogError
from audit_publisher.names import DEAD_LETTER_SUFFIX
from audit_publisher.operating.topics import Answer, problems, wanted


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
        answers: dict[str, Answer] = {}
        rows = []
        for region in eventlog.region_names():
            answers[region], told = _look(region, partitions, options["create"])
            rows += told
        if options["json"]:
            self.stdout.write(json.dumps(rows, indent=2))
        else:
            for row in rows:
                count = f"{row['partitions']} partitions" if row["partitions"] else row["error"]
                made = " (created)" if row["created"] else ""
                self.stdout.write(f"{row['region']:<10} {row['topic']:<40} {count}{made}")
        silent = [
            f"{name}: {said}" for name, said in answers.items() if isinstance(said, Exception)
        ]
        found = problems(answers, wanted())
        wrong = [str(problem) for problem in found if problem.serious]
        if silent or wrong:
            raise CommandError("\n".join([*silent, *wrong]))


def _look(region: str, partitions: int, create: bool) -> tuple[Answer, list[dict[str, Any]]]:
    """What a region says of all topics, those that are missing made first if that is wanted; and
    a row of the answer for each."""
    topics = wanted()
    made: list[str] = []
    found: dict[str, Any] = {}
    answer: Answer
    error = ""
    try:
        log = eventlog.get_region(region)
        if create:
            made = log.missing(topics)
            for topic in made:
                log.ensure_topic(topic, 1 if topic.endswith(DEAD_LETTER_SUFFIX) else partitions)
        answer = found = log.describe(topics)
    except EventLogError as failure:
        answer, error = failure, str(failure)
    rows = [
        {
            "region": region,
            "topic": topic,
            "partitions": facts.partitions if (facts := found.get(topic)) else 0,
            "created": facts is not None and topic in made,
            "largest_record": (facts.largest_batch or 0) if facts else 0,
            "error": error if error or facts else f"There is no topic {topic!r}.",
        }
        for topic in topics
    ]
    return answer, rows
