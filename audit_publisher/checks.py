"""System checks: every misconfiguration of the publisher, and its cure.

E001 an option is wrong or does not exist
E002 the Kafka properties file cannot be used
E004 both regions are the same (by their addresses; with --deploy by what they say they are)
E005 a batch may not hold one event of the largest size
E006 a region does not answer, or lacks a topic (with --deploy)
E007 the schema registry does not answer, or refuses the schema (with --deploy)
E008 a topic holds up or loses events: partitions, size of records, compaction, retention
     (with --deploy)
W001 signatures are not enforced (with --deploy)
W002 the event log is the embedded one (with --deploy)
W003 a topic may lose events one day: copies, short retention (with --deploy)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured

from .conf import conf
from .names import DEAD_LETTER_SUFFIX

if TYPE_CHECKING:
    from .operating.topics import TopicProblem


@register("audit_publisher")
def check_options(**kwargs: Any) -> list[CheckMessage]:
    """E001: an option is wrong or does not exist."""
    return [
        Error(f"{problem.setting}: {problem.message}", hint=problem.cure, id="audit_publisher.E001")
        for problem in conf.problems()
    ]


@register("audit_publisher")
def check_combinations(**kwargs: Any) -> list[CheckMessage]:
    """E002 to E005: options that are right one by one, and wrong together."""
    if conf.problems():
        return []
    found: list[CheckMessage] = []
    urls = conf.region_urls()
    if any(url.startswith("kafka:") for url in urls.values()):
        found += _check_kafka()
    if len(set(urls.values())) < len(urls):
        found.append(
            Error(
                "AUDIT_PUBLISHER_SECONDARY_URL is the primary region's.",
                hint="Give the second region's own address, or none.",
                id="audit_publisher.E004",
            )
        )
    if conf.MAX_BATCH_BYTES <= conf.MAX_EVENT_BYTES:
        found.append(
            Error(
                "AUDIT_PUBLISHER_MAX_BATCH_BYTES is not above MAX_EVENT_BYTES: a batch could not "
                "hold the largest event.",
                hint="Raise MAX_BATCH_BYTES.",
                id="audit_publisher.E005",
            )
        )
    return found


def _check_kafka() -> list[CheckMessage]:
    from .eventlog.kafka_config import load_properties

    found: list[CheckMessage] = []
    for path in {conf.KAFKA_CONFIG_FILE, conf.SECONDARY_KAFKA_CONFIG_FILE} - {None}:
        try:
            load_properties(path)
        except ImproperlyConfigured as error:
            found.append(
                Error(
                    str(error),
                    hint="One name=value a line; see librdkafka's CONFIGURATION.md.",
                    id="audit_publisher.E002",
                )
            )
    return found


@register("audit_publisher", deploy=True)
def check_regions(**kwargs: Any) -> list[CheckMessage]:
    """E004, E006, E008, W002, W003: regions and topics, asked for real."""
    if conf.problems() or check_combinations():
        return []
    from . import eventlog, routing
    from .exceptions import EventLogError
    from .operating import topics

    found: list[CheckMessage] = []
    answers: dict[str, topics.Answer] = {}
    identities: dict[str, str] = {}
    wanted = routing.topics()
    for region, url in conf.region_urls().items():
        if url.startswith("local:"):
            found.append(
                Warning(
                    f"The {region} region is the embedded event log: one disk of one host.",
                    hint=f"Set AUDIT_PUBLISHER_{region.upper()}_URL to kafka://host:9092",
                    id="audit_publisher.W002",
                )
            )
        try:
            log = eventlog.get_region(region)
            answers[region] = log.describe(wanted)
            identities[region] = log.identity()
        except EventLogError as error:
            found.append(
                Error(
                    f"Region {region} ({url}): {error}",
                    hint=f"See AUDIT_PUBLISHER_{region.upper()}_URL, KAFKA_CONFIG_FILE and the "
                    "network between.",
                    id="audit_publisher.E006",
                )
            )
    if twins := topics.same(identities):
        found.append(
            Error(
                twins,
                hint="Give the second region's own address, or none.",
                id="audit_publisher.E004",
            )
        )
    for problem in topics.problems(answers, wanted):
        number = "E006" if problem.kind == "missing" else "E008" if problem.serious else "W003"
        kind = Error if problem.serious else Warning
        message, cure = told(problem)
        found.append(kind(message, hint=cure, id=f"audit_publisher.{number}"))
    return found


def told(problem: TopicProblem) -> tuple[str, str]:
    """What is wrong with a topic, and its cure; no setting names a dead-letter topic."""
    if problem.kind == "missing" and problem.topic.endswith(DEAD_LETTER_SUFFIX):
        where = " and ".join(problem.regions)
        return (
            f"Region {where} has no topic {problem.topic!r}, where records that no sink can use "
            "are kept.",
            "Create it: manage.py audit_topics --create",
        )
    return problem.message, problem.cure


@register("audit_publisher", deploy=True)
def check_registry(**kwargs: Any) -> list[CheckMessage]:
    """E007: the registry, asked for real."""
    if conf.problems():
        return []
    from . import codec, routing
    from .exceptions import RegistryError

    for topic in routing.topics():
        try:
            codec.schema_ids.get(topic)
        except (RegistryError, OSError) as error:
            return [
                Error(
                    f"Schema of topic {topic}: {error}",
                    hint="See AUDIT_PUBLISHER_REGISTRY_URL.",
                    id="audit_publisher.E007",
                )
            ]
    return []


@register("audit_publisher", deploy=True)
def check_signatures(**kwargs: Any) -> list[CheckMessage]:
    """W001: anybody may publish."""
    if conf.problems() or conf.SIGNATURE == "enforce":
        return []
    return [
        Warning(
            f"AUDIT_PUBLISHER_SIGNATURE is {conf.SIGNATURE}: whoever reaches the publisher may "
            "write into the audit log.",
            hint="Register the consumers' keys (manage.py audit_key add) and set it to enforce.",
            id="audit_publisher.W001",
        )
    ]
