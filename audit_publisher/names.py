"""Names that travel between tiers: topics, record keys, and the headers in their many spellings."""

from __future__ import annotations

import importlib.util
import re
from urllib.parse import urlsplit

#: What Kafka's Connect and this project call the topic of records that cannot be used.
DEAD_LETTER_SUFFIX = "_DLQ"

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
#: What no name or header of an event may contain: control characters, and those that break lines
#: or turn the direction of the text around them, so that people read something else.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def has_control(text: str) -> bool:
    """Whether `text` holds a CONTROL character."""
    # What is printable ASCII is told without a search.
    return not (text.isascii() and text.isprintable()) and CONTROL.search(text) is not None


def check_topic_name(name: str) -> None:
    """Raise ValueError, with a sentence, unless `name` can be a topic of audit events."""
    if not _TOPIC.fullmatch(name) or name in {".", ".."}:
        raise ValueError(
            f"{name!r} is not a topic name. Use up to 249 of the characters A-Z a-z 0-9 . _ -"
        )
    if name.upper().endswith(DEAD_LETTER_SUFFIX):
        raise ValueError(
            f"{name!r} ends in {DEAD_LETTER_SUFFIX}, which names the topic of unusable records. "
            "Use another name."
        )
    if len(name) > 249 - len(DEAD_LETTER_SUFFIX):
        raise ValueError(
            f"The name leaves no room for its dead-letter topic ({DEAD_LETTER_SUFFIX}). "
            "Use a shorter one."
        )


def check_region_url(url: str) -> None:
    """Raise ValueError, with a sentence, unless `url` names an event log."""
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme == "local":
        if parts.netloc or not parts.path.strip("/"):
            raise ValueError(f"{url!r} names no file. Use local:///absolute/path.sqlite3")
    elif parts.scheme == "kafka":
        if importlib.util.find_spec("confluent_kafka") is None:
            raise ValueError(
                "kafka: needs the package confluent-kafka, which is not installed. "
                "pip install 'django-api-audit[kafka]'"
            )
        for server in parts.netloc.split(","):
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(
                    f"{server!r} in {url!r} is not host:port. Use kafka://host:9092,host:9092"
                    if parts.netloc
                    else f"{url!r} names no server. Use kafka://host:9092,host:9092"
                )
        if parts.path.strip("/") or parts.query:
            raise ValueError(
                f"{url!r} has something after its servers. Topics are set by DEFAULT_TOPIC, "
                "properties by KAFKA_CONFIG_FILE."
            )
    else:
        raise ValueError(
            f"{parts.scheme or url!r} is not an event log. Use kafka://host:9092 or local:///path"
        )


def check_registry_url(url: str) -> None:
    """Raise ValueError, with a sentence, unless `url` can be a schema registry."""
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not a registry's address. Use http(s)://host:port/path")
    if parts.username or parts.password:
        raise ValueError("It holds a password. Put user:password into REGISTRY_CREDENTIALS_FILE.")


def check_cache(alias: str) -> None:
    """Raise ValueError, with a sentence, unless `alias` names a cache that processes can share."""
    if not alias:
        return
    from django.conf import settings

    caches = settings.CACHES
    if alias not in caches:
        raise ValueError(f"{alias!r} is not in CACHES. Use one of {', '.join(sorted(caches))}.")
    backend = str(caches[alias].get("BACKEND", "")).rpartition(".")[2]
    if backend in ("LocMemCache", "DummyCache", "FileBasedCache"):
        raise ValueError(
            f"{alias!r} is a {backend}, which hosts do not share. Use Redis, or leave it empty."
        )


def header_key(name: str) -> str:
    """The one spelling under which variants of a header's name meet.

    ``WM_CONSUMER.ID``, ``WM-CONSUMER.ID`` and ``wm-consumer-id`` are the same header.
    """
    return name.strip().lower().replace("_", "-").replace(".", "-")


#: By :func:`header_key`, our headers in the one spelling that they are handled in.
OUR_HEADERS = {
    header_key(name): name
    for name in (
        "wm-consumer.id",
        "wm-consumer.intimestamp",
        "wm-sec.key-version",
        "wm-sec.auth-signature",
        "wm-qos.correlation-id",
        "wm-svc.name",
        "wm-svc.version",
        "wm-svc.env",
        "wm-site-id",
    )
}
