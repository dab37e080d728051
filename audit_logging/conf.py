"""The capture tier's options: the only place in this app that reads settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from django.conf import settings
from django.core.signals import setting_changed

from .options import AppSettings, option, url_of
from .rules import Level, Rule, from_option

MEBIBYTE = 1 << 20

#: Schemes of Celery brokers; what serves them, and the extra that installs it.
BROKERS = {
    "durable": ("", ""),
    "redis": ("redis", "production"),
    "rediss": ("redis", "production"),
    "amqp": ("amqp", ""),
    "amqps": ("amqp", ""),
    "memory": ("", ""),
}

DEFAULT_HEADERS = (
    "accept",
    "accept-encoding",
    "accept-language",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "traceparent",
    "user-agent",
    "wm-consumer.id",
    "wm-qos.correlation-id",
    "wm-site-id",
    "wm-svc.env",
    "wm-svc.name",
    "wm-svc.version",
    "x-request-id",
)

DEFAULT_EXCLUDED = (
    "/favicon.ico",
    "/health",
    "/healthz",
    "/live",
    "/livez",
    "/metrics",
    "/ping",
    "/ready",
    "/readyz",
    "/startup",
)


def _data_dir() -> Path:
    return Path(getattr(settings, "BASE_DIR", Path.cwd())) / "var" / "audit_logging"


def _http_url(value: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is not an address. Give http(s)://host:port.")
    if parts.username or parts.password:
        raise ValueError("The address holds a user or password. Use the signing key instead.")


def _service_name(value: str) -> None:
    if len(value) > 100 or any(character.isspace() or character == "/" for character in value):
        raise ValueError(f"{value!r} is not a service name. Use letters, digits, - and _.")


def _absolute_paths(values: tuple[str, ...]) -> None:
    for value in values:
        if not value.startswith("/"):
            raise ValueError(f"{value!r} does not begin with a slash. Give it one.")


class LoggingSettings(AppSettings):
    """Options of the capture tier."""

    prefix = "AUDIT_LOGGING"
    about = "What an audited service sets: one dict in its settings, or environment variables."

    ENABLED: bool = option(
        True, "Off removes the audit from the request path altogether; needs a restart."
    )
    SERVICE_NAME: str = option(
        "",
        "The name this service has in the audit log. Required.",
        validate=_service_name,
    )
    PUBLISHER_URL: str = option(
        "http://127.0.0.1:8001", "Where workers deliver: the publisher.", validate=_http_url
    )
    CONSUMER_ID: str = option(
        "", "This service's own consumer id, under which the publisher knows its public key."
    )
    KEY_VERSION: str = option(
        "1",
        "Version of the signing key, as registered with the publisher. Where PRIVATE_KEY_PATH "
        "names a folder, the files' names say it instead.",
    )
    PRIVATE_KEY_PATH: Path | None = option(
        None,
        "What deliveries are signed with: a PEM file with an RSA private key, or a folder of "
        "them, such as a mounted secret, each named `<key version>.pem`; the highest version that "
        "can be used signs. Read again when it changes, so that a folder rotates key and version "
        "together, without a restart. Empty: deliveries are not signed.",
    )
    SIGNATURE_SCHEME: Literal["legacy", "rsa-v1_5-sha256", "rsa-pss-sha512"] = option(
        "legacy",
        "How deliveries are signed. `legacy`: consumer id, time and key version, as publishers of "
        "every version take it. The others are message signatures (RFC 9421), which also cover "
        "method, path and body; the name is the algorithm's. See docs/signatures.md.",
    )
    DELIVERY: Literal["celery", "direct", "kafka"] = option(
        "celery",
        "How events leave the service. `celery`: over the broker to a worker, which posts them to "
        "the publisher. `kafka`: over the broker to a worker, which appends them to the event log "
        "by itself (`audit_publisher` must be installed and configured in this project). "
        "`direct`: the service's background thread posts them to the publisher; no broker and no "
        "worker.",
    )
    FLAGS_SOURCE: Literal["database", "publisher", "settings"] = option(
        "database",
        "Where flags and endpoint rules come from: this service's own admin, the central admin "
        "through the publisher, or these settings alone. The first two lie over the settings, and "
        "their last answer is kept in DATA_DIR for a restart without them. In a test run nothing "
        "is looked up: settings alone hold (see `audit_logging.testing.refresh_flags`).",
    )
    FLAGS_REFRESH_SECONDS: float = option(
        3.0,
        "How often flags and rules are looked up, at the longest; each process varies it, so that "
        "many do not ask at once. A change acts within this and the time of one look. From a "
        "database with Django's CONN_MAX_AGE of 0 each look connects anew, so that no process "
        "holds a connection beside the service's own: 100 processes make some 40 connections a "
        "second. Give that database a CONN_MAX_AGE, and a look makes none.",
        unit="seconds",
        minimum=0.1,
        maximum=5,
    )
    BROKER_URL: str = option(
        "",
        "Celery's broker for deliveries: `redis://…`, `amqp://…` or `durable:///path`. "
        "Empty: durable, in DATA_DIR, which needs no server.",
        validate=url_of(BROKERS),
    )
    CELERY_QUEUE: str = option("audit_logging", "The Celery queue that deliveries go to.")
    DATA_DIR: Path = option(
        _data_dir,
        "Where spools, dead letters and the last known flags are kept. Must outlive a restart.",
        default_text="var/audit_logging below BASE_DIR",
    )
    LEVEL: Level = option(
        "request_response", "What is recorded of a request that no endpoint rule matches."
    )
    RESPONSE_BODIES: bool = option(True, "Record response bodies, until a flag says otherwise.")
    SAMPLE_RATE: float = option(
        1.0,
        "Share of traces recorded, until a flag says otherwise; the rest is counted as sampled. "
        "The trace id of `traceparent` decides, so that all services keep the same traces; a "
        "request without one is left to chance. A caller chooses its trace id: what must be "
        "recorded whoever calls wants a rule with a `sample_rate` of 1.",
        minimum=0,
        maximum=1,
    )
    RULES: tuple[Rule, ...] = option(
        (),
        "Endpoint rules that ship with the service, tried from the first: each a dict with "
        '`match` (`"substring"` or `"regex"`), `pattern`, `level` (as LEVEL) and, if wanted, '
        "`sample_rate`. Rules from the admin are tried before them, so that an operator can "
        "overrule a release; paths that no rule is about have LEVEL. In the environment as JSON: "
        '`[{"match": "regex", "pattern": "^/login", "level": "metadata"}]`.',
        convert=from_option,
        type_text="list of rules",
    )
    EXCLUDE_PATHS: tuple[str, ...] = option(
        DEFAULT_EXCLUDED,
        "Paths never recorded, each with all below it; counted as excluded.",
        validate=_absolute_paths,
    )
    HEADERS: tuple[str, ...] = option(
        DEFAULT_HEADERS,
        "Request headers whose values are recorded, in hyphen spelling. No other header is.",
    )
    REDACT_KEYS: tuple[str, ...] = option(
        (),
        "Further names, beside the built-in list, whose values are redacted wherever they stand.",
    )
    FINGERPRINT_KEY_PATH: Path | None = option(
        None,
        "File with the key for fingerprints of callers' tokens: at least 16 bytes, the same for "
        "services whose fingerprints are to be compared. Read again when it changes. Empty: a key "
        "derived from SECRET_KEY.",
    )
    MAX_BODY_BYTES: int = option(
        512 * 1024,
        "A larger body is recorded by its size alone.",
        unit="bytes",
        minimum=0,
        maximum=16 * MEBIBYTE,
    )
    MAX_EVENT_BYTES: int = option(
        2_000_000,
        "A larger event loses its bodies until it fits. The publisher takes the same where it "
        "shares this configuration; where it has its own, smaller limit, workers learn it from "
        "the publisher's answers and send such events without their bodies.",
        unit="bytes",
        minimum=10_000,
        maximum=9_000_000,
    )
    BUFFER_SIZE: int = option(
        100,
        "Events held in memory, for each process, before the local spool takes over; with "
        "OVERFLOW=drop, before events are dropped.",
        unit="events",
        minimum=1,
    )
    BUFFER_BYTES: int = option(
        32 * MEBIBYTE,
        "Bytes held in memory, for each process; what passes this is dropped and counted.",
        unit="bytes",
        minimum=1,
    )
    BATCH_SIZE: int = option(
        500,
        "Most events in one batch. The publisher's MAX_BATCH_EVENTS must not be smaller.",
        unit="events",
        minimum=1,
        maximum=1000,
    )
    BUILD_IN: Literal["auto", "thread", "process"] = option(
        "auto",
        "Where events are parsed, redacted, encoded and handed to the broker: on a background "
        "thread of the service, which takes turns with its requests, or in a process beside it, "
        "which takes some 60 MB of memory. auto: on the thread, until that takes 3 % of a core or "
        "a burst comes; then in a process, if the container's memory has room for it.",
    )
    LINGER_SECONDS: float = option(
        0.1,
        "How long the background thread gathers events before it sends them: what a process that "
        "is killed may lose, and what a quiet service's events wait.",
        unit="seconds",
        minimum=0,
        maximum=2,
    )
    BATCH_BYTES: int = option(
        4 * MEBIBYTE,
        "Most bytes in one batch, before compression, which leaves about a quarter; a single "
        "larger event is a batch by itself. The publisher's MAX_BATCH_BYTES must not be smaller.",
        unit="bytes",
        minimum=10_000,
        maximum=16_000_000,
    )
    OVERFLOW: Literal["spool", "drop"] = option(
        "spool",
        "What happens to events when the buffer or the broker does not take them: kept in the "
        "local spool and replayed, or dropped and counted.",
    )
    SPOOL_MAX_BYTES: int = option(
        256 * MEBIBYTE, "Bound of each local spool.", unit="bytes", minimum=100_000
    )
    BROKER_TIMEOUT: float = option(
        1.0,
        "How long the background thread waits for the broker to accept a connection, and up to "
        'three times that for its answer; with `DELIVERY = "direct"`, for the publisher.',
        unit="seconds",
        minimum=0.05,
    )
    DELIVERY_TIMEOUT: float = option(
        10.0, "How long a worker waits for the publisher's answer.", unit="seconds", minimum=0.1
    )
    DELIVERY_RETRIES: int = option(
        3, "Further tries before a batch goes to the worker's spool.", minimum=0, maximum=20
    )
    HEARTBEAT_SECONDS: float = option(
        60.0,
        "How often a process that captures reports how many events it has numbered, so that one "
        "that is missing can be named; also how often it looks for killed processes of its host, "
        "to report for them.",
        unit="seconds",
        minimum=0.1,
    )
    DEAD_LETTERS: Literal["database", "file"] = option(
        "database",
        "Where events that were refused for good are kept: moved into the service's database, "
        "where admin shows them and sends them again, or left in a file in DATA_DIR (see "
        "`manage.py audit_spool dead-letters`).",
    )
    DEAD_LETTERS_MAX: int = option(
        10_000,
        "Most dead letters in the database; further ones wait in the file, up to SPOOL_MAX_BYTES.",
        minimum=1,
    )
    WORKERS_MIN: int = option(
        6, "Processes that `manage.py audit_worker` keeps when there is little to do.", minimum=1
    )
    WORKERS_MAX: int = option(
        10, "Processes that `manage.py audit_worker` grows to.", minimum=1, maximum=1000
    )
    SHUTDOWN_SECONDS: float = option(
        2.0, "How long a stopping process may take to empty its buffer.", unit="seconds", minimum=0
    )

    def broker_url(self) -> str:
        """BROKER_URL, or the embedded broker in DATA_DIR."""
        return self.BROKER_URL or f"durable://{self.DATA_DIR.absolute()}/broker.sqlite3"


conf = LoggingSettings()


def _reload(*, setting: str, **kwargs: Any) -> None:
    if setting in (conf.prefix, "BASE_DIR"):
        conf.reload()


setting_changed.connect(_reload, dispatch_uid="audit_logging.conf")
