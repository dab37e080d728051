"""For services behind uvicorn: nothing in memory is lost at a graceful stop.

uvicorn ends a stopped process by its signal, so that Python's exit handlers never run, and those
are where a process empties its buffer. Before that it says goodbye to the application, in ASGI's
lifespan protocol, which Django does not speak. In the service's ``asgi.py``::

    from audit_logging.asgi import audited

    application = audited(get_asgi_application())
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

#: Whether this process's application is wrapped; for the check of it.
wrapped = False

_GOODBYES = ("lifespan.shutdown.complete", "lifespan.shutdown.failed")


def audited(application: Application) -> Application:
    """Return `application`, with its buffer of events emptied before its server ends.

    Requests pass as they are. An application that speaks the lifespan protocol itself goes on
    doing so; for one that does not, the server's messages are answered in its place.
    """

    global wrapped
    wrapped = True

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(application, scope, receive, send)
        else:
            await application(scope, receive, send)

    return serve


async def _live(application: Application, scope: Message, receive: Receive, send: Send) -> None:
    heard = False

    async def receiving() -> Message:
        nonlocal heard
        heard = True
        return await receive()

    async def sending(message: Message) -> None:
        if message["type"] in _GOODBYES:
            await asyncio.to_thread(_flush)
        await send(message)

    try:
        await application(scope, receiving, sending)
    except Exception:
        if heard:
            raise
        # Django refuses what is no request, before it has listened.
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await sending({"type": "lifespan.shutdown.complete"})


def _flush() -> None:
    from .transport import get_transport

    get_transport().shutdown()
