"""The HTTP contract: what each request is answered, and what is durable afterwards."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest
from django.test import Client
from prometheus_client import REGISTRY

from audit_publisher import codec, eventlog, publish, views
from audit_publisher.eventlog import Receipt
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import Backpressure
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, LEGACY, URL, Configure, stored

JSON = "application/json"


def post(api: Client, url: str, body: Any, content_type: str = JSON, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    # The test client leaves the type out when there is no body; real clients send it.
    headers |= {"CONTENT_TYPE": content_type}
    return api.generic("POST", url, data, content_type=content_type, **headers)


def problem(response: Any, status: int, retryable: bool = False) -> dict[str, Any]:
    """Check that an answer is problem details of this status, and return them."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["retryable"]) == (status, retryable)
    assert response.has_header("Retry-After") == retryable
    assert "Traceback" not in response.content.decode()
    return document


def test_one_event(api: Client) -> None:
    event = make_event()
    response = post(api, URL, event)
    assert response.status_code == 200
    assert response.json() == {
        "status": "published",
        "region": "primary",
        "request_id": event["request_id"],
    }
    (record,) = stored()
    assert record.key == b"inventory-api/iac/v1/inventory"
    decoded = codec.decode(record.value)
    assert decoded["request_id"] == event["request_id"]
    assert decoded["response_body"] == event["response_body"]
    assert decoded["request_ts"].timestamp() == pytest.approx(event["request_ts"], abs=1e-6)


def test_the_legacy_form_says_nothing(api: Client) -> None:
    response = post(api, LEGACY, make_event())
    assert (response.status_code, response.content) == (204, b"")
    assert len(stored()) == 1


@pytest.mark.parametrize("url", [URL, LEGACY, BATCH])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_a_wrong_method(api: Client, url: str, method: str, configure: Configure) -> None:
    configure(SIGNATURE="enforce")
    response = api.generic(method, url)
    assert response.status_code == 405
    assert response["Allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"a": NaN}',
        b'{"request_ts": Infinity}',
        b"\xff\xfe",
        b'{"request_id": "\\ud800"}',
        b'{"service_name": "\xff"}',
        json.dumps(make_event()).encode() + b" {}",
    ],
)
@pytest.mark.parametrize("url", [URL, LEGACY])
def test_not_json(api: Client, url: str, body: bytes) -> None:
    problem(post(api, url, body), 400)
    assert stored() == []


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"1", b"null", b"true"])
def test_json_that_is_no_object(api: Client, body: bytes) -> None:
    assert problem(post(api, URL, body), 422)["error"]["field"] == ""


def test_deep_nesting(api: Client) -> None:
    body = b'{"unknown": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    problem(post(api, URL, body), 422)
    problem(post(api, BATCH, b"[" * 200_000 + b"]" * 200_000), 400)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("response_code", "200", "expected int, got str"),
        ("response_code", 100_000, "999"),
        ("response_code", 200.5, "expected int"),
        ("service_name", "", "length"),
        ("service_name", "a\nb", "control character"),
        ("service_name", "a/b", "slash"),
        ("request_id", "123", "invalid UUID"),
        ("request_id", None, "got null"),
        ("request_ts", True, "got bool"),
        ("request_ts", -1, "1970 to 2200"),
        ("response_ts", 1_790_000_000_000, "milliseconds"),
        ("response_ts", "now", "got str"),
        ("outcome", "maybe", "not one of the values allowed"),
        ("request_body_state", "gone", "not one of the values allowed"),
        ("headers", [], "got array"),
        ("headers", {"a": 1}, "expected str, got int"),
        ("request_size", -1, ">= 0"),
        ("seq", 2**63, "9223372036854775807"),
        ("site_id", "x" * 257, "256"),
        ("site_id", "1704\x00", "control character"),
        ("consumer_id", "a\r\nb", "control character"),
        ("consumer_id", "a\x85b", "control character"),
        ("site_id", "\u202e4071", "control character"),
        ("service_name", "a\u2066b", "control character"),
        ("endpoint_name", "a\x9bb", "control character"),
    ],
)
def test_a_field_that_is_wrong_is_named(api: Client, field: str, value: Any, reason: str) -> None:
    error = problem(post(api, URL, make_event(**{field: value})), 422)["error"]
    assert error["field"].startswith(field)
    assert reason in error["reason"]
    assert stored() == []


