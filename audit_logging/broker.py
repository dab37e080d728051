"""The embedded Celery broker: a kombu transport over the durable local queue.

kombu's own serverless transports forget a message once it is handed to a worker, so that a killed
worker loses it. This one leases messages: they are removed when they are acknowledged, and handed
out again when a lease runs out. Address: ``durable:///absolute/path.sqlite3``.
"""

from __future__ import annotations

import os
import socket
from queue import Empty
from typing import Any, ClassVar
from urllib.parse import unquote

from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from .exceptions import SpoolError
from .spool import DurableQueue, Record, StoredRecord

_OWNER = f"{socket.gethostname()}:{os.getpid()}"


class QoS(virtual.QoS):
    """Settles messages in the queue's file instead of keeping them in memory alone."""

    # What a dead process left is given out again when its lease ends; no exit hook is needed.
    restore_at_shutdown = False

    def ack(self, delivery_tag: str) -> None:
        """The message is done with: remove it."""
        self.channel.settle(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back, or remove it."""
        if requeue:
            self.channel.release(delivery_tag)
        else:
            self.channel.settle(delivery_tag)
        super().ack(delivery_tag)


class Channel(virtual.Channel):
    """A channel whose queues are streams of one file."""

    QoS = QoS
    do_restore = False
    supports_fanout = False

    #: Seconds until a message that was not acknowledged is handed out again.
    visibility_timeout: float = 60.0
    from_transport_options: tuple[str, ...] = (  # type: ignore[assignment]
        *virtual.Channel.from_transport_options,
        "visibility_timeout",
    )

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._leased: dict[str, tuple[str, StoredRecord]] = {}
        self._file: DurableQueue | None = None

    @property
    def file(self) -> DurableQueue:
        """The queue's file, from the connection's address."""
        if self._file is None:
            path = unquote(self.connection.client.virtual_host or "")
            self._file = DurableQueue("/" + path.lstrip("/"))
        return self._file

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self.file.append(queue, [Record(dumps(message).encode())])

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        records = self.file.lease(
            queue, seconds=self.visibility_timeout, owner=_OWNER, max_records=1
        )
        if not records:
            raise Empty
        record = records[0]
        message = loads(record.value.decode())
        tag = f"{queue}:{record.offset}:{record.attempts}"
        message["properties"]["delivery_tag"] = tag
        if record.attempts > 1:
            message["headers"]["redelivered"] = True
        self._leased[tag] = (queue, record)
        return message

    def settle(self, tag: str) -> None:
        """Remove the message that was handed out as `tag`."""
        leased = self._leased.pop(tag, None)
        if leased is not None:
            self.file.settle(leased[0], [leased[1]])

    def release(self, tag: str) -> None:
        """Hand the message out again, at once."""
        leased = self._leased.pop(tag, None)
        if leased is not None:
            self.file.release(leased[0], [leased[1]])

    def _size(self, queue: str) -> int:
        return self.file.stats(queue).records

    def _purge(self, queue: str) -> int:
        return self.file.trim(queue, self.file.watermarks(queue)[1])

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return True

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self._purge(queue)

    def close(self) -> None:
        """Give back what is not acknowledged, and close the file."""
        try:
            for tag in list(self._leased):
                self.release(tag)
        finally:
            super().close()
            if self._file is not None:
                self._file.close()


class Transport(virtual.Transport):
    """kombu's entry point."""

    Channel = Channel
    driver_type = "sqlite"
    driver_name = "audit_logging.broker"
    can_parse_url = False
    # No host in the address is no mistake.
    default_connection_params: ClassVar[dict[str, Any]] = {}
    connection_errors: tuple = (*virtual.Transport.connection_errors, SpoolError)
    channel_errors: tuple = (*virtual.Transport.channel_errors, SpoolError)
    # With an event loop each child of a worker has a pipe of its own. Without one they share a
    # queue, and a child that is killed while it waits there takes its lock along: the worker would
    # never hand out anything again.
    implements = virtual.Transport.implements.extend(asynchronous=True)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Look for messages now and then, in a worker's event loop."""

        def look() -> None:
            try:
                while True:
                    self.drain_events(connection, timeout=0)
            except TimeoutError:
                pass

        loop.call_repeatedly(self.polling_interval or 1.0, look)

    def driver_version(self) -> str:
        """The version of SQLite."""
        import sqlite3

        return sqlite3.sqlite_version
