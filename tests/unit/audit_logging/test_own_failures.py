"""Whatever fails in the audit itself, the service answers as if it were not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import MiddlewareNotUsed
from django.test import Client, RequestFactory

from audit_logging import capture, metrics, middleware
from audit_logging.event import AuditEvent
from audit_logging.policy import Policy
from audit_logging.transport import Transport, set_transport
from tests.unit.audit_logging import service

pytestmark = pytest.mark.django_db


class Boom(Exception):
    pass


def boom(*args: Any, **kwargs: Any) -> Any:
    raise Boom


def answers() -> list[tuple[int, bytes]]:
    client = Client(raise_request_exception=False)
    said = []
    for url in ("/plain", "/raises", "/stream", "/file", "/no-route"):
        response = client.get(url)
        said.append((response.status_code, b"".join(response)))
        response.close()
    return said


@pytest.mark.parametrize(
    ("holder", "name", "place", "recorded"),
    [
        (Policy, "decide", "begin", 0),
        (capture.Exchange, "__init__", "begin", 0),
        (capture.Exchange, "watch_request_body", "request body", 5),
        (capture.Exchange, "saw_request", "finish", 5),
        (middleware, "_watch_stream", "finish", 5),
        (capture.Exchange, "ended", "submit", 0),
    ],
)
def test_a_bug_of_ours(
    events: list[AuditEvent],
    audited: Any,
    monkeypatch: pytest.MonkeyPatch,
    counted: Callable[..., float],
    holder: Any,
    name: str,
    place: str | None,
    recorded: int,
) -> None:
    audited.MIDDLEWARE = []
    without = answers()
    audited.MIDDLEWARE = [service.AUDIT]
    monkeypatch.setattr(holder, name, boom)
    assert answers() == without
    assert len(events) == recorded
    if place is not None:
        assert counted(metrics.internal_errors, place=place) > 0


def test_a_bug_while_a_chunk_passes_lets_the_chunk_pass(
    events: list[AuditEvent], monkeypatch: pytest.MonkeyPatch, counted: Callable[..., float]
) -> None:
    monkeypatch.setattr(middleware, "bytes", boom, raising=False)
    assert answers()[2] == (200, b"first,second,third")
    assert counted(metrics.internal_errors, place="stream") == 3
    assert len(events) == 5


def test_a_transport_that_fails(
    audited: Any, monkeypatch: pytest.MonkeyPatch, counted: Callable[..., float]
) -> None:
    class Broken(Transport):
        def __init__(self) -> None:
            pass

        submit = boom

    before = set_transport(Broken())
    try:
        audited.MIDDLEWARE = []
        without = answers()
        audited.MIDDLEWARE = [service.AUDIT]
        assert answers() == without
    finally:
        set_transport(before)
    assert counted(metrics.internal_errors, place="submit") == 5


def test_a_bug_is_logged_once_and_counted_each_time(
    events: list[AuditEvent],
    monkeypatch: pytest.MonkeyPatch,
    counted: Callable[..., float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(middleware, "_reported", set())
    monkeypatch.setattr(Policy, "decide", boom)
    for _ in range(3):
        Client().get("/plain")
    assert counted(metrics.internal_errors, place="begin") == 3
    assert len([r for r in caplog.records if "the audit failed" in r.message]) == 1


def test_switched_off_it_is_not_in_the_path_at_all(audited: Any) -> None:
    audited.AUDIT_LOGGING = audited.AUDIT_LOGGING | {"ENABLED": False}
    with pytest.raises(MiddlewareNotUsed):
        middleware.AuditMiddleware(lambda request: None)  # type: ignore[arg-type,return-value]
    assert Client().get("/plain").content == b"plain"


def test_an_exception_without_a_message_or_with_one_that_fails() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise Boom

    assert capture.describe(ValueError()) == "ValueError"
    assert capture.describe(Mute()) == "Mute"
    assert len(capture.describe(ValueError("x" * 10_000))) < 2100


def test_a_request_without_an_exchange() -> None:
    assert capture.exchange_of(None) is None
    assert capture.exchange_of(RequestFactory().get("/")) is None
