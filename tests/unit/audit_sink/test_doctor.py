"""What audit_doctor examines of the sink: the buckets of its sites, above all."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from audit_logging.doctor.examinations import Asked, Finding
from audit_publisher import eventlog
from audit_sink import doctor
from audit_sink.lake.folder import FolderBucket
from audit_sink.lake.storage import open_bucket
from audit_sink.models import Site

pytestmark = pytest.mark.django_db


def ask(function: Any) -> list[Finding]:
    return list(function(Asked()))


def of_site(code: str) -> Finding:
    (finding,) = [each for each in ask(doctor.buckets) if each.message.startswith(code)]
    return finding


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """One site, whose bucket is a folder that is not there yet."""
    Site.objects.exclude(code="CA").delete()
    found = Site.objects.get(code="CA")
    found.bucket = f"file://{tmp_path}/bucket"
    found.save()
    return found


def test_a_bucket_that_works_twice(site: Site, tmp_path: Path) -> None:
    assert of_site("CA").level == "ok"
    assert of_site("CA").level == "ok"
    # One small object, beside the events, that is never changed.
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")]
    assert names == [f"bucket/{doctor.MARKER}"]


def test_a_bucket_whose_mount_is_missing(site: Site, tmp_path: Path) -> None:
    site.bucket = f"file://{tmp_path}/no/such/mount"
    site.save()
    finding = of_site("CA")
    assert finding.level == "FAIL"
    assert f"{tmp_path}/no/such" in finding.message
    assert "bucket URL" in finding.cure


def test_a_paused_site_says_so(site: Site) -> None:
    site.paused = True
    site.save()
    assert of_site("CA").message.startswith("CA (paused): ")


def test_a_marker_that_somebody_else_made(site: Site) -> None:
    open_bucket(site.bucket_url).create(doctor.MARKER, b"mine")
    assert (of_site("CA").level, doctor.MARKER in of_site("CA").message) == ("FAIL", True)


def test_a_store_that_lets_names_be_written_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: FolderBucket, name: str, data: bytes) -> bool:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True

    monkeypatch.setattr(FolderBucket, "create", overwrite)
    finding = of_site("CA")
    assert finding.level == "FAIL"
    assert "written twice" in finding.message


def test_sites_that_share_a_bucket_and_none_at_all(site: Site) -> None:
    Site.objects.create(code="XX", site_id="1", bucket=site.bucket)
    assert ask(doctor.buckets)[0].id == "audit_sink.W001"
    Site.objects.all().delete()
    (finding,) = ask(doctor.buckets)
    assert (finding.level, finding.message) == ("FAIL", "There is no site.")


def test_what_can_come_twice_is_remembered_as_long(settings: Any, tmp_path: Path) -> None:
    settings.AUDIT_PUBLISHER = {"DATA_DIR": tmp_path, "LOCAL_RETENTION_HOURS": 40 * 24}
    settings.AUDIT_SINK = {"DEDUP_DAYS": 30}
    (finding,) = ask(doctor.retention)
    assert (finding.level, finding.cure) == ("warning", "Set AUDIT_SINK_DEDUP_DAYS to 41.")
    settings.AUDIT_SINK = {"DEDUP_DAYS": 41}
    assert ask(doctor.retention) == []
    eventlog.close_regions()


def test_the_project_s_broker(tmp_path: Path) -> None:
    with override_settings(CELERY_BROKER_URL=f"durable://{tmp_path}/broker.sqlite3"):
        assert [each.level for each in ask(doctor.sink_broker)] == ["ok"]
        assert ask(doctor.sink_queue)[0].message == "celery: not made yet"
    with override_settings(CELERY_BROKER_URL=""):
        assert ask(doctor.sink_broker) == ask(doctor.sink_queue) == []


def test_a_real_bucket(site: Site, gcs_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    site.bucket = f"gs://{name}"
    site.save()
    assert of_site("CA").level == "FAIL"
    assert f"no bucket '{name}'" in of_site("CA").message
    gcs_server.create_bucket(name)
    assert of_site("CA").level == "ok", of_site("CA")
    assert of_site("CA").level == "ok"
