"""Celery's broker: does it answer, does it keep what it has acknowledged, what waits in it?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..checks.host import BROKER_SECONDS, ask_broker, nearest, refused
from ..exceptions import SpoolError
from ..spool import DurableQueue
from .examinations import Finding, failure, ok, warning

#: Messages; each of the capture tier's is a batch of up to 500 events.
MANY = 5_000


def where(url: str) -> str:
    """An address without user and password."""
    parts = urlsplit(url)
    if url.startswith("durable:"):
        return url
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or 'localhost'}{port}"


def look(setting: str, url: str) -> Iterator[Finding]:
    """Examine one broker."""
    if url.startswith("memory:"):
        yield failure(
            f"{setting} is memory://: batches stay in the process that made them.",
            "Use it in tests alone. Name Redis or RabbitMQ, or leave it empty.",
        )
        return
    began = time.monotonic()
    said = _ask(url)
    if said:
        yield failure(
            f"{setting}: {where(url)}: {said}.",
            "Look at the file's folder, its owner and its mode."
            if url.startswith("durable:")
            else "Look at its host, port, password and TLS, and at the network between.",
        )
        return
    yield ok(f"{where(url)} answers in {(time.monotonic() - began) * 1000:.0f} ms")
    if url.startswith("redis"):
        yield from _redis(setting, url)
    elif url.startswith("amqp"):
        yield ok("queues and messages are durable, and publishing is confirmed")


def _ask(url: str) -> str:
    """Say what is wrong; "" when it answers."""
    if not url.startswith("durable:"):
        return ask_broker(url)
    path = Path(unquote(urlsplit(url).path))
    why = refused(nearest(path.parent))
    if why or not path.exists():
        # Asking would make it.
        return why and f"it cannot be written: {why}"
    queue = DurableQueue(path, timeout=BROKER_SECONDS)
    try:
        queue.used_bytes()
    except SpoolError as error:
        return str(error)
    finally:
        queue.close()
    return ""


def _redis(setting: str, url: str) -> Iterator[Finding]:
    with _connection(url) as connection:
        client: Any = connection.default_channel.client
        try:
            found = {
                name: client.config_get(name).get(name, "")
                for name in ("appendonly", "appendfsync", "maxmemory-policy")
            }
        except Exception as error:  # noqa: BLE001 - managed ones refuse
            yield warning(
                f"{setting}: whether this Redis keeps what it acknowledges cannot be seen "
                f"({type(error).__name__}).",
                "Make sure of appendonly yes, appendfsync always and maxmemory-policy noeviction.",
            )
            return
    wrong = [
        f"{name} is {found[name] or 'unknown'}, not {right}"
        for name, right in (
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("maxmemory-policy", "noeviction"),
        )
        if found[name] != right
    ]
    if wrong:
        yield warning(
            f"{setting}: a Redis that is killed, or full, may lose what it has acknowledged: "
            f"{'; '.join(wrong)}.",
            "Set appendonly yes, appendfsync always and maxmemory-policy noeviction in redis.conf.",
        )
    else:
        yield ok("what it acknowledges is on its disk (appendfsync always, noeviction)")


def depth(setting: str, url: str, queue: str, many: int = MANY) -> Iterator[Finding]:
    """How many messages wait in a queue."""
    if url.startswith("memory:") or _ask(url):
        # The broker's own lines say it.
        return
    from kombu.exceptions import OperationalError

    if url.startswith("durable:") and not Path(unquote(urlsplit(url).path)).exists():
        yield ok(f"{queue}: not made yet")
        return
    with _connection(url) as connection:
        channel = connection.default_channel
        try:
            waiting = channel.queue_declare(queue=queue, passive=True).message_count
        except (OperationalError, *connection.channel_errors):
            yield ok(f"{queue}: not made yet")
            return
    if waiting > many:
        yield warning(
            f"{setting}: {waiting:,} messages wait in {queue}.",
            "Start more workers, and read the log of one: they may not get rid of anything.",
        )
    else:
        yield ok(f"{queue}: {waiting:,} waiting")


def _connection(url: str) -> Any:
    from kombu import Connection

    from ..celery import transport_options

    options = transport_options(url)
    if url.startswith("redis"):
        options |= {"socket_connect_timeout": BROKER_SECONDS, "socket_timeout": BROKER_SECONDS}
    elif url.startswith("amqp"):
        options |= {"read_timeout": BROKER_SECONDS}
    return Connection(url, connect_timeout=BROKER_SECONDS, transport_options=options)
