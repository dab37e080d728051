"""Every option of the publisher: its default, its meaning, its unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from django.core.signals import setting_changed

from audit_logging.conf import LoggingSettings
from audit_logging.conf import conf as capture
from audit_logging.options import AppSettings, option, readable_file

from .names import check_cache, check_region_url, check_registry_url, check_topic_name


def _default_data_dir() -> Path:
    from django.conf import settings

    return Path(getattr(settings, "BASE_DIR", None) or Path.cwd()) / "var" / "publisher"


def _capture_limit() -> int:
    return int(capture.MAX_EVENT_BYTES)


class PublisherSettings(AppSettings):
    """Options of the publisher."""

    prefix = "AUDIT_PUBLISHER"
    about = "The service that takes audit events, and the event log it appends them to."

    DATA_DIR: Path = option(
        _default_data_dir,
        "Where the publisher keeps its spool, what it knows of schemas and the embedded event log.",
        default_text="var/publisher",
    )

    # -- the event log --
    PRIMARY_URL: str = option(
        "",
        "The first region of the event log: `kafka://host:9092,host:9092`, or "
        "`local:///path/eventlog.sqlite3`, which needs no server. Empty: local, in DATA_DIR.",
        validate=check_region_url,
    )
    SECONDARY_URL: str = option(
        "",
        "The second region, used when the first takes nothing. Same forms; empty: there is none.",
        validate=check_region_url,
    )
    REGION_MODE: Literal["failover", "active-active"] = option(
        "failover",
        "`failover`: the second region gets what the first does not take. `active-active`: each is "
        "the first for a share of the keys (service and endpoint), and the other's second.",
    )
    KAFKA_CONFIG_FILE: Path | None = option(
        None,
        "File of librdkafka properties (`security.protocol=SASL_SSL`, `sasl.password=…`), one a "
        "line, so that secrets stay in a mounted file. TLS 1.2 or newer is used whenever it is on.",
        validate=readable_file,
    )
    SECONDARY_KAFKA_CONFIG_FILE: Path | None = option(
        None,
        "The same for the second region, where it differs from KAFKA_CONFIG_FILE.",
        validate=readable_file,
    )
    DEFAULT_TOPIC: str = option(
        "api-audit-events",
        "Topic of every service that has no topic route of its own in the admin.",
        validate=check_topic_name,
    )
    TOPIC_PARTITIONS: int = option(
        4,
        "Partitions of a topic that we create: by `audit_topics`, or by the local event log at "
        "first use.",
        minimum=1,
        maximum=1000,
    )
    TOPIC_REPLICATION: int = option(
        -1,
        "Replication factor of a Kafka topic that `audit_topics` creates; -1: the broker's own "
        "default.",
        minimum=-1,
    )
    DELIVERY_TIMEOUT: float = option(
        1.5,
        "How long one region may take to acknowledge before the next place is tried.",
        unit="seconds",
        minimum=0.5,
        maximum=300,
    )
    REQUEST_TIMEOUT: float = option(
        3.0,
        "How long a region may take to answer questions about topics and offsets.",
        unit="seconds",
        minimum=0.2,
    )
    LINGER: float = option(
        0.02,
        "How long a record may wait for company in one produce request.",
        unit="seconds",
        minimum=0,
        maximum=1,
    )
    MAX_QUEUED_BYTES: int = option(
        64 << 20,
        "Bytes that may wait in memory for one region's acknowledgement; above it: the spool.",
        unit="bytes",
        minimum=4 << 20,
    )
    REGION_COOLDOWN: float = option(
        2.0,
        "Shortest time a region that failed is left alone; doubled for each further failure, up "
        "to eight-fold.",
        unit="seconds",
        minimum=0.1,
    )
    LOCAL_RETENTION_HOURS: float = option(
        168, "How long the local event log keeps a record.", unit="hours", minimum=0.01
    )
    LOCAL_RETENTION_BYTES: int = option(
        2 << 30,
        "How much one partition of the local event log keeps.",
        unit="bytes",
        minimum=1 << 20,
    )

    # -- limits --
    MAX_EVENT_BYTES: int = option(
        _capture_limit,
        "Largest event, as JSON, that is taken. Where capture and publisher share one "
        "configuration, AUDIT_LOGGING_MAX_EVENT_BYTES alone rules both; where they do not, this "
        "one does: senders learn it from each answer (`Audit-Max-Event-Bytes`) and leave out the "
        "bodies of events that pass it. Topics must take it, with 8 KB to spare.",
        default_text="AUDIT_LOGGING_MAX_EVENT_BYTES",
        unit="bytes",
        minimum=1000,
        maximum=9_000_000,
    )
    MAX_BATCH_EVENTS: int = option(
        1000, "Most events in one batch request.", unit="events", minimum=1
    )
    MAX_BATCH_BYTES: int = option(
        16_000_000,
        "Largest batch request, after decompression.",
        unit="bytes",
        minimum=1000,
    )

    MAX_EVENT_AGE_DAYS: float = option(
        30,
        "How long ago the request of an event may have been. The lake has a folder for each day, "
        "so that odd times would make any number of files.",
        unit="days",
        minimum=1,
        maximum=36_500,
    )
    MAX_EVENT_AHEAD_DAYS: float = option(
        1,
        "How far ahead of our clock the request of an event may be.",
        unit="days",
        minimum=0.01,
        maximum=36_500,
    )

    # -- schemas --
    REGISTRY_URL: str = option(
        "",
        "A Confluent-compatible schema registry, such as `https://registry/apis/ccompat/v7`. "
        "Empty: a folder in DATA_DIR, which the sink must share.",
        validate=check_registry_url,
    )
    REGISTRY_CREDENTIALS_FILE: Path | None = option(
        None, "File that holds `user:password` for the schema registry.", validate=readable_file
    )
    REGISTRY_CA_FILE: Path | None = option(
        None,
        "Certificate authority (PEM) of the schema registry, where it is not a public one.",
        validate=readable_file,
    )
    REGISTRY_TIMEOUT: float = option(
        2.0, "How long the registry may take to answer.", unit="seconds", minimum=0.1
    )

    # -- who may publish --
    SIGNATURE: Literal["off", "report", "enforce"] = option(
        "enforce",
        "What a request without a good signature gets: `enforce` 401, `report` a warning and a "
        "count, `off` nothing. A consumer may have its own rule in the admin.",
    )
    SIGNATURE_MAX_AGE: float = option(
        180,
        "How old a signature may be; for so long each one is remembered, so that a request that "
        "was listened to cannot be sent again. See REPLAY.",
        unit="seconds",
        minimum=1,
    )
    SIGNATURE_FUTURE_SKEW: float = option(
        30,
        "How far the signer's clock may be ahead of ours.",
        unit="seconds",
        minimum=0,
    )

    REPLAY: Literal["off", "report", "enforce"] = option(
        "enforce",
        "What a signed request gets that was taken before: `enforce` 401, `report` a warning and a "
        "count, `off` nothing. Only where SIGNATURE is enforced is it refused. A consumer may have "
        "its own rule in the admin. The lake holds each event once in any case.",
    )
    REPLAY_CACHE: str = option(
        "",
        "Where publishers on several hosts remember which requests were taken: one of the names in "
        "Django's CACHES, which must be a cache that they share, such as Redis. Empty: a file in "
        "the spool's folder, which the processes of one host share.",
        validate=check_cache,
    )

    # -- the spool --
    SPOOL_DIR: Path | None = option(
        None,
        "Where events wait, on disk, while no region takes them. Empty: `spool` in DATA_DIR.",
    )
    SPOOL_MAX_BYTES: int = option(
        1 << 30,
        "Most that the spool holds; when it is full events are refused with 503.",
        unit="bytes",
        minimum=1 << 20,
    )
    DRAIN_BATCH: int = option(
        500, "Records that one step of the spool's drain appends.", unit="records", minimum=1
    )
    DRAIN_RATE: float = option(
        5000,
        "Most that leaves a host's spool, so that requests have the right of way.",
        unit="records/s",
        minimum=1,
    )

    MAX_IN_FLIGHT_BYTES: int = option(
        64 << 20,
        "Bytes of request bodies that one process reads or makes durable at the same time, "
        "decompressed; above it, requests are answered 429. Records, and the queues of both "
        "regions' clients, come on top: about six times that in all.",
        unit="bytes",
        minimum=1 << 20,
    )

    # -- upkeep --
    REFRESH_SECONDS: float = option(
        2.0,
        "How often regions are probed and keys and topic routes are read again.",
        unit="seconds",
        minimum=0.1,
    )
    STARTUP_SECONDS: float = option(
        30.0,
        "How long /health/startup waits for regions and topics to be as they are configured. "
        "Then it says ok, and /health/ready alone keeps traffic away: a restart mends neither.",
        unit="seconds",
        minimum=0,
    )
    METRICS_PUBLIC: bool = option(True, "Serve /metrics to whoever asks; off: staff users only.")

    def region_urls(self) -> dict[str, str]:
        """Name → URL of every configured region, in the order they are tried."""
        urls = {
            "primary": self.PRIMARY_URL or f"local://{self.DATA_DIR.absolute()}/eventlog.sqlite3"
        }
        if self.SECONDARY_URL:
            urls["secondary"] = self.SECONDARY_URL
        return urls

    def spool_dir(self) -> Path:
        """SPOOL_DIR, or its default in DATA_DIR."""
        return self.SPOOL_DIR or self.DATA_DIR / "spool"


conf = PublisherSettings()


def _reload(*, setting: str, **kwargs: Any) -> None:
    # Some defaults are the capture tier's values.
    if setting in (PublisherSettings.prefix, LoggingSettings.prefix):
        conf.reload()


setting_changed.connect(_reload)
