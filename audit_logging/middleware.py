"""AuditMiddleware: sees every request and response, and changes neither.

Put it first in MIDDLEWARE, so that answers of other middleware (authentication failures,
redirects, 404 pages) are recorded too.
"""

from __future__ import annotations

import atexit
import logging
import os
from asyncio import CancelledError
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
)
from time import perf_counter
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse

from . import checks, metrics
from .capture import ATTRIBUTE, Exchange, describe, exchange_of, meta_keys
from .conf import conf
from .flags import in_force
from .policy import Policy
from .tracing import traceparent_of
from .transport import get_transport
from .unread import take, when_to_take

logger = logging.getLogger(__name__)

_reported: set[str] = set()
#: Streams that nobody closed; the next request records them.
_given_up: deque[_Pending] = deque()


class AuditMiddleware:
    """Records each interaction; for sync and async applications alike."""

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]
    ) -> None:
        if not conf.ENABLED:
            raise MiddlewareNotUsed("AUDIT_LOGGING ENABLED is off")
        self.get_response: Callable[[HttpRequest], Any] = get_response
        self._policy: Callable[[], Policy] = in_force()
        self._keys = meta_keys(conf.HEADERS)
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
            checks.serving_asgi()
        # What this imports takes a while: at the start, not in the first request.
        get_transport()
        # Before the transport's own, which was registered earlier; once for all middlewares.
        atexit.unregister(_record_given_up)
        atexit.register(_record_given_up)
        # Without the app in INSTALLED_APPS nobody else says so.
        checks.report()

    def __call__(self, request: HttpRequest) -> Any:
        if self._is_async:
            return self._call_async(request)
        exchange = self._begin(request)
        if exchange is None:
            return self.get_response(request)
        try:
            response = self.get_response(request)
        except BaseException as error:
            # Django turns errors into responses below us; what passes here ends the worker
            # (SystemExit) or is the server's own doing.
            self._abort(request, exchange, error)
            raise
        self._finish(request, exchange, response)
        return response

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        exchange = self._begin(request)
        if exchange is None:
            return await self.get_response(request)
        try:
            response = await self.get_response(request)
        except BaseException as error:
            self._abort(request, exchange, error)
            raise
        self._finish(request, exchange, response)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Remember why the view failed; Django shows it to us nowhere else."""
        exchange = exchange_of(request)
        if exchange is not None:
            exchange.failed(exception)

    # Each step below is ours alone: whatever fails in it is counted, logged once, and kept from
    # the service.

    def _begin(self, request: HttpRequest) -> Exchange | None:
        began = perf_counter()
        if ATTRIBUTE in request.__dict__:
            # Installed twice: the outer one records it.
            return None
        try:
            traceparent = traceparent_of(request.META)
            decision = self._policy().decide(request.path, traceparent)
            if decision.skip is not None:
                metrics.skipped.inc(reason=decision.skip)
                return None
            exchange = Exchange(request, decision, self._keys)
            if traceparent:
                exchange.meta["HTTP_TRACEPARENT"] = traceparent
        except Exception:
            _internal_error("begin")
            return None
        if exchange.wants_request_body:
            try:
                exchange.watch_request_body(request)
            except Exception:
                _internal_error("request body")
        exchange.added = perf_counter() - began
        return exchange

    def _abort(self, request: HttpRequest, exchange: Exchange, error: BaseException) -> None:
        try:
            exchange.outcome = (
                "disconnected" if isinstance(error, (CancelledError, GeneratorExit)) else "failed"
            )
            if exchange.outcome == "failed":
                exchange.status = 500
            exchange.error = exchange.error or describe(error)
            exchange.saw_request(request)
        except Exception:
            _internal_error("abort")
        _submit(exchange)

    def _finish(self, request: HttpRequest, exchange: Exchange, response: HttpResponseBase) -> None:
        began = perf_counter()
        try:
            exchange.status = status = response.status_code
            if status >= 400:
                exchange.reason_phrase = response.reason_phrase
                if status >= 500:
                    exchange.outcome = "failed"
            if "content-type" in (headers := _plain_headers(response)):
                exchange.response_type = headers["content-type"][1]
            if "content-encoding" in headers:
                exchange.response_encoding = headers["content-encoding"][1]
            exchange.saw_request(request)
            if response.streaming:
                _watch_stream(exchange, response)
                return
            content: bytes = response.content
            exchange.response_size = size = len(content)
            # Of a larger one its size tells enough; do not hold the bytes until the sender comes.
            if size <= exchange.max_body_bytes and exchange.wants_response_body:
                exchange.response_body = content
        except Exception:
            # What was seen so far is recorded all the same.
            _internal_error("finish")
        exchange.added += perf_counter() - began
        if exchange.unread and _wait_for_body(request, exchange, response):
            return
        _submit(exchange)


def _plain_headers(response: HttpResponseBase) -> Mapping[str, tuple[str, str]]:
    """The response's headers by their names in lower case, each with its true name and value."""
    try:
        # Where Django keeps them: asking its mapping takes ten times as long.
        store: Mapping[str, tuple[str, str]] = response.headers._store
    except AttributeError:
        return {name.lower(): (name, value) for name, value in response.headers.items()}
    return store


