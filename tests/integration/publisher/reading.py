"""What the clusters hold in the end, and whether that is what clients were promised."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.integration.publisher.clients import Account
from tests.integration.publisher.rig import PARTITIONS, TOPIC, Publisher, Region
from tests.services.kafka import QUIET


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


class Reader:
    """Reads both clusters, past the proxies; each time what came since the last time."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions = tuple(regions)
        self._consumers: dict[str, Any] = {}
        self._next: dict[tuple[str, int], int] = {}

    def read(self, among: Container[str] | None = None) -> Found:
        """Read to the end as it is now.

        :param among: the events whose order counts; None: all.
        """
        found = Found()
        for region in self._regions:
            furthest: dict[int, int] = {}
            seen: set[str] = set()
            for request_id in self._request_ids(region):
                found.regions[region.name] += 1
                found.copies[request_id] += 1
                if request_id in seen:
                    continue
                seen.add(request_id)
                if among is not None and request_id not in among:
                    continue
                whole = uuid.UUID(request_id).int
                key, number = whole >> 64, whole & (1 << 64) - 1
                if number < furthest.get(key, -1):
                    found.late.append((region.name, request_id))
                furthest[key] = max(number, furthest.get(key, -1))
        return found

    def close(self) -> None:
        """Let go of connections."""
        for consumer in self._consumers.values():
            consumer.close()

    def _request_ids(self, region: Region) -> Iterator[str]:
        from confluent_kafka import TopicPartition

        consumer = self._consumer(region)
        ends = {}
        places = []
        for partition in range(PARTITIONS):
            start = self._next.get((region.name, partition), 0)
            place = TopicPartition(TOPIC, partition, start)
            _, ends[partition] = consumer.get_watermark_offsets(place, timeout=20)
            if start < ends[partition]:
                places.append(place)
        waiting = {place.partition for place in places}
        consumer.assign(places)
        deadline = time.monotonic() + 60
        while waiting:
            if time.monotonic() > deadline:
                raise AssertionError(f"{region.name}: only read {self._next} of {ends}")
            first = consumer.poll(0.5)
            for message in [first, *consumer.consume(1000, 0)] if first is not None else []:
                if message.error() is not None or message.offset() >= ends[message.partition()]:
                    continue
                self._next[region.name, message.partition()] = message.offset() + 1
                if message.offset() + 1 == ends[message.partition()]:
                    waiting.discard(message.partition())
                yield (dict(message.headers() or ())["request_id"] or b"").decode()
        consumer.unassign()

    def _consumer(self, region: Region) -> Any:
        from confluent_kafka import Consumer

        if region.name not in self._consumers:
            self._consumers[region.name] = Consumer(
                {
                    "bootstrap.servers": region.kafka.address,
                    "group.id": "reading",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "error",
                    "fetch.wait.max.ms": 50,
                    "reconnect.backoff.max.ms": 500,
                    **QUIET,
                }
            )
        return self._consumers[region.name]


def check(account: Account, found: Found, *publishers: Publisher) -> None:
    """Raise AssertionError unless every promise was kept."""
    spooled = {request_id for each in publishers for request_id in each.spooled_ids()}
    lost = account.durable - set(found.copies) - spooled
    assert not lost, f"{len(lost)} promised events are nowhere: {_some(lost, account)}"
    taken = account.refused & (set(found.copies) | spooled)
    assert not taken, f"{len(taken)} refused events were stored: {_some(taken, account)}"


def _some(names: set[str], account: Account) -> str:
    return ", ".join(f"{name} {account.promises[name]}" for name in sorted(names)[:5])
