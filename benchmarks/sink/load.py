"""A topic full of events, quickly: encoded once, kept on disk, appended with their headers."""

from __future__ import annotations

import os
import pickle
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.services.install import cache_dir

from . import events

#: Different events; more are the same with other request_ids, which alone make an event another.
DISTINCT = 100_000
SITES = {
    "US": b"1704989259133687000",
    "CA": b"1704989474816248000",
    "MX": b"1704989390144984000",
}
_PREFIX = b"\x00\x00\x00\x00\x01"
#: Where the request_id stands in an encoded event: it is the first field, after its length.
_ID = slice(1, 37)
_VERSION = 1


def bodies(distinct: int = DISTINCT, spread: int = 0) -> list[tuple[bytes, bytes]]:
    """Encoded events and their keys; made once, then read from the cache.

    :param spread: as of :func:`.events.events`.
    """
    path = cache_dir() / f"benchmark-events-{_VERSION}-{distinct}-{spread}.pickle"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = list(_encoded(distinct, spread))
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(pickle.dumps(made))
        part.rename(path)
    found: list[tuple[bytes, bytes]] = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    return found


def _encoded(distinct: int, spread: int) -> Iterator[tuple[bytes, bytes]]:
    import json

    from audit_publisher import codec
    from audit_publisher.serializers import parse_event, to_avro

    write = codec.writer()
    for each in events.events(distinct, spread=spread):
        parsed = parse_event(json.dumps(each).encode())
        fields = to_avro(
            parsed,
            headers=parsed.headers or {},
            site_id=parsed.site_id,
            consumer_id=parsed.consumer_id,
        )
        key = f"{each['service_name']}/{each['endpoint_name']}".encode()
        yield write(fields), key


def fill(
    servers: str,
    topic: str,
    count: int,
    *,
    partitions: int,
    sites: tuple[str, ...] = ("US",),
    spread: int = 0,
    seed: int = events.SEED,
) -> float:
    """Append `count` events to `topic`, spread over its partitions; return the seconds it took."""
    from confluent_kafka import Producer

    there = bodies(spread=spread)
    # Not the stream that made the events: it would give their ids once more.
    random_ = random.Random(f"ids {seed}")
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 256 << 10,
        }
    )
    failed: list[Any] = []

    def report(error: Any, _message: Any) -> None:
        if error is not None:
            failed.append(error)

    began = time.monotonic()
    for number in range(count):
        body, key = there[number % len(there)]
        if number >= len(there) or seed != events.SEED:
            fresh = str(uuid.UUID(int=random_.getrandbits(128), version=4)).encode()
            body = body[:1] + fresh + body[_ID.stop :]
        site = sites[number % len(sites)]
        headers = [
            ("wm_consumer.id", b"87751d4c-a850-1e2c-44dc-da6a797d76de"),
            ("wm-site-id", SITES[site]),
            ("wm_qos.correlation_id", body[_ID]),
            ("traceparent", b"00-" + body[1:33].replace(b"-", b"0") + b"-0123456789abcdef-01"),
        ]
        while True:
            try:
                producer.produce(
                    topic,
                    _PREFIX + body,
                    key,
                    # Partitions fill evenly: a lane's cost is asked for, not a key's luck.
                    partition=number // 1000 % partitions,
                    headers=headers,
                    on_delivery=report,
                )
                break
            except BufferError:
                producer.poll(0.05)
        if number % 1000 == 0:
            producer.poll(0)
    producer.flush(120)
    if failed:
        raise RuntimeError(f"{len(failed)} events were not taken: {failed[0]}")
    return time.monotonic() - began


def partition_files(folder: Path) -> list[Path]:
    """Every finished file below a bucket's folder."""
    return sorted((folder / "events").rglob("*.parquet"))
