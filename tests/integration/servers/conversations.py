"""What is said to the project: one request of each sort, and what the record of it has to say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.integration.servers.wire import message

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
BOUNDARY = "x-boundary"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"

DOCUMENT = json.dumps({"sku": 7, "name": "Zoë", "lines": ["a\nb"] * 20}).encode()
LARGE = json.dumps({"note": "n" * 150_000}).encode()
CONTINUE = ("Expect: 100-continue",)
GZIP = ("Accept-Encoding: gzip",)


@dataclass(frozen=True)
class Said:
    """One request, or several on one connection.

    :ivar sent: the bytes; each target in it holds ``case=<name>``.
    :ivar record: what the record has to say. The status and the size of the answer are always
        compared with what the client got.
    :ivar asgi: what it says besides behind an ASGI server, where Django has the whole body before
        anybody asks for it.
    :ivar wsgi: what it says besides behind a WSGI server.
    :ivar uwsgi: what it says besides behind uWSGI, which offers no moment to read what is left.
    """

    name: str
    sent: bytes
    record: dict[str, Any] = field(default_factory=dict)
    asgi: dict[str, Any] = field(default_factory=dict)
    wsgi: dict[str, Any] = field(default_factory=dict)
    uwsgi: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


_said: list[Said] = []


def _say(
    name: str,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    record: dict[str, Any] | None = None,
    asgi: dict[str, Any] | None = None,
    wsgi: dict[str, Any] | None = None,
    uwsgi: dict[str, Any] | None = None,
    **how: Any,
) -> None:
    glue = "&" if "?" in target else "?"
    sent = message(method, f"{target}{glue}case={name}", body, **how)
    wanted = {"endpoint_name": target.partition("?")[0].strip("/"), **(record or {})}
    _said.append(Said(name, sent, wanted, asgi or {}, wsgi or {}, uwsgi or {}))


FULL = {"request_body": DOCUMENT.decode(), "request_body_state": "full"}
SIZED = {"request_size": len(DOCUMENT)}
UNREAD = {
    "request_body_state": "omitted_parse",
    "request_body": f"[not read: {JSON}, {len(DOCUMENT)} bytes]",
}

# -- bodies, read in every way -----------------------------------------------------------------

#: What the connection still holds when the view is done, and nobody reads.
_LEFT = {"never": UNREAD} | {
    how: {
        "request_body_state": "truncated",
        "request_body": f"[read in part: {JSON}, {size} of {len(DOCUMENT)} bytes]",
    }
    for how, size in (("half", 10), ("read+then+body", 1))
}

for _view in ("echo", "echo-async"):
    for _how in ("body", "read", "pieces", "lines", "half", "never", "read+then+body"):
        _name = f"{_view}-{_how.replace('+', '-')}"
        _say(
            _name,
            "POST",
            f"/{_view}?how={_how}",
            DOCUMENT,
            content_type=JSON,
            record=SIZED,
            asgi=FULL,
            wsgi=FULL,
            uwsgi=_LEFT.get(_how),
        )
    _say(
        f"{_view}-chunked",
        "POST",
        f"/{_view}",
        content_type=JSON,
        asgi=FULL | SIZED,
        chunks=[DOCUMENT[:7], DOCUMENT[7:50], DOCUMENT[50:]],
    )
    _say(
        f"{_view}-chunked-never",
        "POST",
        f"/{_view}?how=never",
        content_type=JSON,
        chunks=[DOCUMENT[:7], DOCUMENT[7:]],
        asgi=FULL | SIZED,
    )
    _say(
        f"{_view}-expects",
        "POST",
        f"/{_view}",
        DOCUMENT,
        content_type=JSON,
        headers=CONTINUE,
        record=FULL | SIZED,
    )
    for _how in ("body", "read", "pieces", "never"):
        _say(
            f"{_view}-large-{_how}",
            "POST",
            f"/{_view}?how={_how}",
            LARGE,
            content_type=JSON,
            record={"request_size": len(LARGE), "request_body_state": "omitted_size"},
            # Larger than what Django takes at once, but not than what is recorded.
            wsgi={"request_body_state": "full"} if _how in ("read", "pieces") else None,
        )
    _say(
        f"{_view}-large-chunked",
        "POST",
        f"/{_view}?how=read",
        content_type=JSON,
        chunks=[LARGE[:90_000], LARGE[90_000:]],
    )

_say(
    "empty-body",
    "POST",
    "/echo",
    b"",
    content_type=JSON,
    record={"request_size": 0, "request_body": "", "request_body_state": "full"},
)
_say(
    "form",
    "POST",
    "/echo?how=post",
    b"a=1&a=2&pin=1234567",
    content_type=FORM,
    record={"request_body": "a=1&a=2&pin=[REDACTED]", "request_body_state": "redacted"},
)
_say("form-chunked", "POST", "/echo?how=post", content_type=FORM, chunks=[b"a=1&", b"a=2"])
_say(
    "form-large",
    "POST",
    "/echo?how=post",
    b"a=" + b"1" * 120_000,
    content_type=FORM,
    record={"request_body_state": "omitted_size"},
)
_say(
    "binary",
    "PUT",
    "/echo",
    bytes(range(256)),
    content_type="image/png",
    record={"request_size": 256, "request_body_state": "omitted_binary"},
)
_say("no-type", "POST", "/echo", b"plain", record={"request_size": 5})
_say(
    "broken-json",
    "POST",
    "/echo",
    b'{"a": ',
    content_type=JSON,
    record={"request_size": 6, "request_body_state": "omitted_parse"},
)
_say(
    "delete-with-body",
    "DELETE",
    "/echo",
    b"{}",
    content_type=JSON,
    record={"method": "DELETE", "request_body": "{}"},
)
_say("odd-method", "BREW", "/echo", b"{}", content_type=JSON, record={"method": "BREW"})
_say("drf", "POST", "/drf", DOCUMENT, content_type=JSON, record=FULL | SIZED)
_say("drf-broken", "POST", "/drf", b"{", content_type=JSON, record={"response_code": 400})
_say("drf-form", "POST", "/drf", b"a=1", content_type=FORM, record={"request_body": "a=1"})
_say("drf-unknown-type", "POST", "/drf", b"a", content_type="x/y", record={"response_code": 415})
_say("drf-raises", "GET", "/drf", record={"error_reason": "ValueError: drf view broke"})

# -- before the view, without a body, and errors -----------------------------------------------

_say(
    "closed",
    "POST",
    "/closed/x",
    DOCUMENT,
    content_type=JSON,
    record={"endpoint_name": "unmatched", "error_reason": "no key given"} | SIZED,
    wsgi=FULL,
    uwsgi=UNREAD,
    asgi=FULL,
)
_say(
    "closed-expects",
    "POST",
    "/closed/x",
    DOCUMENT,
    content_type=JSON,
    headers=CONTINUE,
    record={"endpoint_name": "unmatched"},
)
_say("no-route", "GET", "/no/such/route", record={"endpoint_name": "unmatched"})
_say("slash-missing", "GET", "/class/abc", record={"endpoint_name": "unmatched"})
_say(
    "class-view",
    "GET",
    "/class/abc/",
    record={"endpoint_name": "class/<slug>", "response_body": "abc"},
)
_say(
    "item", "GET", "/items/7", record={"endpoint_name": "items/<pk>", "response_body": '{"pk": 7}'}
)
_say("item-head", "HEAD", "/items/7", record={"endpoint_name": "items/<pk>", "method": "HEAD"})
_say("item-options", "OPTIONS", "/items/7", record={"endpoint_name": "items/<pk>"})
for _code in (200, 204, 302, 304, 404, 500, 503):
    _say(
        f"status-{_code}",
        "GET",
        f"/status/{_code}",
        record={"endpoint_name": "status/<code>", "response_code": _code},
    )
_say("etag", "GET", "/etag", record={"response_body": "the same as ever"})
_say(
    "etag-known",
    "GET",
    "/etag",
    record={"response_code": 304, "response_size": 0},
    headers=[
        f'If-None-Match: "{hashlib.md5(b"the same as ever", usedforsecurity=False).hexdigest()}"'
    ],
)
_say("etag-head", "HEAD", "/etag")
for _view in ("raises", "raises-async"):
    _say(
        _view,
        "GET",
        f"/{_view}",
        record={"response_code": 500, "outcome": "failed", "error_reason": "Odd: no such price"},
    )
    for _kind, _reason in (
        ("404", "Http404: no such item"),
        ("403", "PermissionDenied: not yours"),
        ("400", "SuspiciousOperation: odd"),
    ):
        _say(
            f"{_view}-{_kind}",
            "GET",
            f"/{_view}?kind={_kind}",
            record={"response_code": int(_kind), "error_reason": _reason},
        )
_say("cookies", "GET", "/cookies", record={"response_body": "baked"})
_say("atomic", "POST", "/atomic?text=kept", b"")
_say("atomic-fails", "POST", "/atomic?text=lost&fail", b"", record={"outcome": "failed"})
_say("atomic-after", "GET", "/notes", record={"response_body": '{"notes": ["kept"]}'})

# -- streams, files, compression ---------------------------------------------------------------

for _view in ("stream", "stream-async"):
    _say(
        _view,
        "GET",
        f"/{_view}",
        record={"response_body": "first,second,third", "response_body_state": "full"},
    )
    _say(f"{_view}-head", "HEAD", f"/{_view}?kind=head")
    _say(
        f"{_view}-breaks",
        "GET",
        f"/{_view}?kind=breaks",
        record={"outcome": "failed", "error_reason": "RuntimeError: the source broke"},
    )
    _say(
        f"{_view}-gzip",
        "GET",
        f"/{_view}",
        headers=GZIP,
        record={"response_body": "first,second,third"},
    )
_FILE = {"response_body_state": "omitted_binary"}
_say("file", "GET", "/file", record={"response_size": 100_000} | _FILE)
_say("file-head", "HEAD", "/file")
_say("file-in-memory", "GET", "/file-in-memory", record={"response_size": 10_000} | _FILE)
_say("file-gzip", "GET", "/file", headers=GZIP)
_say(
    "page-gzip",
    "GET",
    "/page",
    headers=GZIP,
    record={"response_body": json.dumps({"names": ["Zoë"] * 200}, ensure_ascii=False)},
)

# -- uploads -----------------------------------------------------------------------------------


def _multipart(*parts: tuple[str, str | None, bytes]) -> bytes:
    lines = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename else ""
        kind = "Content-Type: text/plain\r\n" if filename else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{kind}\r\n'
        lines += head.encode() + content + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()


FILES = _multipart(
    ("field", None, b"value"),
    ("one", "a.txt", b"small"),
    ("several", "b.txt", b"b" * 9_000),
    ("several", "c.txt", b"c" * 30_000),
)
_SUMMARY = {"request_body_state": "omitted_binary", "request_size": len(FILES)}
for _with in ("", "memory", "temporary", "counting", "stopping", "skipping"):
    _say(
        f"upload-{_with or 'default'}",
        "POST",
        f"/upload?with={_with}",
        FILES,
        content_type=MULTIPART,
        record=_SUMMARY,
    )
_say(
    "upload-chunked",
    "POST",
    "/upload",
    content_type=MULTIPART,
    chunks=[FILES[:1000], FILES[1000:]],
)
_say("upload-cut-short", "POST", "/upload", FILES[:500], content_type=MULTIPART)
_say("upload-read-raw", "POST", "/echo?how=pieces", FILES[:700], content_type=MULTIPART)

# -- several on one connection -----------------------------------------------------------------

for _how in ("body", "never", "half"):
    _name = f"kept-alive-{_how}"
    _first = message(
        "POST", f"/echo?how={_how}&case={_name}", DOCUMENT, content_type=JSON, close=False
    )
    _second = message("GET", f"/items/2?case={_name}")
    _said.append(Said(_name, _first + _second))

SAID: tuple[Said, ...] = tuple(_said)


def by_case(events: list[dict[str, Any]]) -> Callable[[str], list[dict[str, Any]]]:
    """Return a function that gives the events of a case, in the order they began."""

    def find(name: str) -> Iterator[dict[str, Any]]:
        for event in events:
            if event["path"].rpartition("case=")[2] == name:
                yield event

    return lambda name: sorted(find(name), key=lambda event: event["request_ts"])
