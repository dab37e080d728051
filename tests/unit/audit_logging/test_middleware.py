"""The middleware sees every interaction, and changes none."""

from __future__ import annotations

import gc
import gzip
import io
import json
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client, RequestFactory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_logging.event import AuditEvent
from tests.unit.audit_logging import service

# The database because Django looks after its connections at the end of each request.
pytestmark = [pytest.mark.usefixtures("no_internal_errors"), pytest.mark.django_db]

Events = list[AuditEvent]


def call(method: str, url: str, **kwargs: Any) -> Any:
    return getattr(Client(raise_request_exception=False), method)(url, **kwargs)


# -- what is recorded --------------------------------------------------------------------------


def test_an_interaction_in_full(events: Events) -> None:
    response = call(
        "get",
        "/items/7?page=2&token=hush-hush-hush",
        headers={
            "WM-CONSUMER.ID": "c-1",
            "WM-Site-Id": "1704989259133687000",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "X-Secret": "hush-hush-hush",
        },
    )
    assert response.json()["token"] == "hush-hush-hush"
    (event,) = events
    assert event.service_name == "shop"
    assert event.endpoint_name == "items/<pk>"
    assert event.path == "/items/7?page=2&token=[REDACTED]"
    assert (event.method, event.response_code, event.outcome) == ("GET", 201, "completed")
    assert event.response_body == '{"pk":7,"token":"[REDACTED]"}'
    assert event.response_body_state == "redacted"
    assert event.response_size == len(response.content)
    assert (event.request_body, event.request_body_state, event.request_size) == ("", "full", 0)
    assert event.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (event.consumer_id, event.site_id) == ("c-1", "1704989259133687000")
    assert event.headers["wm-consumer.id"] == "c-1"
    assert "hush" not in json.dumps(event.headers)
    assert event.error_reason is None
    assert 0 < event.response_ts - event.request_ts < 60


@pytest.mark.parametrize(
    ("url", "status", "endpoint", "reason", "outcome"),
    [
        ("/class/abc/", 200, "class/<slug>", None, "completed"),
        ("/empty", 204, "empty", None, "completed"),
        ("/html-error", 502, "html-error", "Bad Gateway", "failed"),
        ("/refuse", 400, "refuse", "quantity must be positive", "completed"),
        ("/no/such/route", 404, "unmatched", "Not Found", "completed"),
        ("/raises", 500, "raises", "ValueError: no such price", "failed"),
        ("/raises?kind=404", 404, "raises", "Http404: no such item", "completed"),
        ("/raises?kind=403", 403, "raises", "PermissionDenied: not yours", "completed"),
        ("/raises?kind=400", 400, "raises", "SuspiciousOperation: odd", "completed"),
        ("/raises-async", 500, "raises-async", "ValueError: no such price", "failed"),
        ("/api", 500, "api", "ValueError: drf view broke", "failed"),
    ],
)
def test_nothing_escapes(
    events: Events, url: str, status: int, endpoint: str, reason: str | None, outcome: str
) -> None:
    assert call("get", url).status_code == status
    (event,) = events
    assert event.response_code == status
    assert event.endpoint_name == endpoint
    assert event.error_reason == reason
    assert event.outcome == outcome


@pytest.mark.parametrize(
    ("other", "status", "reason"),
    [("breaking", 500, "LookupError: the middleware broke"), ("denying", 401, "no key given")],
)
def test_what_other_middleware_does_is_recorded(
    events: Events, audited: Any, other: str, status: int, reason: str
) -> None:
    audited.MIDDLEWARE = [service.AUDIT, f"{service.__name__}.{other}"]
    assert call("get", "/plain").status_code == status
    (event,) = events
    assert (event.response_code, event.error_reason) == (status, reason)
    assert event.endpoint_name == "unmatched"


def test_a_worker_that_exits_in_a_view_is_recorded_and_exits(events: Events) -> None:
    with pytest.raises(SystemExit):
        call("get", "/raises?kind=exit")
    (event,) = events
    assert (event.outcome, event.response_code) == ("failed", 500)
    assert event.error_reason == "SystemExit: 3"
    assert event.endpoint_name == "raises"


