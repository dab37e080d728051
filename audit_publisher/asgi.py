"""The publisher behind an ASGI server: events are taken here, everything else is Django's.

    application = front(get_asgi_application())

The operations, their checks and their answers are those of the views; what is spared is the way
through Django's and DRF's layers, and a thread for each request that waits for Kafka.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from django.conf import settings

from audit_logging import tracing

from . import authentication, metrics, operations
from .conf import conf
from .durable.outcome import Outcome
from .durable.ways import no_news
from .exceptions import without_frames
from .http.admission import Admission, Place
from .http.beside import Application, Beside, Message, Receive, Send, answer, is_ours
from .http.body import BodyReader
from .http.problems import CONTENT_TYPE, Problem, not_allowed
from .http.refusals import unknown_host
from .http.warm import warm_up
from .identity.senders import Sender
from .intake import Intake
from .names import OUR_HEADERS, header_key
from .operations import Operation
from .publish import get_publisher

logger = logging.getLogger(__name__)

T = TypeVar("T")
_OPERATIONS = {
    f"/{each.path}": each for each in (operations.EVENT, operations.BATCH, operations.LEGACY)
}
#: Seconds for which events are prepared before others get their turn.
_TURN = 0.005
#: Compressed bytes above which others are not made to wait for the decompression.
_TURN_BYTES = 64 << 10
_TRACE = ("traceparent", "tracestate")
_CONTINUE, _CHUNKED = "100-continue", "chunked"
#: Seconds between looks for delivery reports, with some awaited and without.
_BUSY, _IDLE = 0.002, 0.02
#: Of so many of these looks one shows what is under way.
_BESIDE = 50


def front(application: Application) -> Application:
    """Return `application` with the operations on events before it."""
    return _Front(application)


class Asked:
    """A request as the checks of its sender want it; the names are Django's."""

    __slots__ = ("META", "_scheme", "method")

    def __init__(self, scope: Message) -> None:
        self.method: str = scope["method"]
        self._scheme: str = scope.get("scheme") or "http"
        client = scope.get("client")
        meta: dict[str, Any] = {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": scope["path"],
            "RAW_URI": scope.get("raw_path", b"").decode("latin-1"),
            "SCRIPT_NAME": "",
            "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
            "REMOTE_ADDR": client[0] if client else "",
        }
        for raw, value in scope["headers"]:
            name = _meta_name(raw)
            text = value.decode("latin-1")
            # Once more, or in another spelling: nobody can say which is meant, and all see that.
            meta[name] = f"{meta[name]},{text}" if name in meta else text
        self.META = meta

    @property
    def scheme(self) -> str:
        """As the client has it, by Django's own rule for a proxy that ends TLS."""
        trusted = settings.SECURE_PROXY_SSL_HEADER
        if trusted:
            name, secure = trusted
            said: str | None = self.META.get(name)
            if said is not None:
                return "https" if said.split(",", 1)[0].strip() == secure else "http"
        return self._scheme


@lru_cache(maxsize=512)
def _spelled(raw: bytes) -> bytes:
    """A header's name as Django lets it through, and as signatures have it: with hyphens, and
    with the dots that proxies such as nginx take for invalid."""
    name = raw.decode("latin-1")
    return OUR_HEADERS.get(header_key(name), name).encode("latin-1")


@lru_cache(maxsize=512)
def _meta_name(raw: bytes) -> str:
    raw = _spelled(raw)
    name = raw.decode("latin-1").upper().replace("-", "_")
    return name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"


class _Front:
    def __init__(self, application: Application) -> None:
        self._beside = Beside(application)
        self._admission = Admission()
        self._unpacking = asyncio.Semaphore(2)
        self._driver = Driver(self._admission.show)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            operation = _OPERATIONS.get(scope["path"])
            if operation is not None:
                await self._serve(operation, scope, receive, send)
                return
            # Django drops names with underscores.
            spelled = [(_spelled(name), value) for name, value in scope["headers"]]
            scope = {**scope, "headers": spelled}
        elif scope["type"] == "lifespan":
            await _live(receive, send)
            return
        await self._beside(scope, receive, send)

    async def _serve(
        self, operation: Operation, scope: Message, receive: Receive, send: Send
    ) -> None:
        began = time.perf_counter()
        headers: dict[str, str] = operations.fixed_headers()
        content = b""
        status = 500
        sender: Sender | None = None
        try:
            request = Asked(scope)
            sender = _sender_of(request)
            content = await self._take(operation, request, sender, receive)
            status = 200 if content else 204
            if content:
                headers["Content-Type"] = operations.JSON
        except _Gone:
            # Nobody is there to be answered.
            return
        except Exception as error:  # noqa: BLE001  (a problem, or logged as a fault)
            problem = error if isinstance(error, Problem) else _fault(operation, error)
            without_frames(error)
            status, content = problem.status, problem.content()
            headers |= problem.all_headers()
            headers["Content-Type"] = CONTENT_TYPE
        finally:
            if sender is not None:
                await _apart(sender.answered, status)
        metrics.request_seconds(operation.name).observe(time.perf_counter() - began)
        metrics.requests(operation.name, status).inc()
        if status != 204:
            headers["Content-Length"] = str(len(content))
        await answer(scope, send, status, headers, content)

    async def _take(
        self, operation: Operation, request: Asked, sender: Sender, receive: Receive
    ) -> bytes:
        meta = request.META
        form = operation.form_of(meta.get("CONTENT_TYPE", ""))
        with self._admission.place() as place:
            reader = BodyReader(meta, operation.limit)
            body = await _read(reader, place, sender, receive, self._unpacking)
            events = operation.events_in(body, form)
            http = operation.forwarded(meta, sender.consumer_id)
            parent = {name: meta.get(f"HTTP_{name.upper()}") for name in _TRACE}
            with tracing.span("publish", kind="server", parent=parent, events=len(events)):
                now = time.time_ns() // 1000
                intake = Intake(events, http, sender, now, batch=operation.many)
                while intake.prepare(time.perf_counter() + _TURN):
                    await asyncio.sleep(0)
                # Records are made of them; until these are durable, nobody needs both.
                del body, events
                outcomes = await self._driver.publish(intake.items)
            return operation.answer(intake.results(outcomes), sender)


