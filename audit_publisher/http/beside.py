"""What is no event: handed to Django in bounded numbers and sizes, so that events keep their turn.

Django reads whatever body comes before it looks whose it is, takes a thread for each request, and
a wrong password costs it half a second of computing. Here nobody has to be known for any of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.http.request import split_domain_port, validate_host

from .problems import CONTENT_TYPE, Problem
from .refusals import unknown_host

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

#: Bytes of one body: of admin's forms. Django would put a larger one on the disk.
MOST_BODY = 2 << 20
#: Bytes of all such bodies at a time, in one process.
MOST_BODIES = 16 << 20
#: Bytes of a path with its query, as other servers have it.
MOST_PATH = 4094
#: Requests at a time, in one process; those of them that bring something; those that may wait.
_AT_A_TIME, _POSTS, _WAITING = 4, 1, 64
#: Answered beside all others: whoever asks decides whether this process lives.
_PROBES = ("/health/", "/metrics")
_BODILESS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "DELETE"))


class Beside:
    """Passes requests on to `application`, or refuses them with a problem.

    It is for one thread, an event loop's.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._bytes = 0
        self._waiting = 0
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._posts = asyncio.Semaphore(_POSTS)
        self._probes = asyncio.Semaphore(_AT_A_TIME)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if taken + count > MOST_BODY:
                raise Problem(413, "The body is too large.", field="")
            if self._bytes + count > MOST_BODIES:
                raise Problem(429, "Too much is under way. Try again later.", retry_after=1)
            taken += count
            self._bytes += count

        try:
            _check(scope)
            body = await _read(receive, take)
            if body is not None:
                await self._pass_on(scope, _again(body, receive), send)
        except Problem as problem:
            await answer_problem(problem, scope, send)
        finally:
            self._bytes -= taken

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(_PROBES):
            async with self._probes:
                await self._application(scope, receive, send)
            return
        if self._waiting >= _WAITING:
            raise Problem(503, "Too many requests wait. Try again later.", retry_after=1)
        turns = [self._turns] if scope["method"] in _BODILESS else [self._posts, self._turns]
        async with AsyncExitStack() as stack:
            self._waiting += 1
            try:
                for turn in turns:
                    await stack.enter_async_context(turn)
            finally:
                self._waiting -= 1
            await self._application(scope, receive, send)


def _check(scope: Message) -> None:
    """Refuse what would only fill the log.

    :raises Problem: 400, 413, 414.
    """
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MOST_PATH:
        raise Problem(414, f"A path may have {MOST_PATH:,} bytes, with its query.")
    headers = dict(scope["headers"])
    host = headers.get(b"host")
    # Where a proxy in front says which host was meant, Django looks at that; where nobody says it
    # (probes in HTTP/1.0), at the address that was asked.
    asked = None if settings.USE_X_FORWARDED_HOST else host
    if asked is not None and not is_ours(asked.decode("latin-1")):
        raise unknown_host()
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > MOST_BODY:
        raise Problem(413, "The body is too large.", field="")


async def _read(receive: Receive, take: Callable[[int], None]) -> bytes | None:
    """The body; None if the client hung up."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        take(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has read `body` already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


@lru_cache(maxsize=256)
def is_ours(host: str) -> bool:
    """Whether a Host header is one of the names that this project answers for."""
    domain, _ = split_domain_port(host)
    allowed = settings.ALLOWED_HOSTS
    if settings.DEBUG and not allowed:
        allowed = [".localhost", "127.0.0.1", "[::1]"]
    return bool(domain) and validate_host(domain, allowed)


async def answer_problem(problem: Problem, scope: Message, send: Send) -> None:
    """Answer a request with `problem`."""
    content = problem.content()
    headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(len(content))}
    await answer(scope, send, problem.status, headers | problem.all_headers(), content)


async def answer(
    scope: Message, send: Send, status: int, headers: dict[str, str], content: bytes
) -> None:
    """Answer a request."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send(
        {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content}
    )


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    if setting in ("ALLOWED_HOSTS", "DEBUG"):
        is_ours.cache_clear()


setting_changed.connect(_reconfigure)
