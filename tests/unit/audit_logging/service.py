"""A small service to audit: views of every kind, and the middleware tests' ways to call them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path, re_path
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework.response import Response
from rest_framework.views import APIView

#: What views and streams leave for tests to look at.
seen: dict[str, Any] = {}


@csrf_exempt
def echo(request: HttpRequest) -> HttpResponse:
    """Answers what it reads, in the way that ?how= names."""
    how = request.GET.get("how", "body")
    if how == "body":
        data = request.body
    elif how == "read":
        data = request.read()
    elif how == "chunks":
        data = b"".join(iter(lambda: request.read(7), b""))
    elif how == "readline":
        data = b"".join(request)
    elif how == "half":
        data = request.read(10)
    elif how == "post":
        files = {name: file.read().decode("latin-1") for name, file in request.FILES.items()}
        data = json.dumps([dict(request.POST.lists()), files]).encode()
    elif how == "read then body":
        request.read(1)
        data = request.body
    else:
        data = b"never read"
    return HttpResponse(data, content_type=request.GET.get("type", "application/octet-stream"))


@csrf_exempt
async def echo_async(request: HttpRequest) -> HttpResponse:
    return echo(request)


def json_view(request: HttpRequest, pk: int) -> JsonResponse:
    return JsonResponse({"pk": pk, "token": "hush-hush-hush"}, status=201)


class ClassView(View):
    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return HttpResponse(slug, content_type="text/plain")


class Api(APIView):
    authentication_classes: list = []
    permission_classes: list = []

    def post(self, request: Any) -> Response:
        return Response({"got": request.data})

    def get(self, request: Any) -> Response:
        raise ValueError("drf view broke")


def no_content(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


def html_error(request: HttpRequest) -> HttpResponse:
    return HttpResponse("<h1>Bad gateway</h1>", status=502)


def refuse(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"detail": "quantity must be positive"}, status=400)


def raises(request: HttpRequest) -> HttpResponse:
    kind = request.GET.get("kind", "value")
    raise {
        "value": ValueError("no such price"),
        "404": Http404("no such item"),
        "403": PermissionDenied("not yours"),
        "400": SuspiciousOperation("odd"),
        "exit": SystemExit(3),
    }[kind]


async def raises_async(request: HttpRequest) -> HttpResponse:
    raise ValueError("no such price")


def parts(kind: str) -> Iterator[bytes]:
    try:
        yield b"first,"
        if kind == "breaks":
            raise RuntimeError("the source broke")
        yield b"second,"
        yield b"third"
    finally:
        seen["stream ended"] = True


async def parts_async(kind: str) -> AsyncIterator[bytes]:
    try:
        yield b"first,"
        if kind == "breaks":
            raise RuntimeError("the source broke")
        if kind == "waits":
            await asyncio.Event().wait()
        yield b"second,"
        yield b"third"
    finally:
        seen["stream ended"] = True


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts(request.GET.get("kind", "")), content_type="text/plain")


async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        parts_async(request.GET.get("kind", "")), content_type="text/plain"
    )


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(io.BytesIO(b"f" * 10_000), content_type="text/csv", filename="a.csv")


def whoami(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


async def whoami_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse((await request.auser()).get_username())


async def wait(request: HttpRequest) -> HttpResponse:
    """Waits until the test lets it go."""
    seen["waiting"] = True
    await asyncio.Event().wait()
    return HttpResponse()


async def mirror(request: HttpRequest) -> JsonResponse:
    """Takes its time, so that many are under way at once."""
    await asyncio.sleep(0.01)
    if request.body == b'"fail"':
        raise ValueError(request.GET["n"])
    return JsonResponse({"n": request.GET["n"]})


urlpatterns = [
    path("echo", echo),
    path("echo-async", echo_async),
    path("items/<int:pk>", json_view),
    re_path(r"^class/(?P<slug>[a-z]+)/$", ClassView.as_view()),
    path("reset/<uidb64>/<token>/", lambda request, **kwargs: HttpResponse("ok")),
    path("api", Api.as_view()),
    path("empty", no_content),
    path("html-error", html_error),
    path("refuse", refuse),
    path("raises", raises),
    path("raises-async", raises_async),
    path("stream", stream),
    path("stream-async", stream_async),
    path("file", file),
    path("plain", lambda request: HttpResponse("plain")),
    path("whoami", whoami),
    path("whoami-async", whoami_async),
    path("wait", wait),
    path("mirror", mirror),
    path("health/live", lambda request: HttpResponse("ok")),
]


# -- middleware beside ours ------------------------------------------------------------------


def breaking(get_response: Any) -> Any:
    """A middleware that fails before the view."""

    def middleware(request: HttpRequest) -> HttpResponse:
        raise LookupError("the middleware broke")

    return middleware


def denying(get_response: Any) -> Any:
    """A middleware that answers before the view."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"error": "no key given"}, status=401)

    return middleware


def reading(get_response: Any) -> Any:
    """A middleware outside ours that has begun to read the stream."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request.read(3)
        return get_response(request)

    return middleware


def replacing(get_response: Any) -> Any:
    """A middleware that puts another body in the request's, without a look at it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        request._body = b'{"instead": 1}'
        return get_response(request)

    return middleware


# -- calling ---------------------------------------------------------------------------------

AUDIT = "audit_logging.middleware.AuditMiddleware"


class Asgi:
    """Speaks ASGI to the project, as a server does: messages in, messages out."""

    def __init__(self) -> None:
        from django.core.handlers.asgi import ASGIHandler

        self.handler = ASGIHandler()

    async def call(
        self,
        url: str,
        *,
        method: str = "POST",
        chunks: list[bytes] | None = None,
        headers: dict[str, str] | None = None,
        disconnect_when: Any = None,
    ) -> tuple[int, bytes]:
        """Send a request whose body comes in `chunks`; leave when `disconnect_when()` holds."""
        target, _, query = url.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": target,
            "query_string": query.encode(),
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in (headers or {}).items()
            ],
        }
        pending = list(chunks or [b""])
        sent: list[dict[str, Any]] = []
        forever = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if pending:
                chunk = pending.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(pending)}
            if disconnect_when is None:
                await forever.wait()
            while not disconnect_when(sent):
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.handler(scope, receive, send)
        status = sent[0]["status"] if sent else 0
        return status, b"".join(message.get("body", b"") for message in sent)
