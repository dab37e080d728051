"""Topics as they should be, and as the regions say they are: one judgement for the probes,
``check --deploy``, ``audit_topics`` and ``audit_doctor``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from .. import routing
from ..conf import conf
from ..eventlog import MAX_RECORD_BYTES, TopicFacts
from ..names import DEAD_LETTER_SUFFIX

#: What a record may have more than its event's JSON: the key (a service's and an endpoint's name
#: once more), the forwarded headers, the fields that Avro always writes, and what Kafka adds to a
#: record and to a batch of one.
ENVELOPE_BYTES = 8192

#: What is kept for less is lost when a sink is away over night, or over a weekend: seconds.
SHORTEST_RETENTION, SHORT_RETENTION = 86_400, 3 * 86_400

#: What one region said: its topics, or why it said nothing.
Answer = Mapping[str, TopicFacts | None] | Exception

Kind = Literal["missing", "partitions", "size", "cleanup", "retention", "replicas", "unknown"]

#: What loses events, or holds them up, today.
HOLDS_UP = frozenset({"missing", "partitions", "size", "cleanup"})


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """Something that is wrong with a topic, and its cure.

    :ivar regions: names of the regions it is about.
    :ivar serious: it loses events or holds them up; otherwise it may, one day.
    """

    kind: Kind
    topic: str
    regions: tuple[str, ...]
    message: str
    cure: str
    serious: bool = True

    def __str__(self) -> str:
        return f"{self.message} {self.cure}"


def same(identities: Mapping[str, str]) -> str:
    """Say which regions are one and the same, whatever their addresses; "" when none are.

    :param identities: what each region said it is, by its name.
    """
    owners: dict[str, list[str]] = {}
    for region, identity in identities.items():
        if identity:
            owners.setdefault(identity, []).append(region)
    shared = [(names, identity) for identity, names in owners.items() if len(names) > 1]
    return "; ".join(
        f"The regions {' and '.join(names)} are one and the same ({identity}): when it is away, "
        "both are."
        for names, identity in shared
    )


def wanted() -> list[str]:
    """Every topic that must exist: those of events, and the dead-letter topic of each."""
    topics = routing.topics()
    return [*topics, *(topic + DEAD_LETTER_SUFFIX for topic in topics)]


def largest_record() -> int:
    """Bytes that the record of the largest event may have, alone in its batch."""
    return min(conf.MAX_EVENT_BYTES + ENVELOPE_BYTES, MAX_RECORD_BYTES)


def problems(answers: Mapping[str, Answer], topics: Iterable[str]) -> list[TopicProblem]:
    """What is wrong with `topics`; a region that said nothing is passed over.

    :param answers: what each region said, by its name.
    """
    heard = {name: said for name, said in answers.items() if not isinstance(said, Exception)}
    found: list[TopicProblem] = []
    for topic in topics:
        counts = {}
        for region, said in heard.items():
            facts = said.get(topic)
            if facts is None:
                found.append(missing(topic, region))
                continue
            counts[region] = facts.partitions
            found += _of_one(topic, region, facts)
        found += _partitions(topic, counts)
    return found


def _setting(topic: str) -> str:
    """What names this topic."""
    return (
        "AUDIT_PUBLISHER_DEFAULT_TOPIC"
        if topic.removesuffix(DEAD_LETTER_SUFFIX) == conf.DEFAULT_TOPIC
        else "Topic routes in the admin"
    )


def missing(topic: str, region: str) -> TopicProblem:
    """A region has no such topic."""
    return TopicProblem(
        "missing",
        topic,
        (region,),
        f"{_setting(topic)}: region {region} has no topic {topic!r}.",
        "Correct the name, or create it with manage.py audit_topics --create",
    )


def _partitions(topic: str, counts: Mapping[str, int]) -> Iterator[TopicProblem]:
    said = ", ".join(f"{region} {count}" for region, count in counts.items())
    if len(set(counts.values())) > 1:
        yield TopicProblem(
            "partitions",
            topic,
            tuple(counts),
            f"{topic} has different numbers of partitions in different regions: {said}.",
            f"Give it {max(counts.values())} in each: kafka-topics.sh --alter --topic {topic} "
            f"--partitions {max(counts.values())}",
        )
    few = {region: count for region, count in counts.items() if count < conf.TOPIC_PARTITIONS}
    if len(few) == len(counts) > 0 and not topic.endswith(DEAD_LETTER_SUFFIX):
        yield TopicProblem(
            "partitions",
            topic,
            tuple(few),
            f"{topic} has fewer partitions than AUDIT_PUBLISHER_TOPIC_PARTITIONS "
            f"({conf.TOPIC_PARTITIONS}): {said}.",
            f"kafka-topics.sh --alter --topic {topic} --partitions {conf.TOPIC_PARTITIONS}, or "
            "set AUDIT_PUBLISHER_TOPIC_PARTITIONS to what there is.",
            serious=False,
        )


def _of_one(topic: str, region: str, facts: TopicFacts) -> Iterator[TopicProblem]:
    where = f"{topic} in region {region}"
    if facts.largest_batch is None:
        yield TopicProblem(
            "unknown",
            topic,
            (region,),
            f"{where}: its settings may not be asked for.",
            "Allow DescribeConfigs on the topic to find limits and retention that are too small.",
            serious=False,
        )
    elif facts.largest_batch < largest_record():
        yield TopicProblem(
            "size",
            topic,
            (region,),
            f"{where} takes records up to {facts.largest_batch:,} bytes (max.message.bytes), "
            f"and that of the largest event may have {largest_record():,}: it would be refused.",
            f"Raise the topic's max.message.bytes (or the brokers' message.max.bytes) to "
            f"{largest_record()}, or lower AUDIT_PUBLISHER_MAX_EVENT_BYTES to "
            f"{max(1000, facts.largest_batch - ENVELOPE_BYTES)}.",
        )
    if "compact" in facts.cleanup:
        yield TopicProblem(
            "cleanup",
            topic,
            (region,),
            f"{where} is compacted (cleanup.policy={facts.cleanup}): of an endpoint's events only "
            "the last is kept.",
            "Set its cleanup.policy to delete.",
        )
    yield from _retention(topic, region, facts)
    yield from _copies(topic, region, facts)


def _retention(topic: str, region: str, facts: TopicFacts) -> Iterator[TopicProblem]:
    if facts.retention is None or facts.retention >= SHORT_RETENTION:
        return
    yield TopicProblem(
        "retention",
        topic,
        (region,),
        f"{topic} in region {region} keeps records for {facts.retention / 3600:g} hours: what a "
        "sink has not stored by then is lost.",
        f"Raise its retention.ms to {SHORT_RETENTION * 1000} (three days) or more"
        " (AUDIT_PUBLISHER_LOCAL_RETENTION_HOURS of the embedded event log).",
        serious=facts.retention < SHORTEST_RETENTION,
    )


def _copies(topic: str, region: str, facts: TopicFacts) -> Iterator[TopicProblem]:
    if facts.replicas is None:
        return
    where = f"{topic} in region {region}"
    if facts.replicas < 2:
        yield TopicProblem(
            "replicas",
            topic,
            (region,),
            f"{where} has one copy (replication factor 1): it is lost with its broker's disk.",
            "Use a replication factor of 3 (AUDIT_PUBLISHER_TOPIC_REPLICATION for topics that "
            "audit_topics creates; kafka-reassign-partitions.sh for this one).",
            serious=False,
        )
    elif facts.min_insync is not None and facts.min_insync < 2:
        yield TopicProblem(
            "replicas",
            topic,
            (region,),
            f"{where} acknowledges with one copy (min.insync.replicas=1), whatever acks=all says.",
            "Set its min.insync.replicas to 2.",
            serious=False,
        )
    elif facts.min_insync is not None and facts.min_insync >= facts.replicas:
        yield TopicProblem(
            "replicas",
            topic,
            (region,),
            f"{where} takes nothing once one broker is away: it has {facts.replicas} copies, and "
            f"min.insync.replicas is {facts.min_insync}.",
            "Use one copy more than min.insync.replicas.",
            serious=False,
        )
