"""Every service by the name that fixtures and the command line use."""

from __future__ import annotations

from collections.abc import Callable

from tests.services.base import Service
from tests.services.gcs import Gcs
from tests.services.kafka import Kafka
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ
from tests.services.redis import Redis
from tests.services.registry import Registry

CATALOG: dict[str, Callable[[], Service]] = {
    "kafka-primary": lambda: Kafka("primary"),
    "kafka-secondary": lambda: Kafka("secondary"),
    "registry": Registry,
    "redis": Redis,
    "rabbitmq": RabbitMQ,
    "postgres": Postgres,
    "gcs": Gcs,
}


def resolve(names: list[str]) -> list[Service]:
    """Services by name; `kafka` means both regions, no name means all."""
    wanted: dict[str, None] = {}
    for name in names or CATALOG:
        found = [key for key in CATALOG if key == name or key.startswith(f"{name}-")]
        if not found:
            raise KeyError(name)
        wanted.update(dict.fromkeys(found))
    return [CATALOG[name]() for name in wanted]