def test_installed_twice_it_still_records_once(audited: Any, events: Events) -> None:
    audited.MIDDLEWARE = [service.AUDIT, service.AUDIT]
    Client().get("/nowhere")
    assert len(events) == 1


def test_health_checks_are_left_out(events: Events) -> None:
    assert call("get", "/health/live").content == b"ok"
    assert call("get", "/healthy").status_code == 404
    assert [event.path for event in events] == ["/healthy"]


def test_a_secret_in_the_route_is_not_in_the_path(events: Events) -> None:
    call("get", "/reset/MQ/hush-hush-hush/")
    assert events[0].path == "/reset/MQ/[REDACTED]/"


# -- the request's body ------------------------------------------------------------------------

BODY = b'{"sku": 1, "name": "Z\xc3\xb6e"}'


@pytest.mark.parametrize("how", ["body", "read", "chunks", "readline", "never"])
@pytest.mark.parametrize("url", ["/echo", "/echo-async"])
def test_the_view_reads_what_was_sent(events: Events, how: str, url: str) -> None:
    response = call("post", f"{url}?how={how}", data=BODY, content_type="application/json")
    assert response.content == (b"never read" if how == "never" else BODY)
    (event,) = events
    assert event.request_size == len(BODY)
    # What the view did not read, and is there, is read after it.
    assert (event.request_body, event.request_body_state) == (BODY.decode(), "full")


class Watching(io.BytesIO):
    """A connection that knows how it was read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads: list[int] = []

    def read(self, *args: Any) -> bytes:
        self.reads.append(args[0] if args else -1)
        return super().read(*args)


class Line(io.RawIOBase):
    """The input of a server that is not known to us."""

    def __init__(self, connection: Watching) -> None:
        super().__init__()
        self.read = connection.read  # type: ignore[assignment]
        self.readline = connection.readline  # type: ignore[assignment]


class Socket:
    """A connection's socket, with what has arrived and nobody has read."""

    def __init__(self, arrived: bytes) -> None:
        self.arrived = arrived
        self.looks = 0

    def recv(self, size: int, flags: int) -> bytes:
        assert flags == MSG_PEEK | MSG_DONTWAIT
        self.looks += 1
        if not self.arrived:
            raise BlockingIOError
        return self.arrived[:size]


