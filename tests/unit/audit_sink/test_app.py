"""What people and operators touch: options, checks, admin, commands, the schedule in beat."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.urls import reverse

from audit_sink.checks import check_buckets, check_options
from audit_sink.conf import SinkSettings, conf
from audit_sink.models import Batch, LakeFile, Lane, Site
from audit_sink.status import human_bytes, human_seconds

from .conftest import World

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


# -- options and checks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("BUCKET_TEMPLATE", "s3://x-{site}", "Use file:///folder or gs://bucket"),
        ("BUCKET_TEMPLATE", "gs://all", "would give all sites one bucket"),
        ("BUCKET_TEMPLATE", "gs://{country}", "placeholder that is not known"),
        ("BUCKET_TEMPLATE", "file://{site}", "Use three slashes"),
        ("FLUSH_SECONDS", "-1", "too small"),
        ("MAX_BATCH_RECORDS", "many", "not an integer"),
        ("FLUSH_SECOND", "5", "Did you mean AUDIT_SINK_FLUSH_SECONDS"),
    ],
)
def test_a_wrong_option_is_named_with_its_cure(variable: str, value: str, says: str) -> None:
    (problem,) = SinkSettings({f"AUDIT_SINK_{variable}": value}).problems()
    assert f"AUDIT_SINK_{variable}" in str(problem)
    assert says in str(problem)


def test_a_wrong_option_is_a_failed_check(settings: Any) -> None:
    settings.AUDIT_SINK = {"RETRIES": -1}
    (error,) = check_options()
    assert error.id == "audit_sink.E001"
    assert error.hint == "Use 0 or more."


def test_two_sites_in_one_bucket_are_a_warning() -> None:
    assert check_buckets(databases=["default"]) == []
    Site.objects.filter(code__in=["CA", "MX"]).update(bucket="gs://one")
    (warning,) = check_buckets(databases=["default"])
    assert warning.id == "audit_sink.W001"
    assert "CA, MX" in warning.msg


def test_every_option_has_a_meaning() -> None:
    assert all(len(option.help) > 20 for option in conf)


# -- sites --------------------------------------------------------------------------------------


def test_the_three_production_sites_are_there() -> None:
    found = Site.objects.values_list("code", "site_id", "takes_unlabelled")
    assert set(found) == {
        ("US", "1704989259133687000", True),
        ("CA", "1704989474816248000", False),
        ("MX", "1704989390144984000", False),
    }


def test_a_site_without_a_bucket_has_the_templates(settings: Any) -> None:
    settings.AUDIT_SINK = {"BUCKET_TEMPLATE": "gs://acme-audit-{site}"}
    assert Site.objects.get(code="US").bucket_url == "gs://acme-audit-us"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"code": "br"}, "capital letters"),
        ({"code": "US"}, "already exists"),
        ({"site_id": "1704989474816248000"}, "already exists"),
        ({"site_id": "1 2"}, "visible ASCII"),
        ({"bucket": "s3://x"}, "Use file:///folder or gs://bucket"),
        ({"takes_unlabelled": True}, "Another site already takes"),
    ],
)
def test_a_wrong_site_is_refused_with_a_sentence(fields: dict[str, Any], says: str) -> None:
    site = Site(**{"code": "BR", "site_id": "5555", **fields})
    with pytest.raises(ValidationError, match=says):
        site.full_clean()


@pytest.mark.parametrize("url", ["gs://one/x", "gs://one/x/", "gs://one//x"])
def test_a_bucket_of_another_site_is_refused(url: str) -> None:
    Site.objects.filter(code="CA").update(bucket="gs://one/x")
    mx = Site.objects.get(code="MX")
    mx.bucket = url
    with pytest.raises(ValidationError, match="CA has the bucket gs://one/x") as caught:
        mx.full_clean()
    assert set(caught.value.message_dict) == {"bucket"}
    mx.bucket = "gs://one/y"
    mx.full_clean()
    Site.objects.get(code="CA").full_clean()


def test_a_bucket_that_the_template_gives_another_site_is_refused() -> None:
    mx = Site.objects.get(code="MX")
    mx.bucket = Site.objects.get(code="US").bucket_url
    with pytest.raises(ValidationError, match="US has the bucket"):
        mx.full_clean()


# -- admin --------------------------------------------------------------------------------------


@pytest.fixture
def lake(world: World) -> World:
    world.publish(*(world.event() for _ in range(3)), world.event("CA"), world.event("nowhere"))
    world.ingest()
    return world


@pytest.mark.parametrize("model", ["site", "lane", "batch", "lakefile", "deadletter"])
def test_admin_pages_open(lake: World, admin_client: Any, model: str) -> None:
    page = admin_client.get(reverse(f"admin:audit_sink_{model}_changelist"))
    assert page.status_code == 200


def test_who_may_only_look_at_sites_cannot_pause_them(lake: World, client: Any) -> None:
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_site"))
    client.force_login(user)
    page = reverse("admin:audit_sink_site_changelist")
    chosen = {
        "action": "pause",
        "_selected_action": list(Site.objects.values_list("pk", flat=True)),
    }
    assert client.get(page).status_code == 200
    client.post(page, chosen)
    assert not Site.objects.filter(paused=True).exists()
    user.user_permissions.add(Permission.objects.get(codename="change_site"))
    client.post(page, chosen)
    assert not Site.objects.filter(paused=False).exists()


def test_the_ledger_can_only_be_looked_at(lake: World, admin_client: Any) -> None:
    for model, row in (("batch", Batch.objects.first()), ("lakefile", LakeFile.objects.first())):
        change = reverse(f"admin:audit_sink_{model}_change", args=[row.pk])  # type: ignore[union-attr]
        assert admin_client.get(change).status_code == 200
        assert admin_client.post(change, {"rows": 1}).status_code == 403
        assert admin_client.get(reverse(f"admin:audit_sink_{model}_add")).status_code == 403
        delete = reverse(f"admin:audit_sink_{model}_delete", args=[row.pk])  # type: ignore[union-attr]
        assert admin_client.post(delete, {"post": "yes"}).status_code == 403


def test_sites_are_paused_and_resumed(lake: World, admin_client: Any) -> None:
    us = Site.objects.get(code="US")
    Lane.objects.filter(sink="US").update(failures=9, due_at=9e9)
    pages = reverse("admin:audit_sink_site_changelist")
    admin_client.post(pages, {"action": "pause", "_selected_action": [us.pk]})
    us.refresh_from_db()
    assert us.paused
    admin_client.post(pages, {"action": "resume", "_selected_action": [us.pk]})
    us.refresh_from_db()
    assert not us.paused
    assert set(Lane.objects.filter(sink="US").values_list("failures", "due_at")) == {(0, 0)}


def test_what_is_lost_is_accepted_in_admin(lake: World, admin_client: Any) -> None:
    lanes = Lane.objects.filter(sink="US", region="primary")
    form = {"action": "accept_lost", "_selected_action": [lane.pk for lane in lanes]}
    page = admin_client.post(reverse("admin:audit_sink_lane_changelist"), form, follow=True)
    assert "0 offsets are lost" in page.content.decode()


def test_a_bucket_that_cannot_be_used_is_said_when_the_site_is_saved(
    world: World, admin_client: Any
) -> None:
    us = Site.objects.get(code="US")
    form = {"name": "x", "site_id": us.site_id, "start_from": "earliest", "takes_unlabelled": "on"}
    form["bucket"] = f"file://{world.folder}/not/there"
    page = admin_client.post(
        reverse("admin:audit_sink_site_change", args=[us.pk]), form, follow=True
    )
    assert "The bucket cannot be used yet" in page.content.decode()


def test_a_site_that_has_read_is_not_deleted(lake: World, admin_client: Any) -> None:
    us = Site.objects.get(code="US")
    delete = reverse("admin:audit_sink_site_delete", args=[us.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 403


# -- commands -----------------------------------------------------------------------------------


def test_status_shows_each_sink(lake: World) -> None:
    lake.publish(lake.event("MX"))
    found = {one["sink"]: one for one in json.loads(run("audit_status", "--json"))["sinks"]}
    assert found["US"]["rows"] == 3
    assert found["US"]["files"] == 1
    assert found["US"]["bytes"] > 0
    assert found["US"]["newest"].startswith("2027-01-15T")
    assert found["US"]["lag"] == found["MX"]["lag"] == 1
    assert found["unroutable"]["dead_letters"] == 1
    text = run("audit_status")
    for word in ("US", "CA", "MX", "unroutable", "newest row", "dead letters"):
        assert word in text


def test_status_shows_what_waits_for_a_paused_site(world: World) -> None:
    Site.objects.filter(code="US").update(paused=True)
    world.publish(*(world.event() for _ in range(7)))
    found = {one["sink"]: one for one in json.loads(run("audit_status", "--json"))["sinks"]}
    assert (found["US"]["paused"], found["US"]["lag"]) == (True, 7)


def test_status_shows_what_is_wrong(lake: World) -> None:
    Site.objects.filter(code="CA").update(paused=True)
    Site.objects.filter(code="US").update(last_error="the bucket is gone")
    text = run("audit_status")
    assert "paused" in text
    assert "failing: the bucket is gone" in text


def test_a_run_in_the_foreground(world: World) -> None:
    world.publish(*(world.event() for _ in range(3)))
    assert "3 rows stored in 4 batches." in run("audit_sink_run")
    Site.objects.filter(code="US").update(bucket=f"file://{world.folder}/not/there")
    world.publish(world.event())
    with pytest.raises(CommandError, match="correct the site's bucket URL"):
        run("audit_sink_run")


def test_verification_says_ok_or_what_is_wrong(lake: World) -> None:
    assert "all is well" in run("audit_verify")
    assert json.loads(run("audit_verify", "--json", "--quick"))["ok"] is True
    next((lake.folder / "sink").rglob("*.parquet")).unlink()
    out = io.StringIO()
    with pytest.raises(SystemExit) as caught:
        call_command("audit_verify", "--json", stdout=out)
    assert caught.value.code == 1
    found = json.loads(out.getvalue())
    assert found["ok"] is False
    assert found["problems"][0]["kind"] == "missing"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e15, "3,000.0 TB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("age", "text"), [(None, "-"), (3, "3 s"), (600, "10 min"), (9000, "2 h"), (9e5, "10 days")]
)
def test_ages_for_people(age: float | None, text: str) -> None:
    assert human_seconds(age) == text


# -- beat ---------------------------------------------------------------------------------------


def test_the_schedule_is_made_once_and_an_edited_one_is_left_alone() -> None:
    from django_celery_beat.models import PeriodicTask

    from audit_sink.beat import make_schedule

    entry = PeriodicTask.objects.get(task="audit_sink.schedule")
    assert (entry.interval.every, entry.interval.period) == (1, "seconds")
    assert PeriodicTask.objects.filter(task="audit_sink.prune").count() == 1
    entry.name, entry.enabled = "renamed", False
    entry.save()
    make_schedule()
    entry = PeriodicTask.objects.get(task="audit_sink.schedule")
    assert (entry.name, entry.enabled) == ("renamed", False)


# -- failpoints ---------------------------------------------------------------------------------


def test_failpoints_do_nothing_unless_armed(monkeypatch: pytest.MonkeyPatch) -> None:
    from audit_sink import failpoints

    failpoints.failpoint("after_claim")
    with failpoints.armed("after_claim"), pytest.raises(failpoints.FailpointReached):
        failpoints.failpoint("after_claim")
    failpoints.failpoint("after_claim")
    passes: list[int] = []
    with failpoints.armed("after_claim", lambda: passes.append(1)):
        failpoints.failpoint("after_claim")
        failpoints.failpoint("after_read")
    assert passes == [1]
    with pytest.raises(ValueError, match="is no failpoint"), failpoints.armed("never"):
        pass


def test_nothing_heavy_is_imported_at_start(tmp_path: Any) -> None:
    import os
    import subprocess
    import sys

    code = (
        "import sys, django; django.setup();"
        "import audit_sink.admin, audit_sink.tasks, audit_sink.ingest.schedule;"
        "heavy = {'pyarrow', 'duckdb', 'pyruhvro', 'confluent_kafka', 'google.cloud.storage'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"}
    env["AUDIT_DATA_DIR"] = str(tmp_path)
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert out.stdout.strip() == b"[]"
