"""Regions and topics, asked for real: all at once, each within its time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from audit_logging.doctor.examinations import Asked, Finding, examine, failure, ok, warning

from .. import eventlog, routing
from ..checks import told
from ..conf import conf
from ..eventlog import TopicFacts
from ..exceptions import EventLogError
from ..operating import topics

#: Of a spool that is filled beyond this, one cannot count on room for an event.
_NEARLY = 0.99


@examine("topics", "regions", seconds=20)
def regions(asked: Asked) -> Iterator[Finding]:
    """Every region answers; every topic is in each, as it should be."""
    if conf.problems():
        return
    if not routing.refresh():
        yield failure(
            "Topic routes could not be read from Django's database.",
            "Look at what is said of the database.",
        )
    wanted = topics.wanted()
    answers: dict[str, topics.Answer] = {}
    identities: dict[str, str] = {}
    for region, url in conf.region_urls().items():
        if asked.deploy and url.startswith("local:"):
            yield Finding(
                "warning",
                f"The {region} region is the embedded event log: one disk of one host.",
                f"Set AUDIT_PUBLISHER_{region.upper()}_URL to kafka://host:9092",
                "audit_publisher.W002",
            )
        began = time.monotonic()
        try:
            log = eventlog.get_region(region)
            answers[region] = log.describe(wanted)
            identities[region] = log.identity()
        except EventLogError as error:
            answers[region] = error
            yield failure(
                f"{region} ({url}) does not answer: {error}",
                f"See AUDIT_PUBLISHER_{region.upper()}_URL, KAFKA_CONFIG_FILE and the network "
                "between.",
            )
        else:
            took = (time.monotonic() - began) * 1000
            yield ok(f"{region} ({url}) answers in {took:.0f} ms")
    if asked.deploy and len(answers) == 1:
        yield warning(
            "There is one region: while it is away, events lie on this host's disk alone.",
            "Set AUDIT_PUBLISHER_SECONDARY_URL to a second cluster.",
        )
    if twins := topics.same(identities):
        yield failure(twins, "Give AUDIT_PUBLISHER_SECONDARY_URL the second cluster's address.")
    yield from _topics(answers, wanted)
    yield from _sizes(answers)


def _topics(answers: dict[str, topics.Answer], wanted: list[str]) -> Iterator[Finding]:
    wrong = topics.problems(answers, wanted)
    bad = {each.topic for each in wrong}
    for topic in wanted:
        said = [
            (region, facts)
            for region, answer in answers.items()
            if not isinstance(answer, Exception) and (facts := answer.get(topic)) is not None
        ]
        if said and topic not in bad:
            yield ok(f"{topic}: " + ", ".join(f"{name} ({_shown(facts)})" for name, facts in said))
        for each in wrong:
            if each.topic == topic:
                make = failure if each.serious else warning
                yield make(*told(each))


def _shown(facts: TopicFacts) -> str:
    said = [f"{facts.partitions} partition{'s' * (facts.partitions != 1)}"]
    if facts.replicas is not None:
        said.append(f"{facts.replicas} copies")
    if facts.retention is not None:
        days = facts.retention / 86_400
        said.append("kept for ever" if math.isinf(days) else f"kept {days:g} days")
    return ", ".join(said)


def _sizes(answers: dict[str, topics.Answer]) -> Iterator[Finding]:
    """The largest event fits everywhere; topics that are too small are told one by one."""
    largest = topics.largest_record()
    found: dict[str, int] = {}
    for region, answer in answers.items():
        if isinstance(answer, Exception):
            continue
        taken = [
            facts.largest_batch
            for topic, facts in answer.items()
            if facts is not None and facts.largest_batch is not None and topic in routing.topics()
        ]
        if taken:
            found[region] = min(taken)
        log: Any = eventlog.get_region(region)
        fetched = log.replica_fetch_bytes() if hasattr(log, "replica_fetch_bytes") else None
        if fetched is not None and fetched < largest:
            yield warning(
                f"Brokers of {region} fetch {fetched:,} bytes at once for their copies "
                f"(replica.fetch.max.bytes), less than the largest record, {largest:,}: such "
                "records are copied one by one.",
                f"Set replica.fetch.max.bytes of the brokers to {largest} or more.",
            )
    if found and min(found.values()) >= largest:
        told = ", ".join(f"{region} {size:,}" for region, size in found.items())
        yield ok(
            f"events of {conf.MAX_EVENT_BYTES:,} bytes (MAX_EVENT_BYTES) become records of "
            f"{largest:,} at most; taken are: {told}"
        )


@examine("queues", "publisher's spool")
def spool(asked: Asked) -> Iterator[Finding]:
    """What waits on this host for a region, and whether there is room for more."""
    if conf.problems():
        return
    from ..durable.spool import Spool

    folder = conf.spool_dir()
    if not folder.exists():
        yield ok("empty: it was not needed yet")
        return
    queue = Spool(folder, conf.SPOOL_MAX_BYTES)
    said = queue.accepts()
    if said:
        yield failure(said, "Bring a region back, or make room.")
        return
    records, size = queue.size()
    used = queue.queue.used_bytes()
    share = used / conf.SPOOL_MAX_BYTES
    room = conf.SPOOL_MAX_BYTES - used
    if share > _NEARLY or room < size / max(records, 1):
        # It refuses what does not fit before its last byte is used, and only its publishers know.
        yield failure(
            f"AUDIT_PUBLISHER_SPOOL_MAX_BYTES: the spool in {folder} is full ({used:,} of "
            f"{conf.SPOOL_MAX_BYTES:,} bytes, {records:,} records wait): events are refused with "
            "503.",
            "Bring a region back; then it empties by itself. Or raise it, where the disk has room.",
        )
    elif share > 0.5:
        yield warning(
            f"{records:,} records wait in {folder}, which is filled by {share:.0%}.",
            "Bring a region back; then it empties by itself. When it is full, events are refused.",
        )
    else:
        yield ok(f"{records:,} records waiting, {size:,} of {conf.SPOOL_MAX_BYTES:,} bytes")
