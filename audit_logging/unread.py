"""Bodies that the service answered without reading: taken where nobody waits for them.

To read one before the answer would make whoever answers early wait for the caller. Where it lies
in memory it is read with the answer; where it is on its way it is read when the answer has been
sent, as servers do themselves to reuse the connection, and given a moment. Behind other servers,
and where the caller asked first whether to send it at all, it stays unread, and is marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import Any, Literal

from django.conf import settings
from django.core.handlers.wsgi import LimitedStream

from .capture import Exchange

#: Seconds that a worker may be held for a body whose answer was sent.
_MOMENT = 0.1


def when_to_take(
    exchange: Exchange, environ: Mapping[str, Any]
) -> Literal["now", "at the end"] | None:
    """Return when what the service left unread may be read, if ever."""
    limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    if environ.get("HTTP_EXPECT") or (limit is not None and (exchange.request_size or 0) > limit):
        return None
    source = environ.get("wsgi.input")
    if isinstance(source, (BytesIO, SpooledTemporaryFile)) or _of_the_test_client(source):
        return "now"
    # Django's own server reads it itself, at the end.
    if "gunicorn.socket" in environ or isinstance(source, LimitedStream):
        return "at the end"
    return None


def take(exchange: Exchange, socket: Any = None) -> None:
    """Read what the service left unread.

    :param socket: where it comes from, if that can keep us waiting.
    """
    waited = None if socket is None else socket.gettimeout()
    try:
        if socket is not None:
            socket.settimeout(_MOMENT)
        exchange.read_rest()
    except OSError:
        # Late, or never: it is marked as not read.
        pass
    finally:
        if socket is not None:
            socket.settimeout(waited)


def _of_the_test_client(source: Any) -> bool:
    return type(source).__module__ == "django.test.client"