HOW = ["never", "half", "body", "chunks", "post"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("server", ["in memory", "gunicorn", "another", "asked first"])
def test_the_connection_is_read_as_without_us_until_the_answer_is_there(
    events: Events, audited: Any, how: str, server: str
) -> None:
    """Reading waits for the caller: a service that answers without does not wait."""
    socket = Socket(BODY)

    def reads() -> tuple[list[int], list[int]]:
        connection = Watching(BODY)
        environ = RequestFactory().post(
            f"/echo?how={how}", data=BODY, content_type="application/json"
        ).environ | {"wsgi.input": connection if server == "in memory" else Line(connection)}
        if server == "gunicorn":
            environ["gunicorn.socket"] = socket
        if server == "asked first":
            environ |= {"gunicorn.socket": socket, "HTTP_EXPECT": "100-continue"}
        response = WSGIHandler()(environ, lambda status, headers: None)
        b"".join(response)
        before = list(connection.reads)
        response.close()
        return before, connection.reads

    before, after = reads()
    audited.MIDDLEWARE = []
    _, bare = reads()
    assert (before[: len(bare)] if server == "in memory" else before) == bare
    (event,) = events
    if server in ("in memory", "gunicorn"):
        assert (event.request_body, event.request_body_state) == (BODY.decode(), "full")
    elif how in ("never", "post"):
        assert event.request_body == f"[not read: application/json, {len(BODY)} bytes]"
    elif how == "half":
        assert event.request_body == f"[read in part: application/json, 10 of {len(BODY)} bytes]"
        assert event.request_body_state == "truncated"
    if server in ("another", "asked first"):
        assert after == bare
    assert bool(socket.looks) == (server == "gunicorn" and how in ("never", "half", "post"))


@pytest.mark.parametrize("arrived", [b"", BODY[:-1]])
def test_a_caller_that_does_not_send_is_not_waited_for(
    events: Events, audited: Any, arrived: bytes
) -> None:
    """Nor is anything tried: a server gives up a connection whose body could not be read."""

    class Silent:
        def read(self, *args: Any) -> bytes:
            raise AssertionError("it would wait")

        readline = read

    environ = RequestFactory().post(
        "/echo?how=never", data=BODY, content_type="application/json"
    ).environ | {"wsgi.input": Silent(), "gunicorn.socket": Socket(arrived)}
    response = WSGIHandler()(environ, lambda status, headers: None)
    assert b"".join(response) == b"never read"
    assert not events
    response.close()
    response.close()
    (event,) = events
    assert event.request_body == f"[not read: application/json, {len(BODY)} bytes]"
    assert event.outcome == "completed"


def test_a_body_that_another_middleware_put_in_its_place(events: Events, audited: Any) -> None:
    audited.MIDDLEWARE = [service.AUDIT, f"{service.__name__}.replacing"]
    call("post", "/echo", data=BODY, content_type="application/json")
    assert (events[0].request_body, events[0].request_size) == ('{"instead": 1}', 14)


def test_drf_reads_what_was_sent(events: Events) -> None:
    response = call("post", "/api", data=BODY, content_type="application/json")
    assert response.json() == {"got": json.loads(BODY)}
    assert events[0].request_body == BODY.decode()


def test_forms(events: Events) -> None:
    form = "application/x-www-form-urlencoded"
    response = call("post", "/echo?how=post", data="a=1&pin=1234567", content_type=form)
    assert json.loads(response.content) == [{"a": ["1"], "pin": ["1234567"]}, {}]
    assert events[0].request_body == "a=1&pin=[REDACTED]"


def test_multipart_is_not_consumed_and_marked(events: Events) -> None:
    upload = SimpleUploadedFile("a.txt", b"file body")
    response = call("post", "/echo?how=post", data={"a": "1", "upload": upload})
    assert json.loads(response.content) == [{"a": ["1"]}, {"upload": "file body"}]
    assert events[0].request_body_state == "omitted_binary"
    assert (events[0].request_body or "").startswith("[not text: multipart/form-data")


def test_a_body_over_the_cap_is_marked_and_left_to_the_view(events: Events, audited: Any) -> None:
    audited.AUDIT_LOGGING = audited.AUDIT_LOGGING | {"MAX_BODY_BYTES": 10}
    for how in ("read", "body", "never"):
        response = call("post", f"/echo?how={how}", data=BODY, content_type="application/json")
        assert response.content == (b"never read" if how == "never" else BODY)
    assert {event.request_body_state for event in events} == {"omitted_size"}
    assert {event.request_body for event in events} == {
        f"[too large: application/json, {len(BODY)} bytes]"
    }


@pytest.mark.parametrize("how", ["body", "read", "never"])
def test_a_body_over_djangos_limit_meets_what_it_meets_without_us(
    events: Events, audited: Any, how: str
) -> None:
    audited.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    post = {"data": BODY, "content_type": "application/json"}
    with_us = call("post", f"/echo?how={how}", **post)
    audited.MIDDLEWARE = []
    without = call("post", f"/echo?how={how}", **post)
    assert (with_us.status_code, with_us.content) == (without.status_code, without.content)
    assert with_us.status_code == (400 if how == "body" else 200)
    # What the view did read, past the limit, it has seen in full.
    assert events[0].request_body_state == ("full" if how == "read" else "omitted_size")


def test_a_stream_that_somebody_began_to_read_is_left_alone(events: Events, audited: Any) -> None:
    audited.MIDDLEWARE = [f"{service.__name__}.reading", service.AUDIT]
    response = call("post", "/echo?how=read", data=BODY, content_type="application/json")
    assert response.content == BODY[3:]
    assert events[0].request_body_state == "omitted_parse"


class BrokenInput(io.BytesIO):
    """A connection that fails while the body is read, and is at its end from then on."""

    failed = False

    def read(self, *args: Any) -> bytes:
        if self.failed:
            return b""
        self.failed = True
        raise OSError("connection reset by peer")

    readline = read  # type: ignore[assignment]


@pytest.mark.parametrize("how", ["body", "read", "never"])
def test_a_caller_that_leaves_while_sending_looks_to_the_view_as_without_us(
    events: Events, audited: Any, how: str
) -> None:
    def answer() -> tuple[str, bytes]:
        environ = RequestFactory().post(
            f"/echo?how={how}", data=BODY, content_type="application/json"
        ).environ | {"wsgi.input": BrokenInput()}
        said: list[str] = []
        response = WSGIHandler()(environ, lambda status, headers: said.append(status))
        content = b"".join(response)
        response.close()
        return said[0], content

    with_us = answer()
    audited.MIDDLEWARE = []
    without = answer()
    assert with_us == without
    (event,) = events
    if how != "never":
        assert event.error_reason == "UnreadablePostError: connection reset by peer"
    assert event.request_body_state == "omitted_parse"


# -- the response's body -----------------------------------------------------------------------


def test_a_large_response_is_marked(events: Events, audited: Any) -> None:
    audited.AUDIT_LOGGING = audited.AUDIT_LOGGING | {"MAX_BODY_BYTES": 100}
    data = b"x" * 101
    assert call("post", "/echo?type=text/plain", data=data, content_type="x/y").content == data
    assert events[0].response_body == "[too large: text/plain, 101 bytes]"
    assert (events[0].response_body_state, events[0].response_size) == ("omitted_size", 101)


def test_a_stream_is_recorded_at_its_end_with_its_size(events: Events) -> None:
    response = Client().get("/stream")
    assert not events
    assert b"".join(response.streaming_content) == b"first,second,third"
    response.close()
    (event,) = events
    assert (event.response_body, event.response_size) == ("first,second,third", 18)
    assert (event.outcome, event.response_body_state) == ("completed", "full")


def test_a_stream_over_the_cap_is_truncated(events: Events, audited: Any) -> None:
    for cap, state in ((8, "truncated"), (0, "omitted_size")):
        audited.AUDIT_LOGGING = audited.AUDIT_LOGGING | {"MAX_BODY_BYTES": cap}
        response = Client().get("/stream")
        assert b"".join(response.streaming_content) == b"first,second,third"
        response.close()
        assert (events[-1].response_body_state, events[-1].response_size) == (state, 18)


def test_a_stream_closed_early_is_disconnected(events: Events) -> None:
    response = Client().get("/stream")
    assert next(response.streaming_content) == b"first,"
    response.close()
    (event,) = events
    assert (event.outcome, event.response_size, event.response_code) == ("disconnected", 6, 200)
    assert event.response_body_state == "truncated"
    assert service.seen["stream ended"]


def test_a_stream_that_breaks_is_failed(events: Events) -> None:
    response = Client().get("/stream?kind=breaks")
    with pytest.raises(RuntimeError, match="the source broke"):
        b"".join(response.streaming_content)
    response.close()
    response.close()
    (event,) = events
    assert (event.outcome, event.error_reason) == ("failed", "RuntimeError: the source broke")
    assert event.response_size == 6


def test_an_async_stream_served_by_wsgi(events: Events) -> None:
    response = Client().get("/stream-async")
    with pytest.warns(Warning, match="asynchronous iterators"):
        assert b"".join(response) == b"first,second,third"
    response.close()
    assert (events[0].response_size, events[0].outcome) == (18, "completed")


def test_a_file_keeps_its_fast_path(events: Events) -> None:
    environ = RequestFactory().get("/file").environ
    wrapped = []

    def wrapper(filelike: Any, block_size: int) -> Any:
        wrapped.append(filelike)
        return filelike

    environ["wsgi.file_wrapper"] = wrapper
    response = WSGIHandler()(environ, lambda status, headers: None)
    assert isinstance(response, io.BytesIO)
    assert response.read() == b"f" * 10_000
    assert not events
    response.close()
    (event,) = events
    assert (event.response_size, event.response_body_state) == (10_000, "omitted_binary")
    assert event.outcome == "completed"


def test_a_file_that_is_compressed_is_a_stream(events: Events, audited: Any) -> None:
    audited.MIDDLEWARE = [service.AUDIT, "django.middleware.gzip.GZipMiddleware"]
    response = Client(headers={"accept-encoding": "gzip"}).get("/file")
    sent = b"".join(response.streaming_content)
    assert gzip.decompress(sent) == b"f" * 10_000
    response.close()
    (event,) = events
    assert (event.response_size, event.response_body_state) == (len(sent), "full")
    assert event.response_body == "f" * 10_000


def test_a_stream_that_is_given_up_is_recorded_all_the_same(events: Events) -> None:
    """By a middleware outside ours, for example, that was cancelled before it passed it on."""
    response = Client().get("/stream")
    assert not events
    response._resource_closers.clear()
    del response
    gc.collect()
    # The collector may come at any moment, also within a submission: the next request records it.
    call("get", "/plain")
    assert sorted((event.endpoint_name, event.outcome) for event in events) == [
        ("plain", "completed"),
        ("stream", "disconnected"),
    ]


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_compression(events: Events, audited: Any, ours_first: bool) -> None:
    zipping = "django.middleware.gzip.GZipMiddleware"
    audited.MIDDLEWARE = [service.AUDIT, zipping] if ours_first else [zipping, service.AUDIT]
    body = json.dumps({"name": "n" * 500, "pin": "1234567"}).encode()
    response = Client(headers={"accept-encoding": "gzip"}).post(
        "/echo?type=application/json", data=body, content_type="application/json"
    )
    assert gzip.decompress(response.content) == body
    assert json.loads(events[0].response_body or "") == {"name": "n" * 500, "pin": "[REDACTED]"}
    response = Client(headers={"accept-encoding": "gzip"}).get("/stream")
    assert gzip.decompress(b"".join(response.streaming_content)) == b"first,second,third"
    response.close()
    assert events[1].response_body == "first,second,third"


# -- nothing is changed ------------------------------------------------------------------------

TYPES = [
    "application/json", "text/plain", "application/x-www-form-urlencoded", "", "image/png",
    "application/x-ndjson", "multipart/form-data; boundary=x", "text/html; charset=latin-1",
    "nonsense",
]  # fmt: skip


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(max_size=300) | st.text(max_size=50).map(lambda text: json.dumps([text]).encode()),
    st.sampled_from(TYPES),
    st.sampled_from(TYPES),
    st.sampled_from(["body", "read", "chunks", "readline", "post", "never", "read then body"]),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "BREW"]),
)
def test_answers_are_the_same_with_and_without_us(
    events: Events, audited: Any, body: bytes, sent: str, answered: str, how: str, method: str
) -> None:
    def answer(middleware: list[str]) -> tuple[int, bytes, dict[str, str]]:
        audited.MIDDLEWARE = middleware
        query = urlencode({"how": how, "type": answered})
        response = Client(raise_request_exception=False).generic(
            method, f"/echo?{query}", body, content_type=sent
        )
        return response.status_code, response.content, dict(response.headers)

    before = len(events)
    assert answer([service.AUDIT]) == answer([])
    assert len(events) == before + 1
    json.loads(events[-1].to_json())


