"""The middleware in an async application, spoken to in ASGI messages as a server does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.signals import request_finished, request_started
from django.db import close_old_connections

from audit_logging.event import AuditEvent
from tests.unit.audit_logging import service
from tests.unit.audit_logging.service import Asgi

Events = list[AuditEvent]
BODY = json.dumps({"name": "n" * 300}).encode()
CHUNKED = {"content-type": "application/json", "transfer-encoding": "chunked"}


@pytest.fixture(autouse=True)
def no_database(no_internal_errors: None) -> Iterator[None]:
    """Django looks after its connections at each request's ends; here there is no database."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


def call(url: str, **kwargs: Any) -> tuple[int, bytes]:
    return async_to_sync(Asgi().call)(url, **kwargs)


@pytest.mark.parametrize("url", ["/echo", "/echo-async"])
@pytest.mark.parametrize("how", ["body", "read", "chunks", "readline", "never"])
def test_a_chunked_body_without_a_length(events: Events, url: str, how: str) -> None:
    chunks = [BODY[:10], BODY[10:200], BODY[200:]]
    status, answer = call(f"{url}?how={how}", chunks=chunks, headers=CHUNKED)
    assert (status, answer) == (200, b"never read" if how == "never" else BODY)
    (event,) = events
    assert event.request_body == BODY.decode()
    assert (event.request_body_state, event.request_size) == ("full", len(BODY))


@pytest.mark.parametrize("how", ["body", "read", "post", "never"])
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
def test_a_chunked_body_over_djangos_limit_is_what_it_is_without_us(
    events: Events, audited: Any, how: str, content_type: str
) -> None:
    audited.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    headers = CHUNKED | {"content-type": content_type}
    with_us = call(f"/echo?how={how}", chunks=[BODY[:50], BODY[50:]], headers=headers)
    audited.MIDDLEWARE = []
    assert with_us == call(f"/echo?how={how}", chunks=[BODY[:50], BODY[50:]], headers=headers)
    # The trap: a stream left at its end, and a view that reads nothing with status 200.
    assert with_us[1] == BODY or with_us[0] == 400 or how in ("post", "never")
    assert len(events) == 1


def test_a_chunked_body_over_the_cap(events: Events, audited: Any) -> None:
    audited.AUDIT_LOGGING = audited.AUDIT_LOGGING | {"MAX_BODY_BYTES": 100}
    assert call("/echo?how=read", chunks=[BODY], headers=CHUNKED) == (200, BODY)
    assert (events[0].request_body_state, events[0].request_size) == ("omitted_size", len(BODY))


def test_a_body_that_went_to_a_temporary_file(events: Events, audited: Any) -> None:
    audited.FILE_UPLOAD_MAX_MEMORY_SIZE = 100
    assert call("/echo?how=read", chunks=[BODY[:200], BODY[200:]], headers=CHUNKED) == (200, BODY)
    assert events[0].request_size == len(BODY)
    assert events[0].request_body is not None
    assert events[0].request_body.startswith("[could not be read")


def test_multipart_is_left_to_the_view(events: Events) -> None:
    parts = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    status, answer = call(
        "/echo?how=post",
        chunks=[parts],
        headers=headers | {"content-length": str(len(parts))},
    )
    assert (status, json.loads(answer)) == (200, [{"a": ["1"]}, {}])
    assert events[0].request_body_state == "omitted_binary"


@pytest.mark.parametrize("url", ["/raises", "/raises-async"])
def test_the_reason_of_a_failure(events: Events, url: str) -> None:
    status, _ = call(url, method="GET")
    assert status == 500
    assert events[0].error_reason == "ValueError: no such price"
    assert events[0].outcome == "failed"


@pytest.mark.parametrize("url", ["/stream", "/stream-async"])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_streams(events: Events, url: str) -> None:
    assert call(url, method="GET") == (200, b"first,second,third")
    (event,) = events
    assert (event.response_body, event.response_size) == ("first,second,third", 18)
    assert event.outcome == "completed"


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
@pytest.mark.parametrize("url", ["/stream?kind=breaks", "/stream-async?kind=breaks"])
def test_a_stream_that_breaks(events: Events, url: str) -> None:
    """Django closes no response whose stream broke."""
    with pytest.raises(RuntimeError, match="the source broke"):
        call(url, method="GET")
    (event,) = events
    assert (event.outcome, event.error_reason) == ("failed", "RuntimeError: the source broke")
    assert event.response_size == 6
    assert service.seen["stream ended"]


def test_a_caller_that_leaves_before_the_answer(events: Events) -> None:
    status, _ = call("/wait", method="GET", disconnect_when=lambda sent: "waiting" in service.seen)
    assert status == 0
    (event,) = events
    assert (event.outcome, event.response_code) == ("disconnected", 499)
    assert event.endpoint_name == "wait"
    assert event.response_size is None


def test_a_caller_that_leaves_during_a_stream(events: Events) -> None:
    status, answer = call(
        "/stream-async?kind=waits", method="GET", disconnect_when=lambda sent: len(sent) > 1
    )
    assert (status, answer) == (200, b"first,")
    (event,) = events
    assert (event.outcome, event.response_size) == ("disconnected", 6)
    assert service.seen["stream ended"]


def test_cancellation_goes_on_upwards(events: Events) -> None:
    from audit_logging.middleware import AuditMiddleware

    async def cancelled(request: Any) -> Any:
        raise asyncio.CancelledError

    async def run() -> None:
        from django.test import AsyncRequestFactory

        await AuditMiddleware(cancelled)(AsyncRequestFactory().get("/x"))

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
    assert events[0].outcome == "disconnected"


def test_concurrent_requests_keep_apart(events: Events) -> None:
    """Of many under way at once, each has its own path, body, status and reason."""

    async def all_at_once() -> list[tuple[int, bytes]]:
        asgi = Asgi()
        return await asyncio.gather(
            *(
                asgi.call(
                    f"/mirror?n={n}",
                    chunks=[b'"fail"' if n % 3 == 0 else json.dumps({"n": n}).encode()],
                    headers={"content-type": "application/json", "wm-consumer.id": f"c{n}"},
                )
                for n in range(60)
            )
        )

    answers = async_to_sync(all_at_once)()
    assert len(events) == 60
    for event in events:
        n = int(event.path.partition("n=")[2])
        assert event.consumer_id == f"c{n}"
        assert event.response_code == answers[n][0] == (500 if n % 3 == 0 else 200)
        if n % 3 == 0:
            assert (event.error_reason, event.request_body) == (f"ValueError: {n}", '"fail"')
        else:
            assert json.loads(event.request_body or "") == {"n": n}
            assert json.loads(event.response_body or "") == {"n": str(n)}
            assert event.error_reason is None
    assert len({event.request_id for event in events}) == 60


def test_an_unresolved_user_raises_nothing(events: Events, audited: Any) -> None:
    """Resolving it here would be a query in an event loop: SynchronousOnlyOperation."""
    audited.MIDDLEWARE = [
        service.AUDIT,
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    status, _ = call(
        "/echo-async", headers={"cookie": "sessionid=abcdefghijabcdefghijabcdefghij12"}
    )
    assert status == 200
    assert events[0].user is None