def _submit(exchange: Exchange) -> None:
    try:
        exchange.ended()
        metrics.captured.inc()
        get_transport().submit(exchange)
    except Exception:
        _internal_error("submit")
    if _given_up:
        _record_given_up()


def _record_given_up() -> None:
    while _given_up:
        try:
            given_up = _given_up.popleft()
        except IndexError:
            break  # another thread was first
        given_up.close()


def _wait_for_body(request: HttpRequest, exchange: Exchange, response: HttpResponseBase) -> bool:
    """Take a body that the service did not read; return whether it is recorded later for that."""
    try:
        when = when_to_take(exchange, request.META)
        if when == "now":
            take(exchange, request.META)
        if when != "at the end":
            return False
        exchange.stop_clock()
        late = _Late(exchange, request.META)
        response._resource_closers.append(late.close)
    except Exception:
        _internal_error("request body")
        return False
    return True


def _watch_stream(exchange: Exchange, response: StreamingHttpResponse) -> None:
    """Record a streamed response when it has really ended: at its last byte, or its close."""
    tee = _Tee(exchange)
    if getattr(response, "file_to_stream", None) is not None:
        # Wrapping a file would take the server's sendfile away from it. (A FileResponse that
        # another middleware compressed is a stream like any other, and has no such file.)
        length = response.headers.get("Content-Length", "")
        exchange.response_size = int(length) if length.isdigit() else None
        exchange.response_is_file = True
        tee.complete = True
    elif response.is_async:
        response.streaming_content = tee.iterate_async(response.streaming_content)
    else:
        response.streaming_content = tee.iterate(response.streaming_content)
    # The server calls close() whatever happens; these callbacks are how Django closes files.
    response._resource_closers.append(tee.close)


class _Pending:
    """An exchange that is recorded when its response is closed."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._closed = False
        self._pid = os.getpid()

    def __del__(self) -> None:
        # A response that was given up between us and the server, and that nobody closed. The
        # garbage collector may come round while this thread holds a lock that a submission takes.
        if not self._closed and self._pid == os.getpid():
            _given_up.append(self)

    def close(self) -> None:
        """The response has ended, in whichever way: record it, once."""
        if self._closed or self._pid != os.getpid():
            # A copy, in a forked child, is the parent's to record.
            return
        self._closed = True
        try:
            self._see_the_end()
        except Exception:
            _internal_error("close")
        _submit(self._exchange)

    def _see_the_end(self) -> None:
        raise NotImplementedError


class _Late(_Pending):
    """Reads the body that the service did not, when the answer has been sent."""

    def __init__(self, exchange: Exchange, environ: dict[str, Any]) -> None:
        super().__init__(exchange)
        self._environ = environ

    def _see_the_end(self) -> None:
        take(self._exchange, self._environ)


class _Tee(_Pending):
    """Copies the beginning of a stream while it goes to the client."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._chunks: list[bytes] = []
        self._kept = 0
        self._size = 0
        self.complete = False

    def iterate(self, stream: Iterator[bytes]) -> Iterator[bytes]:
        try:
            for chunk in stream:
                self._see(chunk)
                yield chunk
            self.complete = True
        except Exception as error:
            self._failed(error)
            raise

    async def iterate_async(self, stream: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in stream:
                self._see(chunk)
                yield chunk
            self.complete = True
        except Exception as error:
            self._failed(error)
            raise
        finally:
            await stream.aclose()

    def _see(self, chunk: bytes) -> None:
        try:
            self._size += len(chunk)
            room = self._exchange.max_body_bytes - self._kept
            if self._exchange.wants_response_body and room > 0:
                self._chunks.append(bytes(chunk[:room]))
                self._kept += min(len(chunk), room)
        except Exception:
            _internal_error("stream")

    def _failed(self, error: Exception) -> None:
        self._exchange.failed(error)
        self._exchange.outcome = "failed"
        # Behind an ASGI server Django closes no response whose stream broke.
        self.close()

    def _see_the_end(self) -> None:
        exchange = self._exchange
        if not exchange.response_is_file:
            exchange.response_size = self._size
            exchange.response_body = b"".join(self._chunks)
            exchange.response_truncated = self._size > self._kept or not self.complete
        if not self.complete and exchange.outcome == "completed":
            exchange.outcome = "disconnected"


def _internal_error(place: str) -> None:
    metrics.internal_errors.inc(place=place)
    if place not in _reported:
        # Once with its traceback: a bug that strikes on each request must not fill the disk.
        _reported.add(place)
        logger.exception(
            "the audit failed (%s); the request is served as if it were not there", place
        )
