"""Signatures: who is let in, who is not, and what is said and counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.test import Client
from django.utils import timezone
from prometheus_client import REGISTRY

from audit_logging.signing import Signer
from audit_publisher import authentication, routing
from audit_publisher.identity import senders
from audit_publisher.models import Consumer, TopicRoute
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import CONSUMER, URL, Configure, stored
from tests.unit.audit_publisher.test_views import BATCH, post, problem


@pytest.fixture(autouse=True)
def enforced(configure: Configure) -> None:
    configure(SIGNATURE="enforce")


@pytest.fixture
def signer(private_key_file: Path) -> Signer:
    return Signer(CONSUMER, "1", private_key_file)


def now_ms(shift: float = 0) -> int:
    return int((time.time() + shift) * 1000)


def counted(result: str) -> float:
    labels = {"result": result}
    return REGISTRY.get_sample_value("audit_publisher_signatures_total", labels) or 0.0


def send(api: Client, headers: dict[str, str], /, **event: Any) -> Any:
    return post(api, URL, make_event(**event), headers=headers)


def refused(api: Client, headers: dict[str, str], reason: str) -> str:
    """The request gets a 401 that is counted under `reason`; returns what was said."""
    before = counted(reason)
    response = send(api, headers)
    document = problem(response, 401)
    assert response["WWW-Authenticate"].startswith("Signature")
    assert counted(reason) == before + 1
    return document["detail"]


@pytest.mark.parametrize("load", [authentication.refresh, routing.refresh])
def test_the_first_load_leaves_the_request_its_connection(
    db: None, monkeypatch: pytest.MonkeyPatch, load: Callable[[], bool]
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(connection, "close_if_unusable_or_obsolete", lambda: closed.append(True))
    assert load()
    assert not closed


def test_a_good_signature(api: Client, consumer: Consumer, signer: Signer) -> None:
    before = counted("ok")
    assert send(api, signer.headers(now_ms())).status_code == 200
    assert counted("ok") == before + 1


def test_without_any(api: Client, consumer: Consumer) -> None:
    assert "WM-CONSUMER.ID" in refused(api, {}, "missing")


@pytest.mark.parametrize(
    "header",
    ["WM-CONSUMER.ID", "WM-SEC.AUTH-SIGNATURE", "WM-SEC.KEY-VERSION", "WM-CONSUMER.INTIMESTAMP"],
)
def test_each_header_is_needed_once(
    api: Client, consumer: Consumer, signer: Signer, header: str
) -> None:
    headers = signer.headers(now_ms())
    assert header in refused(api, headers | {header: " "}, "missing")
    merged = f"{headers[header]},{headers[header]}"
    assert "more than once" in refused(api, headers | {header: merged}, "duplicate")
    refused(api, headers | {header: "\xe9"}, "malformed")


def test_a_consumer_nobody_knows(api: Client, consumer: Consumer, private_key_file: Path) -> None:
    headers = Signer("somebody-else", "1", private_key_file).headers(now_ms())
    refused(api, headers, "unknown_consumer")


def test_a_key_version_nobody_knows(
    api: Client, consumer: Consumer, private_key_file: Path
) -> None:
    refused(api, Signer(CONSUMER, "2", private_key_file).headers(now_ms()), "unknown_key")


def test_another_s_signature(api: Client, consumer: Consumer, signer: Signer) -> None:
    headers = signer.headers(now_ms())
    other = signer.headers(now_ms(-5))
    stolen = headers | {"WM-SEC.AUTH-SIGNATURE": other["WM-SEC.AUTH-SIGNATURE"]}
    refused(api, stolen, "bad_signature")
    for garbage in ("%%%", "AAAA", headers["WM-SEC.AUTH-SIGNATURE"][:-4]):
        refused(api, headers | {"WM-SEC.AUTH-SIGNATURE": garbage}, "bad_signature")


def test_age_and_skew(api: Client, consumer: Consumer, signer: Signer) -> None:
    assert send(api, signer.headers(now_ms(-170))).status_code == 200
    assert "180 s are allowed" in refused(api, signer.headers(now_ms(-190)), "expired")
    assert send(api, signer.headers(now_ms(25))).status_code == 200
    assert "clock" in refused(api, signer.headers(now_ms(40)), "future")


@pytest.mark.parametrize("timestamp", ["soon", "-5", "1e12", "9" * 40, "²"])
def test_a_timestamp_that_is_none(
    api: Client, consumer: Consumer, signer: Signer, timestamp: str
) -> None:
    headers = signer.headers(now_ms()) | {"WM-CONSUMER.INTIMESTAMP": timestamp}
    refused(api, headers, "malformed")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revoked": True}, "key_revoked"),
        ({"not_after": timedelta(seconds=-1)}, "key_expired"),
        ({"not_before": timedelta(hours=1)}, "key_not_yet_valid"),
    ],
)
def test_a_key_out_of_use(
    api: Client, consumer: Consumer, signer: Signer, change: dict[str, Any], reason: str
) -> None:
    key = consumer.keys.get()
    for name, value in change.items():
        setattr(key, name, timezone.now() + value if isinstance(value, timedelta) else value)
    key.save()
    authentication.refresh()
    refused(api, signer.headers(now_ms()), reason)


def test_a_consumer_switched_off_is_refused_whatever_the_rule(
    api: Client, consumer: Consumer, signer: Signer, configure: Configure
) -> None:
    Consumer.objects.update(active=False, enforcement="off")
    configure(SIGNATURE="report")
    authentication.refresh()
    refused(api, signer.headers(now_ms()), "inactive")


def test_report_takes_it_and_counts(api: Client, consumer: Consumer, configure: Configure) -> None:
    configure(SIGNATURE="report")
    authentication.refresh()
    before = counted("missing")
    assert send(api, {}).status_code == 200
    assert counted("missing") == before + 1


@pytest.mark.parametrize(
    ("general", "own", "status"),
    [
        ("enforce", "report", 200),
        ("enforce", "off", 200),
        ("off", "enforce", 401),
        ("report", "enforce", 401),
        ("off", "inherit", 200),
    ],
)
def test_a_consumer_s_own_rule(
    api: Client, consumer: Consumer, configure: Configure, general: str, own: str, status: int
) -> None:
    Consumer.objects.update(enforcement=own)
    configure(SIGNATURE=general)
    authentication.refresh()
    assert send(api, {"WM-CONSUMER.ID": CONSUMER}).status_code == status


def test_a_consumer_publishes_for_its_services_only(
    api: Client, consumer: Consumer, signer: Signer
) -> None:
    Consumer.objects.update(service_names="inventory-api\n\n shipments-api \n")
    authentication.refresh()
    assert send(api, signer.headers(now_ms()), service_name="shipments-api").status_code == 200
    response = send(api, signer.headers(now_ms()), service_name="payments-api")
    assert problem(response, 422)["error"]["field"] == "service_name"
    batch = post(
        api,
        BATCH,
        [make_event(), make_event(service_name="payments-api")],
        headers=signer.headers(now_ms()),
    )
    assert [item["status"] for item in batch.json()["items"]] == ["published", "rejected"]
    foreign = api.get("/v1/config/payments-api", headers=signer.headers(now_ms()))
    problem(foreign, 403)


def test_a_dead_database_leaves_the_last_known_keys_in_force(
    api: Client, consumer: Consumer, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert send(api, signer.headers(now_ms())).status_code == 200

    def dead(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(Consumer.objects, "prefetch_related", dead)
    assert authentication.refresh() is False
    assert send(api, signer.headers(now_ms())).status_code == 200
    refused(api, {}, "missing")


def test_a_database_that_was_never_read_is_no_reason_to_refuse_for_good(
    api: Client, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(Consumer.objects, "prefetch_related", dead)
    problem(send(api, signer.headers(now_ms())), 503, retryable=True)


@pytest.mark.parametrize("rule", ["off", "report", "enforce"])
@pytest.mark.parametrize("change", [{"enforcement": "enforce"}, {"active": False}])
def test_a_start_without_the_database_takes_nothing_by_weaker_rules(
    api: Client,
    consumer: Consumer,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    change: dict[str, Any],
) -> None:
    Consumer.objects.update(**change)
    configure(SIGNATURE=rule)

    def dead(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("gone")

    with monkeypatch.context() as without:
        without.setattr(Consumer.objects, "prefetch_related", dead)
        assert authentication.refresh() is False
        for named in ({"WM-CONSUMER.ID": CONSUMER}, {}):
            said = problem(send(api, named), 503, retryable=True)
            assert said["code"] == "not-ready"
    assert stored() == []
    assert authentication.refresh()
    problem(send(api, {"WM-CONSUMER.ID": CONSUMER}), 401)


def test_a_start_without_the_database_sends_nothing_to_another_topic(
    api: Client, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(SIGNATURE="off")
    authentication.refresh()

    def dead(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("gone")

    with monkeypatch.context() as without:
        without.setattr(TopicRoute.objects, "order_by", dead)
        assert routing.refresh() is False
        assert problem(send(api, {}), 503, retryable=True)["code"] == "not-ready"
        ready = api.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failing")
        assert "topic routes" in " ".join(ready.json()["problems"])
    assert routing.refresh()
    assert send(api, {}).status_code == 200
    # Later the last known ones are in force.
    with monkeypatch.context() as without:
        without.setattr(TopicRoute.objects, "order_by", dead)
        assert routing.refresh() is False
        assert send(api, {}).status_code == 200


def test_the_record_names_who_signed(api: Client, consumer: Consumer, signer: Signer) -> None:
    headers = signer.headers(now_ms())
    other = send(api, headers | {"WM-CONSUMER-ID": "victim"}, consumer_id=None, headers=None)
    # Django's views see two names that mean one; in front of Django they are one that came twice.
    assert other.status_code in (400, 401)
    assert "was sent more than once" in other.json()["detail"]
    assert stored() == []
    assert send(api, headers, consumer_id=None, headers=None).status_code == 200
    (record,) = stored()
    assert dict(record.headers)["wm_consumer.id"] == CONSUMER.encode()


def test_blanks_around_values_do_not_matter(
    api: Client, consumer: Consumer, signer: Signer
) -> None:
    headers = {name: f" {value} " for name, value in signer.headers(now_ms()).items()}
    assert send(api, headers).status_code == 200


def test_who_is_refused_is_in_the_log_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = [100.0]
    lines = senders.Lines(lambda: clock[0])
    assert [lines.spare("shop", "expired") for _ in range(3)] == [True, False, False]
    assert lines.spare("shop", "unknown_key")
    # Strangers who name another consumer each time do not fill it.
    assert sum(lines.spare(f"stranger {number}", "expired") for number in range(1000)) == 18
    clock[0] += 60
    assert lines.spare("shop", "expired")


def test_a_refusal_names_the_consumer_and_the_cause(
    api: Client, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(SIGNATURE="enforce")
    authentication.refresh()
    for _ in range(3):
        assert send(api, {"WM-CONSUMER.ID": "stranger"}).status_code == 401
    (said,) = [each.getMessage() for each in caplog.records if "stranger" in each.getMessage()]
    assert "refused" in said