@pytest.mark.parametrize(
    "field",
    [
        "request_id",
        "service_name",
        "endpoint_name",
        "path",
        "method",
        "response_code",
        "request_ts",
        "response_ts",
    ],
)
def test_a_field_that_is_missing_is_named(api: Client, field: str) -> None:
    event = make_event()
    del event[field]
    error = problem(post(api, LEGACY, event), 422)["error"]
    assert error == {"field": field, "reason": "it is missing"}


def test_only_what_is_required(api: Client) -> None:
    full = make_event(method="post", endpoint_name="/iac/v1/inventory")
    names = ("request_id", "service_name", "endpoint_name", "path", "method", "response_code")
    event = {name: full[name] for name in names} | {
        "request_ts": int(time.time()),
        "response_ts": 1,
    }
    assert post(api, URL, event | {"something": {"new": [1]}}).status_code == 200
    decoded = codec.decode(stored()[0].value)
    assert (decoded["outcome"], decoded["headers"]) == ("completed", {})
    assert decoded["request_body_state"] == "full"
    assert (decoded["method"], decoded["endpoint_name"]) == ("POST", "iac/v1/inventory")


def odd_times() -> float:
    labels = {"reason": "odd_time"}
    return REGISTRY.get_sample_value("audit_publisher_events_rejected_total", labels) or 0.0


@pytest.mark.parametrize(
    ("days", "reason"), [(-31, "30 days are allowed"), (-20_000, "ago"), (2, "ahead")]
)
def test_an_event_of_another_time_is_refused(api: Client, days: float, reason: str) -> None:
    before = odd_times()
    odd = make_event(request_ts=time.time() + days * 86400)
    error = problem(post(api, URL, odd), 422)["error"]
    assert error["field"] == "request_ts"
    assert reason in error["reason"]
    items = post(api, BATCH, [odd, make_event()]).json()["items"]
    assert [item["status"] for item in items] == ["rejected", "published"]
    assert items[0]["retryable"] is False
    assert odd_times() == before + 2


def test_how_old_an_event_may_be_is_an_option(api: Client, configure: Configure) -> None:
    for days in (-29, 0.9):
        event = make_event(request_ts=time.time() + days * 86400)
        assert post(api, URL, event).status_code == 200
    configure(MAX_EVENT_AGE_DAYS=100, MAX_EVENT_AHEAD_DAYS=10)
    for days in (-99, 9):
        event = make_event(request_ts=time.time() + days * 86400)
        assert post(api, URL, event).status_code == 200


def test_null_is_the_default(api: Client) -> None:
    optional = dict.fromkeys(
        ("headers", "outcome", "request_body_state", "response_body_state", "seq", "site_id")
    )
    assert post(api, URL, make_event(**optional)).status_code == 200


def test_a_body_over_the_limit(api: Client, configure: Configure) -> None:
    configure(MAX_EVENT_BYTES=5000)
    problem(post(api, URL, make_event(response_body="x" * 5000)), 413)
    assert post(api, URL, make_event(response_body="x" * 3000)).status_code == 200
    assert len(stored()) == 1


def test_a_body_over_django_s_own_limit_is_taken(api: Client, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    assert post(api, URL, make_event(response_body="x" * 300_000)).status_code == 200


def test_gzip(api: Client) -> None:
    body = gzip.compress(json.dumps(make_event()).encode(), mtime=0)
    assert post(api, URL, body, headers={"content-encoding": "gzip"}).status_code == 200
    parts = gzip.compress(b"[", mtime=0) + gzip.compress(b"]", mtime=0)
    assert post(api, BATCH, parts, headers={"content-encoding": "gzip"}).status_code == 200


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b"[]", mtime=0)[:-9], gzip.compress(b"[]", mtime=0) + b"x"]
)
def test_damaged_gzip(api: Client, body: bytes) -> None:
    problem(post(api, BATCH, body, headers={"content-encoding": "gzip"}), 400)