# -- the user ----------------------------------------------------------------------------------

USERS = [
    service.AUDIT,
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


def test_a_user_is_named_only_when_the_view_asked(
    events: Events, audited: Any, django_assert_num_queries: Any, django_user_model: Any
) -> None:
    audited.MIDDLEWARE = USERS
    client = Client()
    client.force_login(django_user_model.objects.create_user("ann"))
    with django_assert_num_queries(0):
        client.get("/plain")
    assert events[-1].user is None
    with django_assert_num_queries(2):
        client.get("/whoami")
    assert events[-1].user == "ann"
    with django_assert_num_queries(2):
        client.get("/whoami-async")
    assert events[-1].user == "ann"
    Client().get("/whoami")
    assert events[-1].user is None


class OddUser:
    is_authenticated = True

    def get_username(self) -> str:
        raise RuntimeError("no name today")


def test_a_user_that_fails_costs_its_name_alone(events: Events, audited: Any) -> None:
    def odd(get_response: Any) -> Any:
        def middleware(request: Any) -> Any:
            request.user = OddUser()
            return get_response(request)

        return middleware

    service.odd = odd  # type: ignore[attr-defined]
    audited.MIDDLEWARE = [service.AUDIT, f"{service.__name__}.odd"]
    assert call("get", "/plain").content == b"plain"
    assert (events[0].user, events[0].response_code) == (None, 200)
