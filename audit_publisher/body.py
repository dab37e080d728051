"""Reading a request's body within a bound, whatever the request says about itself."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import IO, Any

from django.http import HttpRequest
from django.http.request import UnreadablePostError

from .problems import Problem

_CHUNK = 64 << 10


def read_body(
    request: HttpRequest, limit: int, check: Callable[[bytes], None] | None = None
) -> bytes:
    """Return the body, decompressed.

    :param limit: bytes that it may have, before and after decompression.
    :param check: called with the body as it was received, before anything of it is used; it may
        refuse it.
    :raises Problem: 413 too large, 415 an encoding we do not take, 400 cut short or damaged, 408
        not sent to its end in time.
    """
    encoding = request.META.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in {"", "identity", "gzip"}:
        raise Problem(
            415,
            "Content-Encoding is not supported. Send gzip or none.",
            code="unsupported-encoding",
            header="Content-Encoding",
        )
    raw = _read(request, limit)
    if check is not None:
        check(raw)
    return _gunzip(raw, limit) if encoding == "gzip" else raw


def _read(request: HttpRequest, limit: int) -> bytes:
    length = request.META.get("CONTENT_LENGTH") or ""
    declared = int(length) if length.isascii() and length.isdigit() else None
    if declared is not None and declared > limit:
        raise _too_large(limit)
    stream: Any = request
    if declared is None and request.META.get("wsgi.input_terminated"):
        # A chunked body: Django reads nothing without a length, the server knows where it ends.
        stream = request.META["wsgi.input"]
    try:
        body = _read_bounded(stream, limit)
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
    if declared is not None and len(body) < declared:
        raise Problem(
            400,
            "The body is shorter than its Content-Length.",
            code="body-incomplete",
            header="Content-Length",
            retry_after=1,
        )
    return body


def _read_bounded(stream: IO[bytes], limit: int) -> bytes:
    parts = []
    size = 0
    while part := stream.read(min(_CHUNK, limit + 1 - size)):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _gunzip(data: bytes, limit: int) -> bytes:
    parts = []
    size = 0
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            part = member.decompress(data, limit + 1 - size)
        except zlib.error as error:
            raise Problem(400, "The body is not gzip.", code="not-gzip") from error
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if not member.eof:
            raise Problem(400, "The gzip body is cut short.", code="not-gzip")
        parts.append(part)
        data = member.unused_data
    return b"".join(parts)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body is larger than {limit:,} bytes.", field="", reason="too_large")