def test_a_gzip_bomb_is_not_unpacked(api: Client, configure: Configure) -> None:
    configure(MAX_BATCH_BYTES=100_000)
    bomb = gzip.compress(b" " * 50_000_000, mtime=0)
    assert len(bomb) < 100_000
    problem(post(api, BATCH, bomb, headers={"content-encoding": "gzip"}), 413)


def test_an_unknown_encoding_or_type(api: Client) -> None:
    problem(post(api, URL, b"{}", headers={"content-encoding": "br"}), 415)
    problem(post(api, URL, b"{}", content_type="text/plain"), 415)
    problem(post(api, URL, b"{}", content_type="application/json; charset=latin-1"), 415)
    event = make_event()
    good = post(api, URL, event, content_type="Application/JSON; charset=UTF-8")
    assert good.status_code == 200


def test_a_batch_is_answered_item_by_item(api: Client) -> None:
    good, bad, last = make_event(), make_event(response_code="x"), make_event()
    response = post(api, BATCH, [good, bad, 7, last])
    assert response.status_code == 200
    items = response.json()["items"]
    assert [item["status"] for item in items] == [
        "published",
        "rejected",
        "rejected",
        "published",
    ]
    assert [item["request_id"] for item in items] == [
        good["request_id"],
        bad["request_id"],
        None,
        last["request_id"],
    ]
    assert items[0]["error"] is None
    assert items[0]["region"] == "primary"
    assert items[1]["error"]["field"] == "response_code"
    assert [item["retryable"] for item in items] == [False] * 4
    assert len(stored()) == 2


def test_ndjson(api: Client) -> None:
    lines = b"\n".join([json.dumps(make_event()).encode(), b"{broken", b"", b"\r"])
    response = post(api, BATCH, lines, content_type="application/x-ndjson")
    statuses = [item["status"] for item in response.json()["items"]]
    assert statuses == ["published", "rejected"]


def test_an_empty_batch(api: Client) -> None:
    assert post(api, BATCH, []).json() == {"items": []}


def test_batch_limits(api: Client, configure: Configure) -> None:
    configure(MAX_BATCH_EVENTS=2, MAX_EVENT_BYTES=3000)
    problem(post(api, BATCH, [make_event()] * 3), 413)
    response = post(api, BATCH, [make_event(), make_event(response_body="x" * 3000)])
    first, second = response.json()["items"]
    assert first["status"] == "published"
    assert (second["status"], second["retryable"]) == ("rejected", False)
    assert "3,000 are allowed" in second["error"]["reason"]


@pytest.mark.parametrize("body", [b"{}", b"7", b"", b"[1,", b"[NaN]"])
def test_a_batch_that_is_no_array(api: Client, body: bytes) -> None:
    problem(post(api, BATCH, body), 400)


def test_the_spool_takes_what_no_region_takes(api: Client, configure: Configure) -> None:
    configure(PRIMARY_URL="kafka://127.0.0.1:1", DELIVERY_TIMEOUT=0.5, REQUEST_TIMEOUT=0.3)
    event = make_event()
    assert post(api, URL, event).json() == {
        "status": "spooled",
        "request_id": event["request_id"],
    }
    assert publish.get_publisher().spool.size()[0] == 1


