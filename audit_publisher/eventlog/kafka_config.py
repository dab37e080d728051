"""librdkafka's settings: ours, and those of the operator's properties file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

#: What a properties file may not change: the durability promise, and who we are.
RESERVED = frozenset(
    {
        "acks",
        "auto.offset.reset",
        "bootstrap.servers",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.idempotence",
        "group.id",
        "message.timeout.ms",
        "metadata.broker.list",
        "partitioner",
        "request.required.acks",
    }
)


def load_properties(path: Path | None) -> dict[str, str]:
    """Return the properties in a file of ``name=value`` lines; ``#`` begins a comment line.

    :raises ImproperlyConfigured: naming the file, the line and the cure, never a value.
    """
    if path is None:
        return {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(
            f"AUDIT_PUBLISHER_KAFKA_CONFIG_FILE: {path} cannot be read: {error}"
        ) from error
    found = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line[0] in "#!":
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ImproperlyConfigured(f"{path}, line {number}: write name=value.")
        if name in RESERVED:
            raise ImproperlyConfigured(
                f"{path}, line {number}: {name} is set by the publisher. Remove the line."
            )
        found[name] = value.strip()
    return found


def common(servers: str, properties: dict[str, str]) -> dict[str, Any]:
    """What every client needs; quick to notice a dead broker, quick to come back."""
    return {
        "client.id": "audit",
        # A dead broker is told of once, by us, not by each client with each try to reconnect.
        "log_level": 2,
        "socket.connection.setup.timeout.ms": 1000,
        # A connection that a firewall forgot is noticed, not asked again and again for a minute.
        "socket.timeout.ms": 6000,
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        **properties,
        "bootstrap.servers": servers,
    }


def producer(
    servers: str,
    properties: dict[str, str],
    *,
    delivery_timeout: float,
    linger: float,
    max_queued_bytes: int,
    max_record_bytes: int,
) -> dict[str, Any]:
    """Settings of the producer."""
    milliseconds = int(delivery_timeout * 1000)
    return {
        "compression.type": "lz4",
        "linger.ms": int(linger * 1000),
        "retries": 10,
        "retry.backoff.ms": 50,
        "message.max.bytes": max_record_bytes,
        # Below the smallest limit brokers have by default: one batch that is too large would be
        # refused with all its innocent records.
        "batch.size": 900_000,
        "queue.buffering.max.kbytes": max(1, max_queued_bytes // 1024),
        "queue.buffering.max.messages": 200_000,
        "request.timeout.ms": max(500, milliseconds - 100),
        # A topic that is not there is known soon, not after half a minute.
        "topic.metadata.propagation.max.ms": 1000,
        **common(servers, properties),
        "acks": "all",
        "enable.idempotence": True,
        "delivery.timeout.ms": milliseconds,
        # The same partition for a key as Java clients choose.
        "partitioner": "murmur2_random",
    }


def consumer(servers: str, properties: dict[str, str], group: str) -> dict[str, Any]:
    """Settings of a consumer that is told where to read and commits only when told to."""
    return {
        "fetch.wait.max.ms": 100,
        "max.partition.fetch.bytes": 4 << 20,
        # Prefetched in memory, for each partition that is read.
        "queued.max.messages.kbytes": 8 << 10,
        "fetch.error.backoff.ms": 100,
        # A full queue of prefetched records is refilled once it has room, not a second later.
        "fetch.queue.backoff.ms": 5,
        **common(servers, properties),
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        # Our own progress decides; a position that is gone is an error, never a skip.
        "auto.offset.reset": "error",
    }
