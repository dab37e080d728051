"""What the clusters hold in the end, and whether that is what clients were promised."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.integration.publisher.clients import Account
from tests.integration.publisher.rig import TOPIC, Publisher, Region
from tests.services.kafka import QUIET, Kafka


@dataclass
class Found:
    """What was read back.

    :ivar copies: request_id → how often it is there, over all regions.
    :ivar regions: region → how many records.
    :ivar late: events that lie behind a later one of their key, in the same region, at their first
        place there: (region, request_id).
    """

    copies: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    late: list[tuple[str, str]] = field(default_factory=list)

    @property
    def duplicates(self) -> int:
        """Records beyond the first of their event."""
        return self.copies.total() - len(self.copies)


def read_back(regions: Iterable[Region]) -> Found:
    """Read both clusters from their first record to their last, past the proxies."""
    found = Found()
    for region in regions:
        furthest: dict[int, int] = {}
        seen: set[str] = set()
        for request_id in _request_ids(region.kafka):
            found.regions[region.name] += 1
            found.copies[request_id] += 1
            if request_id in seen:
                continue
            seen.add(request_id)
            whole = uuid.UUID(request_id).int
            key, number = whole >> 64, whole & (1 << 64) - 1
            if number < furthest.get(key, -1):
                found.late.append((region.name, request_id))
            furthest[key] = max(number, furthest.get(key, -1))
    return found


def _request_ids(kafka: Kafka) -> Iterable[str]:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": "reading",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            **QUIET,
        }
    )
    try:
        topic = consumer.list_topics(TOPIC, timeout=20).topics[TOPIC]
        for partition in topic.partitions:
            place = TopicPartition(TOPIC, partition)
            low, high = consumer.get_watermark_offsets(place, timeout=20)
            place.offset = low
            consumer.assign([place])
            deadline = time.monotonic() + 60
            while low < high:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{kafka.name}: only read to {low} of {high}")
                for message in consumer.consume(1000, 0.2):
                    if message.error() is None:
                        low = message.offset() + 1
                        yield (dict(message.headers() or ())["request_id"] or b"").decode()
    finally:
        consumer.close()


def check(account: Account, found: Found, *publishers: Publisher) -> None:
    """Raise AssertionError unless every promise was kept."""
    spooled = {request_id for each in publishers for request_id in each.spooled_ids()}
    lost = account.durable - set(found.copies) - spooled
    assert not lost, f"{len(lost)} promised events are nowhere: {_some(lost, account)}"
    taken = account.refused & (set(found.copies) | spooled)
    assert not taken, f"{len(taken)} refused events were stored: {_some(taken, account)}"


def _some(names: set[str], account: Account) -> str:
    return ", ".join(f"{name} {account.promises[name]}" for name in sorted(names)[:5])
