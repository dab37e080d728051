"""What a Kafka cluster says of its topics: partitions, copies, and the settings that matter."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from .base import TopicFacts
from .kafka_errors import classify

logger = logging.getLogger(__name__)


def describe(
    known: Mapping[str, Any], topics: Iterable[str], admin: Any, region: str, timeout: float
) -> dict[str, TopicFacts | None]:
    """Return what is known of each of `topics`; None for one that does not exist.

    Their settings need the right DescribeConfigs: without it they are left unknown.

    :param known: the cluster's metadata, topic by name.
    :raises EventLogError: the cluster does not answer.
    """
    wanted = list(topics)
    there = [topic for topic in wanted if exists(known.get(topic))]
    settings = _settings(there, admin, region, timeout)
    return {
        topic: _facts(known[topic], settings.get(topic)) if topic in settings else None
        for topic in wanted
    }


def replica_fetch_bytes(admin: Any, brokers: Iterable[int], timeout: float) -> int | None:
    """The smallest ``replica.fetch.max.bytes`` of the brokers; None: they do not tell."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ConfigResource, ResourceType

    found = []
    for broker in brokers:
        # One broker a question: each can only speak for itself.
        resource = ConfigResource(ResourceType.BROKER, str(broker))
        try:
            (future,) = admin.describe_configs([resource], request_timeout=timeout).values()
            found.append(int(future.result(timeout * 2)["replica.fetch.max.bytes"].value))
        except (KafkaException, TimeoutError, KeyError, ValueError, TypeError) as error:
            logger.debug("broker %s does not tell its settings: %s", broker, error)
    return min(found, default=None)


def _settings(topics: list[str], admin: Any, region: str, timeout: float) -> dict[str, Any]:
    """topic → its settings by name, or None where we may not know them."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ConfigResource, ResourceType

    from ..exceptions import RegionUnavailable

    if not topics:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
    found: dict[str, Any] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=timeout).items():
        try:
            found[resource.name] = future.result(timeout * 2)
        except TimeoutError as error:
            raise RegionUnavailable(f"{region}: no answer in time.") from error
        except KafkaException as error:
            if "AUTHORIZATION" not in error.args[0].name():
                raise classify(error.args[0], region) from error
            found[resource.name] = None
    return found


def exists(metadata: Any) -> bool:
    """Whether the cluster's metadata of a topic tell of one that is there."""
    return metadata is not None and bool(metadata.error is None or metadata.partitions)


def _facts(metadata: Any, settings: Mapping[str, Any] | None) -> TopicFacts:
    partitions = list(metadata.partitions.values())
    return TopicFacts(
        partitions=len(partitions),
        replicas=min((len(each.replicas) for each in partitions), default=None),
        largest_batch=_number(settings, "max.message.bytes"),
        min_insync=_number(settings, "min.insync.replicas"),
        retention=_seconds(_number(settings, "retention.ms")),
        cleanup=_text(settings, "cleanup.policy"),
    )


def _text(settings: Mapping[str, Any] | None, name: str) -> str:
    entry = settings.get(name) if settings else None
    return str(entry.value) if entry is not None and entry.value is not None else ""


def _number(settings: Mapping[str, Any] | None, name: str) -> int | None:
    text = _text(settings, name)
    return int(text) if text.lstrip("-").isdigit() else None


def _seconds(milliseconds: int | None) -> float | None:
    if milliseconds is None:
        return None
    return math.inf if milliseconds < 0 else milliseconds / 1000
