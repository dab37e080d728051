"""Topics, keys and the headers beside a record."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from audit_publisher import codec, routing
from audit_publisher.exceptions import AmbiguousHeader, InvalidEvent, InvalidHeader
from audit_publisher.models import TopicRoute
from audit_publisher.names import CONTROL, header_key
from audit_publisher.testing import make_event, make_record


def headers(**event: Any) -> dict[str, bytes | None]:
    return dict(make_record(make_event(**event)).headers)


def test_what_a_record_carries() -> None:
    found = headers(
        consumer_id="c-1",
        site_id="s-1",
        headers={
            "WM_QOS.CORRELATION_ID": "corr",
            "wm_svc.name": "inventory",
            "WM-SVC.VERSION": "1.2",
            "Wm_Svc_Env": "prod",
            "TraceParent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "authorization": "Bearer secret",
            "wm_sec.auth_signature": "secret",
        },
    )
    request_id = found.pop("request_id")
    assert request_id is not None
    assert found == {
        "wm_consumer.id": b"c-1",
        "wm_qos.correlation_id": b"corr",
        "wm_svc.name": b"inventory",
        "wm_svc.version": b"1.2",
        "wm_svc.env": b"prod",
        "wm-site-id": b"s-1",
        "traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }


@pytest.mark.parametrize(
    "name", ["WM-Site-Id", "wm_site_id", "WM_SITE_ID", "wm-site-id", "Wm-Site_Id"]
)
def test_the_site_in_any_spelling(name: str) -> None:
    record = make_record(make_event(site_id=None, headers={name: " 1704 "}))
    assert dict(record.headers)["wm-site-id"] == b"1704"
    assert codec.decode(record.value)["site_id"] == "1704"


def test_where_the_site_comes_from_first() -> None:
    http = {"wm-site-id": "from-http", "wm-consumer-id": "the-service", "wm-svc-env": "stage"}
    event = make_event(site_id=None, consumer_id=None, headers={"WM-Site-Id": "from-headers"})
    record = make_record(event, http=http)
    assert dict(record.headers)["wm-site-id"] == b"from-headers"
    assert dict(record.headers)["wm_consumer.id"] == b"the-service"
    assert dict(record.headers)["wm_svc.env"] == b"stage"
    # Who delivered it is not who called the audited service.
    assert codec.decode(record.value)["consumer_id"] is None
    event = make_event(site_id="from-event", headers={"WM-Site-Id": "from-headers"})
    assert dict(make_record(event, http=http).headers)["wm-site-id"] == b"from-event"
    event = make_event(site_id=None, headers={})
    assert dict(make_record(event, http=http).headers)["wm-site-id"] == b"from-http"


def test_without_a_site_there_is_no_header() -> None:
    assert "wm-site-id" not in headers(site_id=None)
    assert "wm-site-id" not in headers(site_id="  ", headers={"wm-site-id": ""})


@pytest.mark.parametrize("value", ["x" * 300, "a\nb", "a\x00"])
def test_a_site_that_cannot_be_routed_by_is_refused(value: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        make_record(make_event(site_id=None, headers={"wm-site-id": value}))
    assert caught.value.field == "headers.wm-site-id"


def left_out(name: str) -> float:
    labels = {"header": name}
    return REGISTRY.get_sample_value("audit_publisher_headers_left_out_total", labels) or 0.0


@pytest.mark.parametrize("value", ["x" * 300, "a\x00b", "a\u202eb"])
@pytest.mark.parametrize("name", ["wm_qos.correlation_id", "wm_svc.name", "traceparent"])
def test_an_odd_header_keeps_no_request_out_of_the_log(name: str, value: str) -> None:
    """Callers of an audited service choose these values; and what the delivery says of itself
    does not take their place."""
    before = left_out(name)
    http = {header_key(name): "of-the-delivery"}
    record = make_record(make_event(headers={name: value}, trace_id=None), http=http)
    assert name not in dict(record.headers)
    kept = codec.decode(record.value)["headers"]
    assert kept == {name.replace("_", "-"): value}
    assert left_out(name) == before + 1


@given(
    st.dictionaries(st.text(max_size=30), st.text(max_size=300), max_size=8),
    st.text(max_size=300),
)
def test_any_headers_make_a_record_or_a_reason(found: dict[str, str], site: str) -> None:
    try:
        record = make_record(make_event(headers=found, site_id=site or None))
    except (InvalidEvent, UnicodeEncodeError, TypeError):
        return
    assert {name for name, _ in record.headers} <= {*routing.FORWARDED, "request_id"}
    assert all(len(value or b"") <= routing.MAX_HEADER_BYTES for _, value in record.headers)


@pytest.mark.parametrize("twin", ["HTTP_WM_SITE.ID", "HTTP_WM.SITE_ID", "HTTP_WM.SITE.ID"])
def test_two_spellings_of_one_header_are_refused(twin: str) -> None:
    assert routing.http_headers({twin: "1"}) == {"wm-site-id": "1"}
    with pytest.raises(AmbiguousHeader, match="wm-site-id"):
        routing.http_headers({"HTTP_WM_SITE_ID": "1", twin: "1"})


def test_who_sent_it_is_not_taken_from_a_header() -> None:
    assert routing.http_headers({"HTTP_WM_CONSUMER_ID": "victim"}) == {}
    found = routing.http_headers({"HTTP_WM_CONSUMER_ID": "victim"}, "sender")
    assert found == {"wm-consumer-id": "sender"}


#: As HTTP spells what a record spells with underscores and dots.
_META = {name: "HTTP_" + name.upper().replace("-", "_") for name in routing.FORWARDED}


@given(st.sampled_from(routing.FORWARDED), st.binary(max_size=300))
def test_any_header_of_a_request_makes_text_or_a_reason(name: str, raw: bytes) -> None:
    try:
        found = routing.http_headers({_META[name]: raw.decode("latin-1")}, "sender")
    except (InvalidHeader, AmbiguousHeader) as error:
        refused = error.header
    else:
        refused = ""
    if refused:
        assert refused == name
        return
    value = found.get(header_key(name), "")
    assert not CONTROL.search(value)
    assert value == ("sender" if name == "wm_consumer.id" else raw.decode().strip(" \t"))


@pytest.mark.parametrize("name", routing.FORWARDED)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("\xff\xfe", "is not UTF-8"),
        ("a\x00b", "control character"),
        ("a\tb", "control character"),
        ("\xe2\x80\xae4071", "control character"),
        ("x" * 257, "257 bytes"),
    ],
)
def test_a_header_that_no_record_can_carry_is_named(name: str, value: str, reason: str) -> None:
    with pytest.raises(InvalidHeader, match=reason) as caught:
        routing.http_headers({_META[name]: value}, "sender")
    assert caught.value.header == name
    if name == "wm_consumer.id":
        with pytest.raises(InvalidHeader, match=reason):
            routing.http_headers({}, value)


@pytest.mark.parametrize("name", routing.FORWARDED)
def test_a_value_that_a_server_merged_is_refused(name: str) -> None:
    with pytest.raises(AmbiguousHeader, match=name):
        routing.http_headers({_META[name]: "a, b"})


def test_text_of_other_scripts_arrives() -> None:
    raw = "équipe-京".encode().decode("latin-1")
    assert routing.http_headers({"HTTP_WM_SVC.NAME": raw}) == {"wm-svc-name": "équipe-京"}


@pytest.mark.django_db
def test_topic_routes_in_the_admin_decide() -> None:
    TopicRoute.objects.create(service_name="inventory-api", topic="inventory-events")
    TopicRoute.objects.create(service_name="old-api", topic="old-events", enabled=False)
    assert routing.refresh()
    assert routing.topic_for("inventory-api") == "inventory-events"
    assert routing.topic_for("Inventory-API") == "api-audit-events"
    assert routing.topic_for("old-api") == "api-audit-events"
    assert routing.topics() == ("api-audit-events", "inventory-events", "old-events")


def test_key() -> None:
    assert make_record(make_event(endpoint_name="/a/b", service_name="s")).key == b"s/a/b"
    assert make_record(make_event(endpoint_name="", service_name="s")).key == b"s/"


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_the_key_names_one_service_and_endpoint(service: str, endpoint: str) -> None:
    try:
        event = make_event(service_name=service, endpoint_name=endpoint)
        record = make_record(event)
    except (InvalidEvent, UnicodeEncodeError):
        return
    key = (record.key or b"").decode()
    assert key.partition("/")[::2] == (service, endpoint.lstrip("/"))


THE_EVENTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
THE_DELIVERYS = "00-11111111111111111111111111111111-2222222222222222-01"


@pytest.mark.parametrize(
    ("event", "carried"),
    [
        ({"headers": {"traceparent": THE_EVENTS}, "trace_id": THE_EVENTS[3:35]}, THE_EVENTS),
        ({"headers": {"traceparent": THE_EVENTS}, "trace_id": None}, THE_EVENTS),
        # Its service does not record the header: no trace is better than another's.
        ({"headers": {}, "trace_id": THE_EVENTS[3:35]}, None),
        ({"headers": {}, "trace_id": THE_DELIVERYS[3:35].upper()}, THE_DELIVERYS),
        ({"headers": {}, "trace_id": None}, THE_DELIVERYS),
    ],
)
def test_an_event_keeps_its_own_trace(event: dict[str, Any], carried: str | None) -> None:
    record = make_record(make_event(**event), http={routing.TRACE: THE_DELIVERYS})
    assert dict(record.headers).get("traceparent") == (carried and carried.encode())
