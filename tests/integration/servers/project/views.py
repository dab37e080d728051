"""Views of every kind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import connection, transaction
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)

# Here and not in the children: to import it takes seconds where all cores are busy.
from django.test import Client
from django.views import View
from rest_framework.response import Response
from rest_framework.views import APIView

from .apps import note


def echo(request: HttpRequest) -> HttpResponse:
    """Answers what it reads, in the way that ``?how=`` names."""
    how = request.GET.get("how", "body")
    if how == "body":
        data = request.body
    elif how == "read":
        data = request.read()
    elif how == "pieces":
        pieces = list(iter(lambda: request.read(7), b""))
        note(f"pieces {[len(piece) for piece in pieces]}")
        data = b"".join(pieces)
    elif how == "lines":
        lines = list(request)
        note(f"lines {[len(line) for line in lines]}")
        data = b"".join(lines)
    elif how == "half":
        data = request.read(10)
    elif how == "post":
        data = json.dumps(dict(request.POST.lists())).encode()
    elif how == "read then body":
        request.read(1)
        data = request.body
    else:
        data = b"never read"
    return HttpResponse(data, content_type=request.GET.get("type", "application/octet-stream"))


@transaction.non_atomic_requests
async def echo_async(request: HttpRequest) -> HttpResponse:
    return echo(request)


class Api(APIView):
    def post(self, request: Any) -> Response:
        return Response({"got": request.data})

    def get(self, request: Any) -> Response:
        raise ValueError("drf view broke")


def item(request: HttpRequest, pk: int) -> JsonResponse:
    return JsonResponse({"pk": pk}, status=201)


class ClassView(View):
    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return HttpResponse(slug, content_type="text/plain")


def status(request: HttpRequest, code: int) -> HttpResponse:
    return HttpResponse(status=code)


def etag(request: HttpRequest) -> HttpResponse:
    """ConditionalGetMiddleware gives it an ETag, and answers 304 to who has it."""
    return HttpResponse("the same as ever", content_type="text/plain")


def page(request: HttpRequest) -> JsonResponse:
    """Long enough for GZipMiddleware."""
    return HttpResponse(
        json.dumps({"names": ["Zoë"] * 200}, ensure_ascii=False), content_type="application/json"
    )


#: Of a long stream, and of a large file: more than all the buffers between us and a client hold.
MEGABYTES = 12


def _closed(kind: str) -> None:
    # How far a server goes on with the body of an answer to HEAD is its own affair.
    if kind != "head":
        note("stream closed")


def _parts(kind: str) -> Iterator[bytes]:
    try:
        yield b"first,"
        if kind == "breaks":
            raise RuntimeError("the source broke")
        if kind == "long":
            for _ in range(MEGABYTES * 16):
                yield b"x" * 65536
        if kind == "waits":
            # Goes on until the caller is gone, which a sync server finds out by writing.
            while True:
                time.sleep(0.01)
                yield b"tick,"
        yield b"second,"
        yield b"third"
    finally:
        _closed(kind)


async def _parts_async(kind: str) -> AsyncIterator[bytes]:
    try:
        yield b"first,"
        if kind == "breaks":
            raise RuntimeError("the source broke")
        if kind == "waits":
            await asyncio.Event().wait()
        if kind == "long":
            for _ in range(MEGABYTES * 16):
                yield b"x" * 65536
        yield b"second,"
        yield b"third"
    finally:
        _closed(kind)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(_parts(request.GET.get("kind", "")), content_type="text/plain")


@transaction.non_atomic_requests
async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        _parts_async(request.GET.get("kind", "")), content_type="text/plain"
    )


def file(request: HttpRequest) -> FileResponse:
    """A real file, which servers send by sendfile."""
    path = Path(settings.ROOT) / "file.csv"
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        fresh.write_bytes(b"sku;price\n" * 10_000)
        fresh.replace(path)
    return FileResponse(path.open("rb"), as_attachment=True)


def large_file(request: HttpRequest) -> FileResponse:
    """More than a connection's buffers take, so that a client can leave in the middle of it."""
    path = Path(settings.ROOT) / "large"
    if not path.exists():
        path.write_bytes(b"l" * (MEGABYTES << 20))
    return FileResponse(path.open("rb"))


def file_in_memory(request: HttpRequest) -> FileResponse:
    return FileResponse(io.BytesIO(b"f" * 10_000), content_type="text/csv", filename="a.csv")


class Odd(Exception):
    """No exception that Django knows."""


def raises(request: HttpRequest) -> HttpResponse:
    kind = request.GET.get("kind", "odd")
    raise {
        "odd": Odd("no such price"),
        "404": Http404("no such item"),
        "403": PermissionDenied("not yours"),
        "400": SuspiciousOperation("odd"),
        # Not 3, by which gunicorn means a worker that could not start.
        "exit": SystemExit(1),
    }[kind]


@transaction.non_atomic_requests
async def raises_async(request: HttpRequest) -> HttpResponse:
    return raises(request)


def cookies(request: HttpRequest) -> HttpResponse:
    response = HttpResponse("baked")
    response.set_cookie("a", "1", httponly=True, samesite="Lax")
    response.set_cookie("b", "2", path="/b")
    response.delete_cookie("c")
    return response


def atomic(request: HttpRequest) -> HttpResponse:
    """Writes a row; ``?fail`` takes it back, as ATOMIC_REQUESTS has it."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS note (text TEXT)")
        cursor.execute("INSERT INTO note VALUES (%s)", [request.GET["text"]])
    if "fail" in request.GET:
        raise Odd("taken back")
    return HttpResponse("written")


def notes(request: HttpRequest) -> JsonResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT text FROM note")
        return JsonResponse({"notes": [row[0] for row in cursor.fetchall()]})


# -- what tests of disconnects, forks and stops use ------------------------------------------


def _open(name: str) -> bool:
    return (Path(settings.ROOT) / name).exists()


@transaction.non_atomic_requests
def gate(request: HttpRequest) -> HttpResponse:
    """Says that it has begun, and answers when the test opens its gate."""
    name = request.GET["name"]
    note(f"entered {name}")
    while not _open(name):
        time.sleep(0.005)
    note(f"left {name}")
    return HttpResponse("through")


@transaction.non_atomic_requests
async def gate_async(request: HttpRequest) -> HttpResponse:
    name = request.GET["name"]
    note(f"entered {name}")
    try:
        while not _open(name):
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        note(f"cancelled {name}")
        raise
    note(f"left {name}")
    return HttpResponse("through")


@transaction.non_atomic_requests
def pid(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"pid": os.getpid()})


@transaction.non_atomic_requests
def fork(request: HttpRequest) -> HttpResponse:
    """Forks in the middle of it all; the child serves a few requests of its own and ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for n in range(5):
                Client().get("/pid", {"case": f"child-{request.GET['n']}-{n}"})
            if settings.AUDITED:
                from audit_logging.transport import get_transport

                get_transport().flush()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return HttpResponse(f"child ended with {os.waitstatus_to_exitcode(status)}")


def counted(request: HttpRequest) -> JsonResponse:
    """The audit's counters in this process."""
    from audit_logging import metrics

    names = ("captured", "queued", "spooled", "replayed", "rejected")
    return JsonResponse({name: getattr(metrics, name).value() for name in names})
