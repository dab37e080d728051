"""Exchange: what the request thread remembers of one interaction, and nothing more.

Everything here runs in the host's request thread: it keeps references and numbers, parses and
copies nothing, does no I/O, and never raises into the host.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from types import MappingProxyType
from typing import Any

from django.core.signals import got_request_exception
from django.http import HttpRequest
from django.utils.functional import LazyObject, empty

from .conf import DEFAULT_HEADERS
from .content import is_recordable
from .policy import Decision

#: The status recorded when the caller was gone before there was an answer (nginx's convention).
CLIENT_CLOSED_REQUEST = 499

#: Where a request keeps its exchange.
ATTRIBUTE = "_audit_exchange"
_is_recordable = lru_cache(maxsize=256)(is_recordable)


#: What a record may need of the request's environment beside the headers whose values it keeps.
_ALWAYS = (
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "HTTP_API_KEY",
    "HTTP_AUTHORIZATION",
    "HTTP_CONTENT_ENCODING",
    "HTTP_OCP_APIM_SUBSCRIPTION_KEY",
    "HTTP_TRACEPARENT",
    "HTTP_TRANSFER_ENCODING",
    "HTTP_WM_CONSUMER.ID",
    "HTTP_WM_CONSUMER_ID",
    "HTTP_WM_SITE_ID",
    "HTTP_X_API_KEY",
    "QUERY_STRING",
)


def meta_keys(headers: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of META that records with the values of these `headers` are made from."""
    names = {f"HTTP_{name.upper().replace('-', '_')}" for name in headers}
    return tuple(sorted(names.union(_ALWAYS)))


_DEFAULT_KEYS = meta_keys(DEFAULT_HEADERS)


class Exchange:
    """One interaction, as seen from the request thread.

    ``started`` is epoch seconds, ``duration`` seconds on the monotonic clock, sizes bytes.

    :param keys: what to keep of META. The rest of it belongs to the server: sockets, and at some
        servers a dict that is emptied when the request is over.
    """

    # Defaults of the class: each that a request does not change costs it nothing.
    request_body: bytes | None = None
    request_unread = False
    #: Bytes that the service read of a body, where it did not read all of it.
    request_taken: int | None = None
    _watched: Watched | None = None
    response_body: bytes | None = None
    response_size: int | None = None
    response_is_file = False
    response_truncated = False
    response_type = ""
    response_encoding = ""
    reason_phrase = ""
    route: str | None = None
    kwargs: dict[str, Any] = MappingProxyType({})  # type: ignore[assignment]
    status = CLIENT_CLOSED_REQUEST
    outcome = "completed"
    error: str | None = None
    user: str | None = None
    duration = 0.0
    producer_epoch = ""
    seq = 0
    #: Bytes this exchange holds in memory, about; set when it enters the buffer.
    weight = 0
    #: Seconds that the audit itself took of the request's time, as far as it can see.
    added = 0.0

    def __init__(
        self, request: HttpRequest, decision: Decision, keys: Iterable[str] = _DEFAULT_KEYS
    ) -> None:
        self.started = time.time()
        self.started_monotonic = time.perf_counter()
        meta = request.META
        self.meta: dict[str, Any] = {key: meta[key] for key in keys if key in meta}
        self.method = request.method
        self.path = request.path
        self.wants_request_body = decision.request_body
        self.wants_response_body = decision.response_body
        self.max_body_bytes = decision.max_body_bytes
        self.request_size = _content_length(meta)
        request.__dict__[ATTRIBUTE] = self

    def weigh(self) -> int:
        """Take down, and return, how many bytes this exchange holds in memory, about."""
        # Headers and addresses are as long as a caller makes them.
        try:
            weight = 2048 + len(self.path) + sum(map(len, self.meta.values()))
        except TypeError:
            # A server, or a test, that puts something else than text there.
            weight = 2048 + sum(len(str(value)) for value in self.meta.values())
        if self.request_body:
            weight += len(self.request_body)
        if self.response_body:
            weight += len(self.response_body)
        self.weight = weight
        return weight

    def watch_request_body(self, request: HttpRequest) -> None:
        """See the body when the view reads it; read nothing that the view would not.

        Under ASGI the whole body lies in a buffer already, and is looked at in its place. Else it
        is on its way: whoever reads it waits for the caller, and a service that answers without
        reading must not. A body of unknown length, of a type that is not recorded, larger than
        the cap, or already being read, is left alone.
        """
        stream = request.__dict__.get("_stream")
        size = self.request_size
        buffered = isinstance(stream, SpooledTemporaryFile)
        if stream is None or not (size or buffered) or getattr(request, "_read_started", True):
            return
        recordable = _is_recordable(self.meta.get("CONTENT_TYPE", ""))
        if buffered:
            self._look_at(stream, recordable)
        elif size and recordable and size <= self.max_body_bytes:
            self._watched = request.__dict__["_stream"] = Watched(stream)

    def _look_at(self, stream: SpooledTemporaryFile, recordable: bool) -> None:
        position = stream.tell()
        # The client need not have given a length, nor the right one.
        self.request_size = stream.seek(0, 2)
        if recordable and self.request_size <= self.max_body_bytes and not stream._rolled:  # type: ignore[attr-defined]
            stream.seek(0)
            self.request_body = stream.read()
        stream.seek(position)

    def saw_request(self, request: HttpRequest) -> None:
        """Take what the view left behind: the body it read, the route, the user."""
        watched = self._watched
        if self.wants_request_body and self.request_body is None and not (watched and watched.size):
            left = request.__dict__.get("_body")
            if left is not None:
                self._watched = None
                self.request_size = len(left)
                if len(left) <= self.max_body_bytes:
                    self.request_body = left
        if self.request_body is None and not self.request_size:
            # No length was given; whether there was a body nobody asked.
            self.request_unread = "HTTP_TRANSFER_ENCODING" in self.meta
            if self.request_unread:
                self.request_size = None
        match = request.resolver_match
        if match is not None:
            # Not what the URLconf adds of its own: a queryset, say, that is better left alone.
            self.route, self.kwargs = match.route, match.captured_kwargs or {}
        try:
            self.user = _materialised_user(request)
        except Exception:
            # A user class of the service's own; the rest of the record stands without it.
            self.user = None

    @property
    def unread(self) -> bool:
        """Whether there is a body that would be recorded, and the service did not read it all."""
        watched = self._watched
        return watched is not None and watched.size != self.request_size and not watched.broken

    @property
    def missing(self) -> int:
        """Bytes of the body that nobody has read."""
        watched = self._watched
        return 0 if watched is None else (self.request_size or 0) - watched.size

    def read_rest(self) -> None:
        """Read what the service left unread; it may raise what reading raises."""
        watched = self._watched
        if watched is None:
            return
        taken, whole = watched.size, self.request_size or 0
        try:
            while watched.size < whole and watched.read(min(1 << 16, whole - watched.size)):
                pass
        finally:
            if watched.size < whole:
                # The caller did not send it all: what the service itself took is what counts.
                watched.size = taken

    def stop_clock(self) -> None:
        """The answer is there, and what is still to be done is none of the service's time."""
        if not self.duration:
            self.duration = time.perf_counter() - self.started_monotonic

    def ended(self) -> None:
        """The interaction is over: stop its clock, and take what was read of the body by now."""
        self.stop_clock()
        watched = self._watched
        if watched is not None:
            self._watched = None
            if watched.size == self.request_size:
                self.request_body = watched.content()
            else:
                self.request_taken = watched.size

    def failed(self, error: BaseException) -> None:
        """The service raised `error`."""
        self.error = describe(error)


