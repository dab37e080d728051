"""Events: always valid JSON and UTF-8 on one line, always within the bound."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.test import RequestFactory
from django.urls import path
from django.views.generic import RedirectView
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit_logging.capture import Exchange
from audit_logging.conf import LoggingSettings
from audit_logging.event import (
    UNMATCHED,
    EventBuilder,
    complete,
    endpoint_name,
    is_incomplete,
)
from audit_logging.policy import Decision
from audit_logging.sensitive import MASK
from audit_publisher.serializers import parse_event

urlpatterns = [path("otp/<int:otp>/", RedirectView.as_view(url="/"))]

Options = Callable[..., LoggingSettings]

anything = st.text(st.characters(), max_size=60)


def exchange(path: str = "/x", **meta: Any) -> Exchange:
    made = Exchange(
        RequestFactory().get("/"),
        Decision(request_body=True, response_body=True, max_body_bytes=1 << 20),
    )
    made.path, made.status, made.duration = path, 200, 0.25
    made.meta = made.meta | meta
    made.producer_epoch, made.seq = "epoch", 7
    return made


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(anything, anything, anything, st.binary(max_size=60), anything, anything)
def test_an_event_is_one_line_of_utf_8_whatever_it_holds(
    options: Options, path: str, header: str, query: str, body: bytes, error: str, user: str
) -> None:
    builder = EventBuilder(options())
    made = exchange(f"/{path}", HTTP_USER_AGENT=header, QUERY_STRING=query)
    made.request_body, made.error, made.user = body, error, user
    made.meta["CONTENT_TYPE"] = "text/plain; charset=utf-8"
    made.status = 500
    line = builder.encode(builder.build(made))
    assert "\n" not in line
    assert "\r" not in line
    event = json.loads(line.encode("utf-8").decode("utf-8"))
    assert event["path"].startswith("/")
    assert event["seq"] == 7


def test_times_have_fractions_and_the_response_follows_the_request(options: Options) -> None:
    made = exchange()
    made.started = 1_700_000_000.1234567
    event = EventBuilder(options()).build(made)
    assert (event.request_ts, event.response_ts) == (1_700_000_000.123457, 1_700_000_000.373457)


@pytest.mark.parametrize(
    ("lengths", "states"),
    [
        ((1000, 1000), ("full", "full")),
        ((1000, 20_000), ("full", "omitted_size")),
        ((20_000, 1000), ("omitted_size", "omitted_size")),
        ((20_000, 20_000), ("omitted_size", "omitted_size")),
    ],
)
def test_an_event_that_is_too_large_loses_its_bodies(
    options: Options, lengths: tuple[int, int], states: tuple[str, str]
) -> None:
    builder = EventBuilder(options(MAX_EVENT_BYTES=10_000))
    made = exchange()
    made.meta["CONTENT_TYPE"] = made.response_type = "text/plain"
    made.request_body, made.response_body = b"q" * lengths[0], b"r" * lengths[1]
    line = builder.encode(builder.build(made))
    assert len(line.encode()) <= 10_000
    event = json.loads(line)
    assert (event["request_body_state"], event["response_body_state"]) == states
    assert event["request_id"]


@pytest.mark.parametrize("character", ["é", "\x01", '"', "\U0001f600", "\ud800"])
def test_an_event_of_hostile_headers_and_path_fits_too(options: Options, character: str) -> None:
    builder = EventBuilder(options(MAX_EVENT_BYTES=10_000))
    made = exchange("/" + character * 100_000)
    for name in ("HTTP_USER_AGENT", "HTTP_ACCEPT", "HTTP_HOST", "HTTP_WM_SITE_ID"):
        made.meta[name] = character * 100_000
    made.user = "u" * 256
    made.error = character * 2000
    line = builder.encode(builder.build(made))
    assert len(line.encode()) <= 10_000
    assert json.loads(line)["headers"] == {}


@pytest.mark.parametrize(
    ("route", "name"),
    [
        (None, UNMATCHED),
        ("", "root"),
        ("iac/v1/inventory", "iac/v1/inventory"),
        ("/iac/v1/inventory/", "iac/v1/inventory"),
        ("dsd/v1/shipments/<str:id>", "dsd/v1/shipments/<id>"),
        ("x/<custom.Type:id>/<name>", "x/<id>/<name>"),
        (r"^items/(?P<pk>[0-9]+)/$", "items/<pk>"),
        (r"^items/(?P<pk>(a|b)+)\.json\Z", "items/<pk>.json"),
        ("a" * 1000, "a" * 256),
    ],
)
def test_the_endpoint_is_the_route_without_its_mechanics(route: str | None, name: str) -> None:
    assert endpoint_name(route) == name


def test_headers_are_an_allow_list_in_any_spelling(options: Options) -> None:
    builder = EventBuilder(options(HEADERS="Content-Type,x_request_id,Authorization,X-Session"))
    made = exchange(
        CONTENT_TYPE="text/csv; header=absent",
        HTTP_X_REQUEST_ID="r",
        HTTP_AUTHORIZATION="Custom hush",
        HTTP_X_SESSION="hush",
        HTTP_USER_AGENT="not asked for",
    )
    assert builder.build(made).headers == {
        "content-type": "text/csv; header=absent",
        "x-request-id": "r",
        "authorization": "[REDACTED]",
        "x-session": "[REDACTED]",
    }


def test_header_values_that_are_utf_8_read_as_what_they_are(options: Options) -> None:
    made = exchange(HTTP_USER_AGENT="Zoë".encode().decode("latin-1"), HTTP_ACCEPT="caf\xe9")
    headers = EventBuilder(options()).build(made).headers
    assert (headers["user-agent"], headers["accept"]) == ("Zoë", "café")


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01", True),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", True),
        ("00-short-00f067aa0ba902b7-01", False),
        ("", False),
    ],
)
def test_traceparent(options: Options, header: str, trace: bool) -> None:
    event = EventBuilder(options()).build(exchange(HTTP_TRACEPARENT=header))
    assert event.trace_id == ("4bf92f3577b34da6a3ce929d0e0e4736" if trace else None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"detail": "no such item"}, "no such item"),
        ({"errors": [{"field": "sku"}]}, '[{"field": "sku"}]'),
        ({"sku": ["This field is required."]}, '{"sku": ["This field is required."]}'),
        (["one", "two"], '["one", "two"]'),
        ({}, "Bad Request"),
        ("text", "Bad Request"),
        ({"detail": "token=hush-hush"}, "token=[REDACTED]"),
    ],
)
def test_the_reason_of_an_error_comes_from_its_body(
    options: Options, body: Any, reason: str
) -> None:
    made = exchange()
    made.status, made.reason_phrase = 400, "Bad Request"
    made.response_type, made.response_body = "application/json", json.dumps(body).encode()
    assert EventBuilder(options()).build(made).error_reason == reason


def test_what_a_path_holds_is_masked_by_its_route_though_the_last_slash_is_missing(
    options: Options, settings: Any
) -> None:
    settings.ROOT_URLCONF = "tests.unit.audit_logging.test_event"
    builder = EventBuilder(options())

    def redirected(path: str) -> str:
        made = exchange(path)
        made.status = 301
        assert is_incomplete(made)
        complete(made)
        return builder.build(made).path

    assert redirected("/otp/482915") == f"/otp/{MASK}"
    assert redirected("/otp/other") == "/otp/other"
    settings.ROOT_URLCONF = "no.such.module"
    assert redirected("/otp/482915") == "/otp/482915"
    # A scanner's paths have the service's code asked for nothing.
    made = exchange("/otp/482915")
    made.status = 404
    assert not is_incomplete(made)
    made = exchange("/otp/482915/")
    made.route, made.kwargs = "otp/<int:otp>/", {"otp": 482915}
    assert builder.build(made).path == f"/otp/{MASK}/"


def test_texts_of_every_kind_are_looked_through(options: Options) -> None:
    made = exchange(HTTP_USER_AGENT="x password: hush", QUERY_STRING='q=x{"password":"hush"}')
    made.status, made.error = 500, "IntegrityError: DETAIL:  Key (token)=(hush) already exists."
    made.meta["CONTENT_TYPE"] = made.response_type = "image/hush4hush7hush"
    made.request_body, made.request_size = None, 7
    made.response_body, made.response_size = None, 700
    assert "hush" not in EventBuilder(options()).encode(EventBuilder(options()).build(made))


def test_a_body_nobody_knows_the_length_of_is_not_called_empty(options: Options) -> None:
    made = exchange(CONTENT_TYPE="application/json")
    made.request_unread, made.request_size = True, None
    event = EventBuilder(options()).build(made)
    assert event.request_body_state == "omitted_size"
    assert event.request_body == "[not read: application/json, length unknown]"


def test_an_event_built_twice_has_one_id(options: Callable[..., LoggingSettings]) -> None:
    """Where one thread or process takes over from another, the lake still has one row."""
    made = exchange()
    first = EventBuilder(options()).build(made)
    assert EventBuilder(options()).build(made).request_id == first.request_id
    made.seq += 1
    assert EventBuilder(options()).build(made).request_id != first.request_id


def test_who_called_is_what_the_headers_and_the_service_say(options: Options) -> None:
    made = exchange(**{"HTTP_WM_CONSUMER.ID": " acme ", "HTTP_WM_SITE_ID": "1704989259133687000"})
    made.user = "bob@example.com"
    event = EventBuilder(options()).build(made)
    assert (event.consumer_id, event.site_id) == ("acme", "1704989259133687000")
    assert event.user == "bob@example.com"
    # Servers that drop names with dots pass this spelling.
    event = EventBuilder(options()).build(exchange(HTTP_WM_CONSUMER_ID="acme"))
    assert (event.consumer_id, event.site_id, event.user) == ("acme", None, None)


@pytest.mark.parametrize("character", ["\t", "\x7f", "\x85", "\u2028", "\u202e", "\u2069"])
def test_no_caller_can_have_its_requests_refused_by_the_publisher(
    options: Options, character: str
) -> None:
    odd = f"a{character}b".encode().decode("latin-1")
    made = exchange(**{"HTTP_WM_CONSUMER.ID": odd, "HTTP_WM_SITE_ID": odd})
    made.method = f"G{character}T"
    builder = EventBuilder(options())
    event = parse_event(builder.encode(builder.build(made)).encode())
    assert (event.consumer_id, event.site_id, event.method) == ("a\ufffdb", "a\ufffdb", "G\ufffdT")


def test_a_token_that_is_a_user_s_name_is_not_told(options: Options) -> None:
    made = exchange()
    made.user = "ghp_abcdefghij0123456789"
    assert EventBuilder(options()).build(made).user == MASK


def test_pages_that_show_events_are_recorded_without_their_bodies(options: Options) -> None:
    made = exchange("/admin/audit_logging/deadletter/7/change/")
    made.request_body = made.response_body = b"an event"
    made.route = "admin/audit_logging/deadletter/<path:object_id>/change/"
    event = EventBuilder(options()).build(made)
    assert (event.request_body_state, event.response_body_state) == ("omitted_policy",) * 2
    assert "an event" not in event.to_json()