def test_nowhere_to_store(api: Client, configure: Configure, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    configure(
        PRIMARY_URL=f"local://{tmp_path}/file/log.sqlite3", SPOOL_DIR=tmp_path / "file" / "spool"
    )
    problem(post(api, URL, make_event()), 503, retryable=True)
    problem(post(api, LEGACY, make_event()), 503, retryable=True)
    problem(post(api, BATCH, [make_event(), make_event()]), 503, retryable=True)
    mixed = post(api, BATCH, [make_event(), {}]).json()["items"]
    assert [item["retryable"] for item in mixed] == [True, False]


def test_back_pressure(
    api: Client, configure: Configure, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(LocalEventLog):
        def append(self, topic: str, records: Any) -> list[Receipt]:
            return [Receipt(error=Backpressure("queue full"))] * len(records)

    configure(SPOOL_MAX_BYTES=1 << 20)
    log = Busy("primary", tmp_path / "busy.sqlite3", create_partitions=1)
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: log)
    large = "x" * 600_000
    assert post(api, URL, make_event(response_body=large)).json()["status"] == "spooled"
    problem(post(api, URL, make_event(response_body=large)), 429, retryable=True)


def test_a_schema_registry_that_never_answered(api: Client, configure: Configure) -> None:
    configure(REGISTRY_URL="http://127.0.0.1:1/", REGISTRY_TIMEOUT=0.2)
    problem(post(api, URL, make_event()), 503, retryable=True)


def test_our_own_bug_shows_no_traceback(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("audit_publisher.intake.Intake.prepare", fail)
    response = post(api, URL, make_event())
    assert "secret" not in json.dumps(problem(response, 500, retryable=True))


def test_site_header_of_the_request(api: Client) -> None:
    event = make_event(site_id=None)
    assert post(api, URL, event, headers={"WM-Site-Id": "1704989474816248000"}).status_code == 200
    assert dict(stored()[0].headers)["wm-site-id"] == b"1704989474816248000"


def test_a_site_header_that_came_twice(api: Client) -> None:
    for twins in ({"HTTP_WM_SITE_ID": "1,2"}, {"HTTP_WM_SITE_ID": "1", "HTTP_WM_SITE.ID": "2"}):
        assert "wm-site-id" in problem(post(api, URL, make_event(), **twins), 400)["detail"]
    assert stored() == []


def test_a_site_header_that_is_no_text(api: Client) -> None:
    for value in ("\xff\xfe", "x" * 300):
        response = post(api, URL, make_event(), **{"HTTP_WM_SITE_ID": value})
        document = problem(response, 422)
        assert (document["code"], document["error"]["header"]) == ("invalid-header", "wm-site-id")


def test_flags_are_handed_out_with_an_etag(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from audit_logging import policy

    monkeypatch.setattr(policy, "document", lambda service: {"service": service, "enabled": True})
    first = api.get("/v1/config/inventory-api")
    assert first.json() == {"service": "inventory-api", "enabled": True}
    again = api.get("/v1/config/inventory-api", headers={"if-none-match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = api.get("/v1/config/other", headers={"if-none-match": first["ETag"]})
    assert other.status_code == 200
    assert api.post("/v1/config/inventory-api").status_code == 405


def test_many_pollers_ask_the_database_once_a_second(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audit_logging import policy

    asked: list[str] = []
    now = 100.0

    def document(service: str) -> dict[str, Any]:
        asked.append(service)
        return {"version": len(asked)}

    monkeypatch.setattr(policy, "document", document)
    monkeypatch.setattr(views, "_flags", views.FlagsCache(clock=lambda: now))
    first = api.get("/v1/config/a")
    assert (api.get("/v1/config/a").json(), asked) == ({"version": 1}, ["a"])
    assert api.get("/v1/config/a", headers={"if-none-match": first["ETag"]}).status_code == 304
    assert (api.get("/v1/config/b").json(), asked) == ({"version": 2}, ["a", "b"])
    now += 1
    changed = api.get("/v1/config/a", headers={"if-none-match": first["ETag"]})
    assert (changed.status_code, changed.json()) == (200, {"version": 3})
    assert changed["ETag"] != first["ETag"]
    for n in range(3000):
        views._flags.get(f"service-{n}")
    assert len(views._flags._kept) <= views.FlagsCache.MOST


@pytest.mark.parametrize("url", [URL, BATCH])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_another_encoding_is_named(api: Client, url: str, encoding: str) -> None:
    event = make_event()
    body = json.dumps([event] if url == BATCH else event)
    answer = post(api, url, body.encode(encoding))
    document = answer.json()
    assert (answer.status_code, document["code"]) == (400, "not-json")
    assert "Send UTF-8" in document["detail"]