def _sender_of(request: Asked) -> Sender:
    meta = request.META
    if not is_ours(meta.get("HTTP_HOST", "")):
        raise unknown_host()
    if meta.get("HTTP_EXPECT", _CONTINUE).lower() != _CONTINUE:
        raise Problem(417, "Expect may only be 100-continue.", header="Expect")
    if meta.get("HTTP_TRANSFER_ENCODING", _CHUNKED).lower() != _CHUNKED:
        raise Problem(501, "Transfer-Encoding may only be chunked.", header="Transfer-Encoding")
    if request.method != "POST":
        raise not_allowed("POST")
    return authentication.identify(request, authentication.SignatureAuthentication.clock())


def _fault(operation: Operation, error: Exception) -> Problem:
    logger.error("%s failed", operation.name, exc_info=error)
    return Problem(500, "The publisher failed. Its log says why.", retry_after=30)


async def _apart(look: Callable[[T], None], what: T) -> None:
    """Do what may have to ask a store of replays: on another thread if it is across a network."""
    if conf.REPLAY_CACHE:
        await asyncio.to_thread(look, what)
    else:
        look(what)


class _Gone(Exception):
    """The client hung up."""


async def _read(
    reader: BodyReader,
    place: Place,
    sender: Sender,
    receive: Receive,
    unpacking: asyncio.Semaphore,
) -> bytes:
    """Read a body within its bound; what it takes of memory is taken from `place`."""
    if reader.declared:
        place.look(reader.declared)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        if part:
            # What is announced takes no room of others: it may come slowly, or never.
            place.take(len(part))
            reader.feed(part)
        if not message.get("more_body", False):
            break
    raw = reader.raw()
    await _apart(sender.check_body, raw)
    if reader.compressed and len(raw) > _TURN_BYTES:
        # Few at a time: what they grow to is known only then.
        async with unpacking:
            body = await asyncio.to_thread(reader.plain, raw)
    else:
        body = reader.plain(raw)
    if reader.compressed:
        place.take(len(body))
    return body


class Driver:
    """Publishes from an event loop, which serves delivery reports between requests.

    A thread that waits for them would take the interpreter from the loop once for each record.

    :param beside: called now and then.
    """

    def __init__(self, beside: Callable[[], None]) -> None:
        self._beside = beside
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._ticks = 0
        #: Until when each waits, in that order, and for how many outcomes.
        self._waiting: deque[tuple[float, asyncio.Future[list[Outcome]], int]] = deque()

    def publish(self, items: Any) -> asyncio.Future[list[Outcome]]:
        """The outcomes of `items`, in order, when every fate is known."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._thread = loop, threading.get_ident()
            self._waiting.clear()
            self._tick()
        future: asyncio.Future[list[Outcome]] = loop.create_future()

        def settle(outcomes: list[Outcome]) -> None:
            if not future.done():
                future.set_result(outcomes)

        def tell(outcomes: list[Outcome]) -> None:
            if threading.get_ident() == self._thread:
                settle(outcomes)
            else:
                loop.call_soon_threadsafe(settle, outcomes)

        publisher = get_publisher()
        publisher.submit(items, tell)
        if not future.done():
            deadline = time.monotonic() + publisher.patience
            self._waiting.append((deadline, future, len(items)))
        if not self._busy and not future.done():
            if self._timer is not None:
                self._timer.cancel()
            self._again(True)
        return future

    def _tick(self) -> None:
        still_open = 0
        try:
            still_open = get_publisher().drive()
            self._ticks += 1
            if not still_open or not self._ticks % _BESIDE:
                self._beside()
            self._give_up()
        except Exception:
            logger.exception("Delivery reports could not be served.")
        finally:
            # Whatever happens: nobody else would look for them again.
            self._again(bool(still_open))

    def _give_up(self) -> None:
        """Let nobody wait for ever, whatever went wrong on the way."""
        waiting = self._waiting
        now = time.monotonic()
        while waiting and (waiting[0][1].done() or waiting[0][0] < now):
            _, future, count = waiting.popleft()
            if not future.done():
                logger.error("%s events: nobody told in time what became of them.", count)
                future.set_result(no_news(count))

    def _again(self, busy: bool) -> None:
        assert self._loop is not None  # noqa: S101
        self._busy = busy
        self._timer = self._loop.call_later(_BUSY if busy else _IDLE, self._tick)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        kind = message["type"]
        if kind == "lifespan.startup":
            await asyncio.to_thread(warm_up)
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
