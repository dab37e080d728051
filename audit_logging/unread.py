"""Bodies that the service answered without reading: taken where nobody waits for them.

To read one before the answer would make whoever answers early wait for the caller. Where it lies
in memory it is read with the answer; where it is on its way it is read when the answer has been
sent, as servers do themselves to reuse the connection, and given a moment. Behind other servers,
and where the caller asked first whether to send it at all, it stays unread, and is marked so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from io import BytesIO
from socket import MSG_DONTWAIT, MSG_PEEK
from tempfile import SpooledTemporaryFile
from typing import Any, Literal

from django.conf import settings
from django.core.handlers.wsgi import LimitedStream

from .capture import Exchange

#: Seconds that a worker may be held for a body whose answer was sent.
_MOMENT = 0.1
_PAUSE = 0.002


def when_to_take(
    exchange: Exchange, environ: Mapping[str, Any]
) -> Literal["now", "at the end"] | None:
    """Return when what the service left unread may be read, if ever."""
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    if environ.get("HTTP_EXPECT") or (limit is not None and (exchange.request_size or 0) > limit):
        return None
    source = environ.get("wsgi.input")
    if isinstance(source, BytesIO) or _of_the_test_client(source) or _in_memory(source):
        return "now"
    # Django's own server reads it itself, at the end.
    if "gunicorn.socket" in environ or isinstance(source, LimitedStream):
        return "at the end"
    return None


def take(exchange: Exchange, environ: Mapping[str, Any]) -> None:
    """Read what the service left unread, if all of it comes within a moment."""
    socket = environ.get("gunicorn.socket")
    if socket is None or _is_there(exchange.missing, socket, environ["wsgi.input"]):
        try:
            exchange.read_rest()
        except OSError:
            # It is marked as not read.
            pass


def _is_there(size: int, socket: Any, source: Any) -> bool:
    """Whether `size` bytes of a body can be read without waiting, within a moment.

    Looked at, and not tried: gunicorn gives up a connection whose body could not be read.
    """
    size -= _read_ahead(source)
    end = time.monotonic() + _MOMENT
    while size > 0:
        try:
            seen = len(socket.recv(size, MSG_PEEK | MSG_DONTWAIT))
            if not seen:
                return False
        except BlockingIOError:
            seen = 0
        except (OSError, ValueError):
            # It is gone; or it is encrypted, and does not let itself be looked at.
            return False
        if seen < size and time.monotonic() >= end:
            return False
        if seen >= size:
            break
        time.sleep(_PAUSE)
    return True


def _read_ahead(source: Any) -> int:
    """Bytes that gunicorn has already received: with the request's head, or beyond what was
    asked for."""
    unreader = getattr(getattr(source, "reader", None), "unreader", None)
    buffers = (getattr(unreader, "buf", None), getattr(source, "buf", None))
    return sum(len(buffer.getvalue()) for buffer in buffers if isinstance(buffer, BytesIO))


def _in_memory(source: Any) -> bool:
    return isinstance(source, SpooledTemporaryFile) and not getattr(source, "_rolled", True)


def _of_the_test_client(source: Any) -> bool:
    return type(source).__module__ == "django.test.client"
