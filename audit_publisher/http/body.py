"""Reading a request's body within a bound, whatever the request says about itself."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpRequest
from django.http.request import UnreadablePostError

from .problems import Problem

_CHUNK = 64 << 10
#: Gzip members that a body may be made of: as many as events in a large batch.
_MEMBERS = 1000


class BodyReader:
    """Puts a request's body together, within its bounds.

    :param meta: WSGI's or ASGI's META.
    :param limit: bytes that the body may have, before and after decompression.
    :raises Problem: 413 it says that it is too large, 415 an encoding we do not take.
    """

    def __init__(self, meta: Mapping[str, Any], limit: int) -> None:
        encoding = meta.get("HTTP_CONTENT_ENCODING", "").strip().lower()
        if encoding not in {"", "identity", "gzip"}:
            raise Problem(
                415,
                "Content-Encoding is not supported. Send gzip or none.",
                code="unsupported-encoding",
                header="Content-Encoding",
            )
        length = meta.get("CONTENT_LENGTH") or ""
        #: What Content-Length says, in bytes.
        self.declared = int(length) if length.isascii() and length.isdigit() else None
        if self.declared is not None and self.declared > limit:
            raise _too_large(limit)
        self.compressed = encoding == "gzip"
        self.limit = limit
        #: Bytes so far.
        self.size = 0
        self._parts: list[bytes] = []

    def feed(self, part: bytes) -> None:
        """Add what came.

        :raises Problem: 413.
        """
        self.size += len(part)
        if self.size > self.limit:
            raise _too_large(self.limit)
        self._parts.append(part)

    def raw(self) -> bytes:
        """The body as it was sent.

        :raises Problem: 400, it is cut short.
        """
        if self.declared is not None and self.size < self.declared:
            raise Problem(
                400,
                "The body is shorter than its Content-Length.",
                code="body-incomplete",
                header="Content-Length",
                retry_after=1,
            )
        return b"".join(self._parts)

    def plain(self, raw: bytes) -> bytes:
        """The body, decompressed.

        :raises Problem: 400 damaged, 413 too large.
        """
        return _gunzip(raw, self.limit) if self.compressed else raw


def read_body(request: HttpRequest, limit: int, check: Callable[[bytes], None]) -> bytes:
    """Return a Django request's body, decompressed.

    :param limit: bytes that it may have, before and after decompression.
    :param check: gets the body as it was sent, before anything of it is used.
    :raises Problem: 413 too large, 415 an encoding we do not take, 400 cut short or damaged, 408
        not sent to its end in time.
    """
    reader = BodyReader(request.META, limit)
    raw = _read(request, reader)
    check(raw)
    return reader.plain(raw)


def _read(request: HttpRequest, reader: BodyReader) -> bytes:
    """Return a Django request's body as it was sent.

    :raises Problem: 413 too large, 400 cut short or damaged, 408 not sent to its end in time.
    """
    stream: Any = request
    if reader.declared is None and request.META.get("wsgi.input_terminated"):
        # A chunked body: Django reads nothing without a length, the server knows where it ends.
        stream = request.META["wsgi.input"]
    try:
        while part := stream.read(min(_CHUNK, reader.limit + 1 - reader.size)):
            reader.feed(part)
    except Problem:
        raise
    except (UnreadablePostError, OSError) as error:
        # Django wraps what the server raised.
        if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):
            raise Problem(408, "The body did not arrive in time.", retry_after=1) from error
        raise Problem(
            400, "The body could not be read to its end.", code="body-incomplete", retry_after=1
        ) from error
    except Exception as error:
        # Each server has its own exceptions for chunks that are none.
        raise Problem(
            400, "The body's transfer encoding is damaged.", code="bad-transfer"
        ) from error
    return reader.raw()


def _gunzip(data: bytes, limit: int) -> bytes:
    parts = []
    size = members = at = 0
    member: Any = None
    while at < len(data):
        if member is None:
            members += 1
            if members > _MEMBERS:
                raise Problem(
                    400, f"The body has more than {_MEMBERS:,} gzip members.", code="not-gzip"
                )
            member = zlib.decompressobj(wbits=31)
        # A piece at a time: what follows the end of a member is copied.
        piece = data[at : at + _CHUNK]
        try:
            part = member.decompress(piece, limit + 1 - size)
        except zlib.error as error:
            raise Problem(
                400, "The body is not gzip.", code="not-gzip", header="Content-Encoding"
            ) from error
        at += len(piece) - len(member.unconsumed_tail) - len(member.unused_data)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if member.eof:
            member = None
    if member is not None:
        raise Problem(
            400, "The gzip body is cut short.", code="not-gzip", header="Content-Encoding"
        )
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit:,} bytes.", field="", reason="too_large")
