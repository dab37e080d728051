"""The trail: each way to change something leaves a line, or the change is not made."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import DatabaseError, NotSupportedError, connection, transaction
from django.test import Client
from django.utils import timezone

from audit_logging import changes
from audit_logging.models import CaptureFlags, EndpointRule
from audit_publisher.models import Consumer, ConsumerKey, TopicRoute, TrailLine
from audit_publisher.operating import trail
from audit_publisher.operating.spool_contents import readable
from tests.unit.audit_publisher.conftest import CONSUMER
from tests.unit.audit_publisher.operating import TRAIL, heard, person, send

pytestmark = pytest.mark.django_db

ADMIN = "/admin/audit_publisher/"


@pytest.fixture
def route() -> TopicRoute:
    return TopicRoute.objects.create(service_name="orders-api", topic="orders-events")


@pytest.fixture
def root() -> Client:
    return person("root", is_superuser=True)


def newest(kind: str = "topicroute") -> TrailLine:
    line = TrailLine.objects.filter(kind=f"audit_publisher.{kind}").first()
    assert line is not None
    return line


def count() -> int:
    return TrailLine.objects.count()


def told(line: TrailLine) -> tuple[str, dict[str, Any]]:
    return line.action, line.fields


# -- every way to change a row ------------------------------------------------------------


def test_made_changed_and_deleted(route: TopicRoute) -> None:
    assert told(newest()) == (
        "created",
        {
            "service_name": [None, "orders-api"],
            "topic": [None, "orders-events"],
            "enabled": [None, True],
        },
    )
    route.enabled = False
    route.save()
    assert told(newest()) == ("changed", {"enabled": [True, False]})
    assert newest().key == str(route.pk)
    before = count()
    route.save()
    assert count() == before, "nothing was changed"
    route.topic = "never saved"
    route.delete()
    assert told(newest()) == (
        "deleted",
        {
            "service_name": ["orders-api", None],
            "topic": ["orders-events", None],
            "enabled": [False, None],
        },
    )


def test_a_save_of_some_fields_tells_what_was_saved(route: TopicRoute) -> None:
    route.enabled, route.topic = False, "other-events"
    route.save(update_fields=["enabled"])
    assert told(newest()) == ("changed", {"enabled": [True, False]})


def test_update_of_many(route: TopicRoute) -> None:
    TopicRoute.objects.create(service_name="b", topic="x", enabled=False)
    other = TopicRoute.objects.create(service_name="c", topic="x")
    before = count()
    assert TopicRoute.objects.update(enabled=False) == 3
    lines = TrailLine.objects.all()[: count() - before]
    assert sorted((line.text, line.fields["enabled"]) for line in lines) == [
        ("c → x", [True, False]),
        ("orders-api → orders-events", [True, False]),
    ]
    other.refresh_from_db()
    assert not other.enabled


def test_update_by_the_very_field_that_is_filtered(route: TopicRoute) -> None:
    assert TopicRoute.objects.filter(topic="orders-events").update(topic="new-events") == 1
    assert told(newest()) == ("changed", {"topic": ["orders-events", "new-events"]})


def test_update_through_a_relation(consumer: Consumer) -> None:
    assert consumer.keys.update(revoked=True) == 1
    assert told(newest("consumerkey")) == ("changed", {"revoked": [False, True]})


def test_many_at_once(route: TopicRoute) -> None:
    before = count()
    TopicRoute.objects.bulk_create([TopicRoute(service_name=name, topic="t") for name in "xy"])
    assert count() == before + 2
    assert told(newest())[0] == "created"
    rows = list(TopicRoute.objects.filter(topic="t"))
    for row in rows:
        row.topic = "u"
    TopicRoute.objects.bulk_update(rows, ["topic"])
    assert told(newest()) == ("changed", {"topic": ["t", "u"]})
    assert count() == before + 4
    with pytest.raises(NotSupportedError, match="TopicRoute is watched"):
        TopicRoute.objects.bulk_create([TopicRoute(service_name="z")], ignore_conflicts=True)
    TopicRoute.objects.filter(topic="u").delete()
    assert count() == before + 6
    assert newest().action == "deleted"


def test_what_goes_with_its_consumer(consumer: Consumer) -> None:
    consumer.delete()
    assert {(line.kind, line.action) for line in TrailLine.objects.all()[:2]} == {
        ("audit_publisher.consumer", "deleted"),
        ("audit_publisher.consumerkey", "deleted"),
    }
    assert not ConsumerKey.objects.exists()


def test_capture_flags_and_their_rules() -> None:
    flags = CaptureFlags.objects.create(service_name="orders-api")
    EndpointRule.objects.create(flags=flags, pattern="/health")
    CaptureFlags.objects.filter(pk=flags.pk).update(enabled=False)
    flags.delete()
    lines = [(line.kind, line.action) for line in trail.lines()]
    assert lines[:3] == [
        ("audit_logging.captureflags", "created"),
        ("audit_logging.endpointrule", "created"),
        ("audit_logging.captureflags", "changed"),
    ]
    assert sorted(lines[3:]) == [
        ("audit_logging.captureflags", "deleted"),
        ("audit_logging.endpointrule", "deleted"),
    ]


def test_a_key_is_told_by_its_fingerprint(consumer: Consumer) -> None:
    key = consumer.keys.get()
    before = key.fingerprint
    key.public_key = (
        rsa.generate_private_key(public_exponent=65537, key_size=2048)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    key.save()
    assert newest("consumerkey").fields == {
        "public_key": [f"SHA-256 {before}", f"SHA-256 {key.fingerprint}"]
    }
    assert not TrailLine.objects.filter(fields__icontains="BEGIN PUBLIC").exists()


def test_long_values_are_cut_but_their_difference_is_seen() -> None:
    consumer = Consumer.objects.create(consumer_id="long", service_names="a" * 5000)
    consumer.service_names = "a" * 4999 + "b"
    consumer.save()
    (both,) = newest("consumer").fields.values()
    assert all(len(value) < 4200 and "(5000 characters, SHA-256 " in value for value in both)
    assert both[0] != both[1]


# -- no change without its line -----------------------------------------------------------


class TrailDown:
    """A database whose trail cannot be written."""

    def __call__(self, execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("INSERT") and "trailline" in sql:
            raise DatabaseError("the trail cannot be written")
        return execute(sql, *args)


@pytest.mark.django_db(transaction=True)
def test_a_change_whose_line_cannot_be_written_is_undone() -> None:
    route = TopicRoute.objects.create(service_name="a", topic="x")

    def everything() -> list[tuple[str, str, bool]]:
        return list(
            TopicRoute.objects.order_by("pk").values_list("service_name", "topic", "enabled")
        )

    def save() -> None:
        route.topic = "changed"
        route.save()

    was = everything()
    ways: list[Any] = [
        save,
        route.delete,
        lambda: TopicRoute.objects.update(enabled=False),
        lambda: TopicRoute.objects.filter(topic="x").delete(),
        lambda: TopicRoute.objects.create(service_name="b", topic="y"),
        lambda: TopicRoute.objects.bulk_create([TopicRoute(service_name="b", topic="y")]),
        lambda: TopicRoute.objects.get_or_create(service_name="b", defaults={"topic": "y"}),
    ]
    for number, way in enumerate(ways):
        with connection.execute_wrapper(TrailDown()), pytest.raises(DatabaseError):
            way()
        assert everything() == was, number
    assert count() == 1


def test_an_undone_change_leaves_no_line(route: TopicRoute) -> None:
    before = count()
    with transaction.atomic():
        route.delete()
        assert count() == before + 1
        transaction.set_rollback(True)
    assert count() == before


def test_lines_are_for_good(route: TopicRoute) -> None:
    line = newest()
    line.actor = "somebody else"
    for way in (
        line.save,
        line.delete,
        TrailLine.objects.all().delete,
        TrailLine.objects.filter(pk=line.pk).delete,
        lambda: TrailLine.objects.update(actor="x"),
    ):
        with pytest.raises(TypeError, match="append-only"):
            way()
    line.refresh_from_db()
    assert line.actor != "somebody else"


# -- who ----------------------------------------------------------------------------------


def test_a_command_is_named_with_who_runs_it(
    consumer: Consumer, tmp_path: Path, public_pem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key.pem"
    path.write_text(public_pem)
    monkeypatch.setattr("sys.argv", ["manage.py", "audit_key", "revoke", "--consumer=x"])
    call_command(
        "audit_key", "revoke", f"--consumer={CONSUMER}", "--key-version=1", "--reason=lost laptop"
    )
    line = newest("consumerkey")
    assert line.actor.startswith("audit_key by ")
    assert (line.reason, line.user_id, line.address) == ("lost laptop", "", "")
    assert line.fields == {"revoked": [False, True]}
    call_command(
        "audit_key",
        "add",
        "--consumer=new",
        f"--public-key={path}",
        "--service=a-api",
        stdout=StringIO(),
    )
    assert newest("consumer").action == "created"
    assert newest("consumerkey").action == "created"


def test_who_stands_behind_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert changes.process_actor().name.endswith("by root (sudo by alice)")


def test_the_admins_user_address_and_reason(root: Client, route: TopicRoute) -> None:
    url = f"{ADMIN}topicroute/{route.pk}/change/"
    assert 'name="_change_reason"' in root.get(url).content.decode()
    token = root.cookies["csrftoken"].value
    root.post(
        url,
        {
            "csrfmiddlewaretoken": token,
            "service_name": "orders-api",
            "topic": "new-events",
            "enabled": "on",
            "_change_reason": "split\r\noff",
        },
        headers={"x-forwarded-for": "203.0.113.9"},
    )
    line = newest()
    user = User.objects.get(username="root")
    assert (line.actor, line.user_id, line.address, line.forwarded, line.reason) == (
        "root",
        str(user.pk),
        "127.0.0.1",
        "203.0.113.9",
        "split  off",
    )
    assert line.fields == {"topic": ["orders-events", "new-events"]}
    # What happens after the request is not the user's.
    route.delete()
    assert newest().actor != "root"


def test_every_path_of_the_admin(root: Client, consumer: Consumer, route: TopicRoute) -> None:
    key = consumer.keys.get()
    send(root, f"{ADMIN}consumerkey/", action="revoke", _selected_action=[key.pk])
    assert told(newest("consumerkey")) == ("changed", {"revoked": [False, True]})
    send(
        root,
        f"{ADMIN}topicroute/",
        **{
            "form-TOTAL_FORMS": 1,
            "form-INITIAL_FORMS": 1,
            "form-0-id": route.pk,
            "_save": "Save",
        },
    )
    assert told(newest()) == ("changed", {"enabled": [True, False]})
    send(root, f"{ADMIN}topicroute/{route.pk}/delete/", post="yes")
    assert newest().action == "deleted"
    send(
        root,
        f"{ADMIN}consumer/",
        action="delete_selected",
        _selected_action=[consumer.pk],
        post="yes",
    )
    assert newest("consumer").action == newest("consumerkey").action == "deleted"
    assert not Consumer.objects.exists()
    assert {
        line.actor for line in TrailLine.objects.exclude(action="created")
    } == {"root"}  # fmt: skip


def test_who_may_only_look_at_keys_cannot_revoke_them(consumer: Consumer) -> None:
    key = consumer.keys.get()
    reader = person("reader", "view_consumerkey")
    url = f"{ADMIN}consumerkey/"
    assert reader.get(url).status_code == 200
    send(reader, url, action="revoke", _selected_action=[key.pk])
    key.refresh_from_db()
    assert key.state == "valid"
    send(person("editor", "change_consumerkey"), url, action="revoke", _selected_action=[key.pk])
    key.refresh_from_db()
    assert key.state == "revoked"


def test_flags_in_the_admin(root: Client) -> None:
    url = "/admin/audit_logging/captureflags/add/"
    assert 'name="_change_reason"' in root.get(url).content.decode()
    send(
        root,
        url,
        service_name="orders-api",
        enabled="on",
        sample_rate="1.0",
        _change_reason="new service",
        **{"rules-TOTAL_FORMS": 0, "rules-INITIAL_FORMS": 0},
    )
    line = TrailLine.objects.get(kind="audit_logging.captureflags")
    assert (line.actor, line.reason) == ("root", "new service")


def test_what_was_denied_is_noted_once(route: TopicRoute) -> None:
    client = person("nobody")
    assert client.get(f"{ADMIN}topicroute/{route.pk}/delete/").status_code == 403
    line = newest()
    assert (line.action, line.actor) == ("refused", "nobody")
    assert line.text == f"GET {ADMIN}topicroute/{route.pk}/delete/"


# -- reading it ---------------------------------------------------------------------------


def test_nobody_edits_the_trail_in_the_admin(root: Client, route: TopicRoute) -> None:
    line = newest()
    page = root.get(f"{TRAIL}{line.pk}/change/")
    assert page.status_code == 200
    assert 'name="_save"' not in page.content.decode()
    assert root.get(f"{TRAIL}add/").status_code == 403
    assert root.get(f"{TRAIL}{line.pk}/delete/").status_code == 403
    fields = {"actor": "x", "action": "delete_selected", "_selected_action": [line.pk], "post": "y"}
    assert send(root, f"{TRAIL}{line.pk}/change/", **fields).status_code == 403
    send(root, TRAIL, **fields)
    assert TrailLine.objects.get(pk=line.pk).actor == line.actor


def test_the_trail_is_searched(route: TopicRoute) -> None:
    assert person("nobody").get(TRAIL).status_code == 403
    reader = person("reader", "view_trailline")
    route.enabled = False
    route.save()
    for query in (
        "",
        "?q=orders-api",
        "?action__exact=changed",
        "?kind=audit_publisher.topicroute",
        f"?at__year={timezone.now().year}",
    ):
        page = reader.get(TRAIL + query)
        assert page.status_code == 200, query
        assert "enabled: yes → no" in page.content.decode(), query
    assert "enabled: yes" not in reader.get(f"{TRAIL}?q=no-such-thing").content.decode()
    page = reader.get(f"{TRAIL}{newest().pk}/change/").content.decode()
    assert '<td class="audit-value">no</td>' in page


def test_values_are_text_never_markup() -> None:
    TopicRoute.objects.create(service_name="<script>alert(1)</script>", topic="t")
    reader = person("reader", "view_trailline")
    for page in (TRAIL, f"{TRAIL}{newest().pk}/change/"):
        text = reader.get(page).content.decode()
        assert "<script>alert(1)" not in text
        assert "&lt;script&gt;alert(1)" in text


def run(*arguments: str) -> list[str]:
    out = StringIO()
    call_command("audit_trail", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_the_trail_is_exported(route: TopicRoute) -> None:
    route.enabled = False
    with changes.because("quiet\nnow"):
        route.save()
    rows = [json.loads(line) for line in run("--json")]
    assert [row["action"] for row in rows] == ["created", "changed"]
    assert rows[1]["fields"] == {"enabled": [True, False]}
    assert rows[1]["reason"] == "quiet now"
    assert set(rows[0]) == {
        "id", "at", "actor", "user_id", "address", "forwarded", "host", "action", "kind", "key",
        "text", "fields", "reason",
    }  # fmt: skip
    assert len(run("--json", f"--after={rows[0]['id']}")) == 1
    future = (timezone.now() + timedelta(minutes=1)).isoformat()
    assert run("--json", f"--since={future}") == []
    assert len(run("--since=1h")) == 2
    assert len(run("--since=2020-01-01")) == 2
    assert "enabled: True → False" in run()[1]
    with pytest.raises(CommandError, match="--since"):
        run("--since=yesterday")


def test_what_is_not_watched_is_not_told(route: TopicRoute) -> None:
    before = count()
    heard()
    User.objects.create_user("u").delete()
    assert count() == before


# -- what is long, and what a terminal would obey -------------------------------------------


def test_nothing_hides_behind_many_blank_lines(consumer: Consumer) -> None:
    hidden = "shop" + "\n" * 5000 + "*"
    Consumer.objects.update(service_names=hidden)
    after = newest("consumer").fields["service_names"][1]
    assert after.startswith("shop")
    assert after.endswith("\n*")
    assert "SHA-256" in after
    consumer.service_names = hidden
    consumer.save()
    assert consumer.service_names == "shop\n*"


def test_names_without_control_characters(consumer: Consumer, route: TopicRoute) -> None:
    consumer.name = "a\x1b[2K"
    route.service_name = "a\x1b[2K"
    for row, field in ((consumer, "name"), (route, "service_name")):
        with pytest.raises(ValidationError) as refused:
            row.full_clean()
        assert list(refused.value.message_dict) == [field]


def test_a_terminal_is_told_nothing(consumer: Consumer) -> None:
    consumer.name = "a\x1b[2Kb\x9bc\u202ed"
    consumer.save()
    out = StringIO()
    call_command("audit_trail", stdout=out)
    assert "a [2Kb c d" in out.getvalue()
    assert readable({"path": "a\x1b\x9b\u202e"}) == '{\n  "path": "a\\u001b\\u009b\\u202e"\n}'


@pytest.mark.parametrize("page", ["", "1/change/", "1/history/", "1/delete/", "add/"])
def test_who_is_kept_from_the_trail_itself_is_in_it_once(route: TopicRoute, page: str) -> None:
    line = newest()
    before = count()
    assert person("nobody").get(f"{TRAIL}{page.replace('1', str(line.pk))}").status_code == 403
    assert count() == before + 1


def test_a_list_of_names_is_bounded() -> None:
    consumer = Consumer(consumer_id="c", service_names="x\n" * 30_000)
    with pytest.raises(ValidationError, match="50,000 are allowed"):
        consumer.full_clean()


def test_the_trail_speaks_peoples_words(root: Client, consumer: Consumer) -> None:
    trail.note("looked", "audit_publisher.spool", "api-audit-events 3")
    trail.note("looked", "gone.thing", "what is no more")
    page = root.get(TRAIL).content.decode()
    kinds = re.findall(r'href="\?kind=([^"]+)">([^<]+)<', page)
    assert dict(kinds) == {
        "audit_publisher.consumer": "Consumers",
        "audit_publisher.consumerkey": "Consumer keys",
        "audit_publisher.spool": "Spool",
        "gone.thing": "Thing",
    }
    count = TrailLine.objects.count()
    assert re.search(rf"{count} changes\s*</p>", page)
    assert re.search(r"\d\d:\d\d:\d\d UTC</a>", page)
    chosen = root.get(f"{TRAIL}?kind=audit_publisher.consumer").content.decode()
    assert re.search(r"\b1 change\s*</p>", chosen)
