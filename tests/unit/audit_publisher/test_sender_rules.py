"""Who may publish for which service, and which consumers its events may name."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from audit_publisher import authentication
from audit_publisher.identity.allowed import EVERY, Allowed
from audit_publisher.models import Consumer
from audit_publisher.testing import make_event, make_producer_record
from tests.unit.audit_publisher.conftest import BATCH, CONSUMER, Configure, stored
from tests.unit.audit_publisher.signed import Sending, event_body, refusal
from tests.unit.audit_publisher.test_operators import run

OTHER = "7a6f0c8e-1111-4b4e-9f6b-2b6d6a2f7a10"


@pytest.fixture(autouse=True)
def enforced(configure: Configure) -> None:
    configure(SIGNATURE="enforce")


@pytest.fixture
def sending(api: Client, consumer: Consumer, private_key_file: Path) -> Sending:
    return Sending(api, private_key_file)


def allow(services: str, callers: str = "*") -> None:
    Consumer.objects.update(service_names=services, caller_ids=callers)
    authentication.refresh()


# -- lists ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("", "", "shop"),
        (" \n\n", "", "shop"),
        ("shop", "shop", "shops Shop"),
        ("shop\n cart \n", "shop cart", "shop\ncart"),
        ("shop-*", "shop- shop-eu", "shop"),
        ("*", "shop x", ""),
        ("shop\n*", "shop x", ""),
        ("a*\nb", "a ab b", "bb c"),
    ],
)
def test_a_list(text: str, yes: str, no: str) -> None:
    allowed = Allowed.parse(text)
    assert all(name in allowed for name in yes.split())
    assert not any(name in allowed for name in no.split(" ") if name)
    assert Allowed.parse("\n".join(allowed.lines())) == allowed


@pytest.mark.parametrize("text", ["*-shop", "a*b", "**", "shop\n-*-", "a\x07"])
def test_a_list_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\*|control"):
        Allowed.parse(text)
    for field in ("service_names", "caller_ids"):
        with pytest.raises(ValidationError) as refused:
            Consumer(consumer_id="c", **{field: text}).clean_fields()
        assert list(refused.value.error_dict) == [field]


def test_nothing_is_allowed_unless_it_is_said() -> None:
    assert "x" not in Allowed()
    assert "x" in EVERY
    sender = authentication.Sender("me")
    assert not sender.may_publish_for("x")
    assert sender.may_name("me")
    assert not sender.may_name("other")


# -- services -------------------------------------------------------------------------------


def test_a_new_consumer_publishes_for_nobody(sending: Sending) -> None:
    allow("")
    said = refusal(sending.post(event_body()), 422)
    assert (said["code"], said["error"]["field"]) == ("service-not-allowed", "service_name")
    assert "audit_key add --service" in said["detail"]
    assert stored() == []


def test_services_by_prefix(sending: Sending) -> None:
    allow("shop-*\npayments")
    for service, status in (("shop-eu", 200), ("payments", 200), ("payments-eu", 422)):
        assert sending.post(event_body(service_name=service)).status_code == status, service


def test_each_item_of_a_batch_is_judged_by_itself(sending: Sending) -> None:
    allow("shop", CONSUMER)
    lines = [
        make_event(service_name="shop", consumer_id=None, headers=None),
        make_event(service_name="cart", consumer_id=None, headers=None),
        make_event(service_name="shop", consumer_id=OTHER),
        make_producer_record(service_name="shop"),
        make_producer_record(service_name="cart"),
    ]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    items = sending.post(body, url=BATCH, content_type="application/x-ndjson").json()["items"]
    assert [item["status"] for item in items] == [
        *("published", "rejected", "rejected", "published", "rejected")
    ]
    assert [(items[index]["error"] or {}).get("field") for index in (1, 2, 4)] == [
        *("service_name", "consumer_id", "service_name")
    ]
    assert items[2]["error"]["code"] == "caller-not-allowed"
    assert not any(item["retryable"] for item in items)


def test_flags_of_a_service_it_may_not_publish_for(sending: Sending) -> None:
    allow("shop-*")
    for service, status in (("shop-eu", 200), ("cart", 403)):
        path = f"/v1/config/{service}"
        headers = sending.headers(None, method="GET", url=path)
        assert sending.api.get(path, headers=headers).status_code == status


# -- callers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callers", "named", "status"),
    [
        ("", CONSUMER, 200),
        ("", f" {CONSUMER} ", 200),
        ("", None, 200),
        ("", "", 200),
        ("", OTHER, 422),
        (OTHER, OTHER, 200),
        (OTHER, CONSUMER, 200),
        ("7a6f*", OTHER, 200),
        ("8a*", OTHER, 422),
        ("*", OTHER, 200),
    ],
)
def test_whom_its_events_may_name(
    sending: Sending, callers: str, named: str | None, status: int
) -> None:
    allow("*", callers)
    response = sending.post(event_body(consumer_id=named, headers=None))
    assert response.status_code == status
    if status == 422:
        assert response.json()["error"]["field"] == "consumer_id"
        assert "audit_key add --caller" in response.json()["detail"]
        assert OTHER not in response.json()["detail"]


@pytest.mark.parametrize("header", ["WM_CONSUMER.ID", "wm-consumer-id", "Wm-Consumer.Id"])
def test_a_caller_named_in_the_event_s_headers(sending: Sending, header: str) -> None:
    allow("*", "")
    own = event_body(consumer_id=None, headers={header: CONSUMER})
    assert sending.post(own).status_code == 200
    for consumer_id in (None, CONSUMER):
        body = event_body(consumer_id=consumer_id, headers={header: OTHER})
        assert refusal(sending.post(body), 422)["error"]["field"] == "headers"


def test_who_is_not_verified_is_held_to_the_rules_of_whom_it_claims_to_be(
    sending: Sending, configure: Configure
) -> None:
    configure(SIGNATURE="report")
    allow("shop", "")
    claimed = {"WM-CONSUMER.ID": CONSUMER}
    assert sending.post(event_body(), claimed).status_code == 422
    event = event_body(service_name="shop", consumer_id=CONSUMER, headers=None)
    assert sending.post(event, claimed).status_code == 200


def test_a_list_that_was_saved_past_its_check_allows_nothing(sending: Sending) -> None:
    Consumer.objects.create(consumer_id="bad", service_names="a*b", caller_ids="**")
    allow_before = sending.post(event_body()).status_code
    Consumer.objects.filter(consumer_id=CONSUMER).update(service_names="**")
    assert authentication.refresh()
    assert allow_before == 200
    refusal(sending.post(event_body()), 422)


# -- operators ------------------------------------------------------------------------------


@pytest.fixture
def pem(tmp_path: Path, public_pem: str) -> str:
    path = tmp_path / "public.pem"
    path.write_text(public_pem)
    return f"--public-key={path}"


def test_the_command(db: None, pem: str) -> None:
    add = ("audit_key", "add", f"--consumer={CONSUMER}", pem, "--json")
    (row,) = json.loads(run(*add))
    assert (row["services"], row["callers"]) == ([], [])
    assert (row["schemes"], row["signature"], row["replay"]) == ("any", "inherit", "inherit")
    assert "services: none" in run("audit_key", "list")
    (row,) = json.loads(
        run(*add, "--service=shop-*", "--service=cart", "--caller=*", "--schemes=message")
    )
    (row,) = json.loads(run(*add, "--service=cart", "--signature=report", "--replay=off"))
    assert (row["services"], row["callers"]) == (["cart", "shop-*"], ["*"])
    assert (row["schemes"], row["signature"], row["replay"]) == ("message", "report", "off")
    with pytest.raises(CommandError, match="stands alone"):
        run(*add, "--service=*-shop")
    with pytest.raises(CommandError, match="invalid choice"):
        run(*add, "--schemes=strong")


def test_admin_refuses_a_list_that_is_none(consumer: Consumer, admin_client: Client) -> None:
    page = f"/admin/audit_publisher/consumer/{consumer.pk}/change/"
    shown = admin_client.get(page).content.decode()
    for name in ("service_names", "caller_ids", "schemes", "replay"):
        assert f'name="{name}"' in shown
    form = {
        "consumer_id": CONSUMER,
        "active": "on",
        "enforcement": "inherit",
        "schemes": "message",
        "replay": "report",
        "service_names": "*-shop",
        "caller_ids": "",
        "keys-TOTAL_FORMS": "0",
        "keys-INITIAL_FORMS": "0",
    }
    assert "stands alone" in admin_client.post(page, form).content.decode()
    admin_client.post(page, form | {"service_names": "shop-*"})
    consumer.refresh_from_db()
    assert (consumer.service_names, consumer.schemes, consumer.replay) == (
        *("shop-*", "message", "report"),
    )
    assert "shop-*" in admin_client.get("/admin/audit_publisher/consumer/").content.decode()


def test_what_was_there_goes_on_as_before(db: None) -> None:
    migration: Any = importlib.import_module("audit_publisher.migrations.0002_consumer_rules")
    for consumer_id, services in (("all", " \n"), ("some", "shop\ncart")):
        Consumer.objects.create(consumer_id=consumer_id, service_names=services)
    editor = SimpleNamespace(connection=connection)
    migration.keep_what_was_allowed(apps, editor)
    kept = {
        row.consumer_id: (row.service_names, row.caller_ids, row.replay)
        for row in Consumer.objects.all()
    }
    assert kept == {"all": ("*", "*", "report"), "some": ("shop\ncart", "*", "report")}
    migration.as_it_was(apps, editor)
    assert dict(Consumer.objects.values_list("consumer_id", "service_names")) == {
        "all": "",
        "some": "shop\ncart",
    }


def test_the_migrations_say_what_the_models_say(db: None) -> None:
    call_command("makemigrations", "audit_publisher", check=True, dry_run=True, verbosity=0)


@pytest.mark.parametrize("hidden", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r"])
def test_only_line_feeds_end_a_name(hidden: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        Allowed.parse(f"shop{hidden}cart")
    assert Allowed.parse("shop\r\ncart").lines() == ["cart", "shop"]
