"""What each Kafka error means for a record or a request: one table, decided by code.

librdkafka's own ``retriable()`` is no guide: it says no for a message that timed out because its
broker is gone, which is the very case where another region should be tried.
"""

from __future__ import annotations

from typing import Any

from ..exceptions import (
    Backpressure,
    EventLogError,
    RecordRejected,
    RecordTooLarge,
    RegionUnavailable,
    UnknownTopic,
)

#: Names of `confluent_kafka.KafkaError` codes → what they become.
TABLE: dict[str, type[EventLogError]] = {
    # The record: no region will take it.
    "MSG_SIZE_TOO_LARGE": RecordTooLarge,
    "RECORD_LIST_TOO_LARGE": RecordTooLarge,
    "INVALID_MSG_SIZE": RecordTooLarge,
    "INVALID_RECORD": RecordRejected,
    "INVALID_TIMESTAMP": RecordRejected,
    "UNSUPPORTED_FOR_MESSAGE_FORMAT": RecordRejected,
    # Too much at once: the same record later.
    "_QUEUE_FULL": Backpressure,
    "THROTTLING_QUOTA_EXCEEDED": Backpressure,
    # The topic: the operator must act.
    "_UNKNOWN_TOPIC": UnknownTopic,
    "_UNKNOWN_PARTITION": UnknownTopic,
    "UNKNOWN_TOPIC_OR_PART": UnknownTopic,
    "UNKNOWN_TOPIC_ID": UnknownTopic,
    "TOPIC_EXCEPTION": UnknownTopic,
    # The region: another one may do.
    "_MSG_TIMED_OUT": RegionUnavailable,
    "_TIMED_OUT": RegionUnavailable,
    "_TIMED_OUT_QUEUE": RegionUnavailable,
    "_TRANSPORT": RegionUnavailable,
    "_ALL_BROKERS_DOWN": RegionUnavailable,
    "_RESOLVE": RegionUnavailable,
    "_AUTHENTICATION": RegionUnavailable,
    "_SSL": RegionUnavailable,
    "_PURGE_QUEUE": RegionUnavailable,
    "_PURGE_INFLIGHT": RegionUnavailable,
    "NOT_ENOUGH_REPLICAS": RegionUnavailable,
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": RegionUnavailable,
    "SASL_AUTHENTICATION_FAILED": RegionUnavailable,
    "TOPIC_AUTHORIZATION_FAILED": RegionUnavailable,
    "CLUSTER_AUTHORIZATION_FAILED": RegionUnavailable,
    "KAFKA_STORAGE_ERROR": RegionUnavailable,
    "REQUEST_TIMED_OUT": RegionUnavailable,
    "LEADER_NOT_AVAILABLE": RegionUnavailable,
    "NOT_LEADER_FOR_PARTITION": RegionUnavailable,
    "BROKER_NOT_AVAILABLE": RegionUnavailable,
    "NETWORK_EXCEPTION": RegionUnavailable,
}

#: After these the producer is of no more use: it is made anew.
FATAL = frozenset(
    {
        "_FATAL",
        "_FENCED",
        "_STATE",
        "INVALID_PRODUCER_EPOCH",
        "INVALID_PRODUCER_ID_MAPPING",
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        "PRODUCER_FENCED",
        "UNKNOWN_PRODUCER_ID",
    }
)


def classify(error: Any, region: str) -> EventLogError:
    """Turn a `confluent_kafka.KafkaError` into ours; what is not in the table is the region's."""
    kind = TABLE.get(error.name(), RegionUnavailable)
    return kind(f"{region}: {error.str()} ({error.name()})")


def is_fatal(error: Any) -> bool:
    """Whether the producer that reported `error` must be made anew."""
    return bool(error.fatal()) or error.name() in FATAL
