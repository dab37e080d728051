"""The event log's regions: which there are, and this process's connection to each."""

from __future__ import annotations

import os
import threading
from typing import Any
from urllib.parse import urlsplit

from django.core.signals import setting_changed

from ..conf import PublisherSettings, conf
from .base import EventLog, Limits, Receipt, Record, StoredRecord, TopicFacts

__all__ = [
    "EventLog",
    "Limits",
    "Receipt",
    "Record",
    "StoredRecord",
    "TopicFacts",
    "close_regions",
    "get_region",
    "open_region",
    "region_names",
]

#: Largest record that a region takes (SPEC of the producer: 10 MB).
MAX_RECORD_BYTES = 10_000_000

_lock = threading.Lock()
_regions: dict[str, EventLog] = {}
_pid = os.getpid()

#: The regions of a process that this one was forked from, kept unused: destroying them would wait
#: for threads that are not here, and close files that are the parent's.
_inherited: list[dict[str, EventLog]] = []


def region_names() -> tuple[str, ...]:
    """Names of the configured regions, in the order they are tried."""
    return tuple(conf.region_urls())


def get_region(name: str) -> EventLog:
    """Return this process's event log for region `name`; made at first use and kept.

    :raises KeyError: no region of that name is configured.
    """
    _here()
    region = _regions.get(name)
    if region is None:
        with _lock:
            region = _regions.get(name)
            if region is None:
                region = _regions[name] = open_region(name, conf.region_urls()[name])
    return region


def open_region(name: str, url: str) -> EventLog:
    """Return a new event log for `url` (``local:///path`` or ``kafka://host:port,…``)."""
    parts = urlsplit(url)
    if parts.scheme == "local":
        from .local import LocalEventLog

        return LocalEventLog(
            name,
            parts.path,
            create_partitions=conf.TOPIC_PARTITIONS,
            max_record_bytes=MAX_RECORD_BYTES,
            retention_seconds=conf.LOCAL_RETENTION_HOURS * 3600,
            retention_bytes=conf.LOCAL_RETENTION_BYTES,
        )
    from .kafka import KafkaEventLog, load_properties

    properties_file = conf.KAFKA_CONFIG_FILE
    if name == "secondary" and conf.SECONDARY_KAFKA_CONFIG_FILE is not None:
        properties_file = conf.SECONDARY_KAFKA_CONFIG_FILE
    return KafkaEventLog(
        name,
        parts.netloc,
        properties=load_properties(properties_file),
        delivery_timeout=conf.DELIVERY_TIMEOUT,
        linger=conf.LINGER,
        max_queued_bytes=conf.MAX_QUEUED_BYTES,
        max_record_bytes=MAX_RECORD_BYTES,
        replication=conf.TOPIC_REPLICATION,
        request_timeout=conf.REQUEST_TIMEOUT,
    )


def close_regions() -> None:
    """Flush and forget this process's regions; the next use opens them again."""
    _here()
    with _lock:
        for region in _regions.values():
            region.close()
        _regions.clear()


def _here() -> None:
    """After a fork, start with regions of our own: the parent's threads and sockets are not here,
    and its lock may be held for ever."""
    global _pid, _lock, _regions
    if _pid != os.getpid():
        _inherited.append(_regions)
        _regions = {}
        _lock = threading.Lock()
        _pid = os.getpid()


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    if setting == PublisherSettings.prefix:
        close_regions()


setting_changed.connect(_reconfigure)