class Watched:
    """A request's stream that keeps what is read from it; everything else about it is as it was.

    :ivar size: bytes read so far.
    :ivar broken: whether reading failed.
    """

    __slots__ = ("_content", "_stream", "broken", "size")

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Most bodies are read at once: that piece is kept as it is, and only further ones copied.
        self._content: bytes | bytearray = b""
        self.broken = False
        self.size = 0

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        """Read as the stream does, its errors included."""
        try:
            return self._saw(self._stream.read(*args, **kwargs))
        except BaseException:
            self.broken = True
            raise

    def readline(self, *args: Any, **kwargs: Any) -> bytes:
        """Read a line as the stream does, its errors included."""
        try:
            return self._saw(self._stream.readline(*args, **kwargs))
        except BaseException:
            self.broken = True
            raise

    def _saw(self, piece: bytes) -> bytes:
        if piece:
            if not self.size:
                self._content = piece
            else:
                if self._content.__class__ is not bytearray:
                    self._content = bytearray(self._content)
                self._content += piece
            self.size += len(piece)
        return piece

    def content(self) -> bytes:
        """Return what was read so far."""
        content = self._content
        return content if isinstance(content, bytes) else bytes(content)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    # Django asks each stream for these two: quicker here than by the way of all others.

    def seekable(self) -> bool:
        """As the stream; one that does not say is not."""
        ask = getattr(self._stream, "seekable", None)
        return ask is not None and ask()

    def close(self) -> None:
        """As the stream does."""
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def describe(error: BaseException) -> str:
    """Return an exception as one line: its type, and its message if it has one."""
    try:
        message = str(error)[:2000]
    except Exception:
        message = ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def exchange_of(request: HttpRequest | None) -> Exchange | None:
    """Return the exchange of `request`, if it has one."""
    return getattr(request, "__dict__", {}).get(ATTRIBUTE)


def _content_length(meta: Mapping[str, Any]) -> int | None:
    length = meta.get("CONTENT_LENGTH")
    try:
        return max(0, int(length)) if length else 0
    except (TypeError, ValueError):
        return None


def _materialised_user(request: HttpRequest) -> str | None:
    """Return the user's name if the application has resolved it; never cause a query."""
    user = request.__dict__.get("user")
    if issubclass(type(user), LazyObject):
        user = user.__dict__.get("_wrapped", empty)
    if user is None or user is empty:
        # An async view that asked for `await request.auser()`.
        user = request.__dict__.get("_acached_user")
    if user is None or getattr(user, "is_authenticated", False) is not True:
        return None
    name = getattr(user, "get_username", None)
    field = getattr(user, "USERNAME_FIELD", None)
    if callable(name) and (field in user.__dict__ or not hasattr(user, "get_deferred_fields")):
        return str(name())[:256] or None
    # A name that was not loaded would be a query.
    return str(getattr(user, "pk", ""))[:256] or None


def _remember_exception(sender: Any, request: HttpRequest | None = None, **kwargs: Any) -> None:
    # Django has turned the error into a response by the time the middleware sees it.
    exchange = exchange_of(request)
    error = sys.exc_info()[1]
    if exchange is not None and error is not None and exchange.error is None:
        exchange.failed(error)


got_request_exception.connect(_remember_exception, dispatch_uid="audit_logging.capture")
