"""The bucket's contract, held by each backend, and what is particular to one of them."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from audit_sink.conf import bucket_key, check_bucket_url
from audit_sink.exceptions import BucketMissing, BucketRefused, BucketUnavailable
from audit_sink.lake.storage import Bucket, get_bucket, open_bucket

from .bucket import LARGE, NAME, BucketContract


class TestFolder(BucketContract):
    @pytest.fixture
    def bucket(self, tmp_path: Path) -> Bucket:
        return open_bucket(f"file://{tmp_path}/bucket")

    @pytest.fixture
    def missing(self, tmp_path: Path) -> Bucket:
        return open_bucket(f"file://{tmp_path}/no/such/mount")

    def test_a_folder_that_it_makes_is_private_and_one_that_was_there_keeps_its_mode(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        bucket.create("events/x", b"x")
        assert (tmp_path / "bucket").stat().st_mode & 0o777 == 0o700
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o750)
        open_bucket(f"file://{shared}").create("events/x", b"x")
        assert shared.stat().st_mode & 0o777 == 0o750

    def test_half_written_files_never_lie_among_the_events(
        self, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []
        fsync = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: (seen.append(list(bucket.list())), fsync(descriptor))
        )
        bucket.create(NAME, b"data")
        assert seen[0] == []
        assert seen[-1] == [NAME]
        assert list((tmp_path / "bucket" / "_temporary").iterdir()) == []

    def test_every_new_folder_is_synced_and_a_known_one_not_again(
        self, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, synced = tmp_path / "bucket", []

        def fsync(descriptor: int) -> None:
            inode = os.fstat(descriptor).st_ino
            for path in (root, *root.rglob("*")):
                if path.is_dir() and path.stat().st_ino == inode:
                    synced.append(path.relative_to(root).as_posix())

        def created(name: str) -> list[str]:
            synced.clear()
            assert bucket.create(name, b"data") is True
            return synced.copy()

        monkeypatch.setattr(os, "fsync", fsync)
        assert created("events/a/b/1") == ["events/a/b", "events/a", "events", "."]
        assert created("events/a/b/2") == ["events/a/b"]
        assert created("events/a/c/1") == ["events/a/c", "events/a", "events", "."]
        # Made by a writer that may have died before its sync.
        (root / "events/d").mkdir()
        assert created("events/d/1") == ["events/d", "events", "."]
        # Gone, and made anew: what was known of it counts no more.
        shutil.rmtree(root / "events/a")
        assert created("events/a/b/3") == ["events/a/b", "events/a", "events", "."]
        # Created by another, who may not have synced: equal bytes are success when durable.
        synced.clear()
        assert bucket.create("events/a/b/3", b"data") is False
        assert synced == ["events/a/b"]

    def test_what_a_killed_writer_left_is_removed_when_it_is_old(
        self, bucket: Bucket, tmp_path: Path
    ) -> None:
        temporary = tmp_path / "bucket/_temporary"
        temporary.mkdir(parents=True)
        for name, age in (("old", 90_000), ("new", 1_000)):
            (temporary / name).write_bytes(b"half")
            os.utime(temporary / name, (time.time() - age,) * 2)
        bucket.create(NAME, b"data")
        assert [path.name for path in temporary.iterdir()] == ["new"]

    def test_a_name_cannot_leave_the_bucket(self, bucket: Bucket) -> None:
        for name in ("../outside", "events/../../outside", "/etc/outside"):
            with pytest.raises(ValueError, match="leave the bucket"):
                bucket.create(name, b"data")

    def test_a_folder_that_cannot_be_written_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "bucket").write_text("a file, not a folder")
        with pytest.raises(BucketUnavailable, match="bucket"):
            open_bucket(f"file://{tmp_path}/bucket").create(NAME, b"data")


@pytest.mark.services
class TestGcs(BucketContract):
    @pytest.fixture(autouse=True)
    def emulator(self, gcs_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)

    @pytest.fixture
    def bucket(self, gcs_server: Any) -> Bucket:
        name = f"contract-{uuid.uuid4().hex}"
        gcs_server.create_bucket(name)
        return open_bucket(f"gs://{name}")

    @pytest.fixture
    def missing(self) -> Bucket:
        return open_bucket(f"gs://missing-{uuid.uuid4().hex}")


class TestGcsBelowAPrefix(TestGcs):
    @pytest.fixture
    def bucket(self, gcs_server: Any) -> Bucket:
        name = f"contract-{uuid.uuid4().hex}"
        gcs_server.create_bucket(name).blob("other/events/x").upload_from_string(b"not ours")
        return open_bucket(f"gs://{name}/audit/us")


class TestFolderByStorages(TestFolder):
    """The same folders, by the name of an entry of STORAGES."""

    @pytest.fixture
    def bucket(self, tmp_path: Path, settings: Any) -> Bucket:
        settings.STORAGES = entry(FOLDER, location=str(tmp_path))
        return open_bucket("storages://lake/bucket")

    @pytest.fixture
    def missing(self, tmp_path: Path, settings: Any) -> Bucket:
        settings.STORAGES = entry(FOLDER, location=str(tmp_path / "no/such/mount"))
        return open_bucket("storages://lake")


class TestGcsByStorages(TestGcs):
    """django-storages says where; objects are created once for each name all the same."""

    @pytest.fixture
    def bucket(self, gcs_server: Any, settings: Any) -> Bucket:
        name = f"contract-{uuid.uuid4().hex}"
        gcs_server.create_bucket(name).blob("other/events/x").upload_from_string(b"not ours")
        settings.STORAGES = entry(GOOGLE, bucket_name=name, location="audit", file_overwrite=True)
        return open_bucket("storages://lake/us")

    @pytest.fixture
    def missing(self, settings: Any) -> Bucket:
        settings.STORAGES = entry(GOOGLE, bucket_name=f"missing-{uuid.uuid4().hex}")
        return open_bucket("storages://lake")

    def test_objects_lie_at_the_location_and_get_its_parameters(
        self, gcs_server: Any, settings: Any
    ) -> None:
        name = f"contract-{uuid.uuid4().hex}"
        there = gcs_server.create_bucket(name)
        settings.GS_BUCKET_NAME, settings.GS_LOCATION = name, "company"
        settings.GS_BLOB_CHUNK_SIZE = 256 << 10
        parameters = {"cache_control": "no-store", "content_encoding": "gzip"}
        settings.STORAGES = entry(GOOGLE, object_parameters=parameters, gzip=True)
        bucket = open_bucket("storages://lake/us")
        assert bucket.create("events/x", b"data") is True
        assert bucket.create("events/large", LARGE) is True
        assert [blob.name for blob in there.list_blobs()] == [
            "company/us/events/large",
            "company/us/events/x",
        ]
        blob = there.get_blob("company/us/events/x")
        assert (blob.cache_control, blob.content_encoding) == ("no-store", None)
        assert bucket.read("events/large") == LARGE


FOLDER = "django.core.files.storage.FileSystemStorage"
GOOGLE = "storages.backends.gcloud.GoogleCloudStorage"


def entry(backend: str, **options: Any) -> dict[str, Any]:
    return {"lake": {"BACKEND": backend, "OPTIONS": options}}


def test_settings_of_django_storages_say_as_whom_a_bucket_is_used(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.oauth2.credentials import Credentials

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    general, particular = Credentials("general"), Credentials("particular")
    settings.GS_CREDENTIALS, settings.GS_PROJECT_ID = general, "company"
    options = {"credentials": particular, "project_id": "other", "bucket_name": "b"}
    settings.STORAGES = entry(GOOGLE, **options)
    for url, credentials, project in (
        ("gs://b/us", general, "company"),
        ("storages://lake/us", particular, "other"),
    ):
        bucket: Any = open_bucket(url)
        assert bucket._client._credentials.token == credentials.token
        assert bucket._client.project == project
        assert (bucket.bucket_name, bucket.prefix) == ("b", "us/")
        # Readers come as the same.
        filesystem, prefix = bucket.arrow()
        assert prefix == "b/us/"
        assert bucket._token(credentials)["access_token"] == credentials.token
        assert filesystem.type_name == "gcs"


def test_no_credentials_is_a_refusal_that_names_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(BucketRefused, match=r"GS_CREDENTIALS.*nothing\.json"):
        open_bucket("gs://somebody")


@pytest.mark.parametrize(
    ("url", "backend", "options", "cure"),
    [
        ("storages://nothing", FOLDER, {}, "no entry 'nothing'"),
        ("storages://lake", GOOGLE, {}, "names no bucket"),
        ("storages://lake", GOOGLE, {"bucket_name": "b", "x": 1}, "Invalid setting"),
        ("storages://lake", "no.such.Storage", {}, "cannot be used"),
        ("storages://lake", "django.core.files.storage.InMemoryStorage", {}, "once for each name"),
    ],
)
def test_an_entry_that_cannot_hold_a_lake_is_refused(
    url: str, backend: str, options: dict[str, Any], cure: str, settings: Any
) -> None:
    settings.STORAGES = entry(backend, **options)
    with pytest.raises(BucketMissing, match=cure):
        open_bucket(url)


def test_an_entry_and_an_address_of_one_place_are_one(settings: Any, tmp_path: Path) -> None:
    settings.STORAGES = {
        **entry(GOOGLE, bucket_name="b", location="audit/"),
        "disk": {"BACKEND": FOLDER, "OPTIONS": {"location": str(tmp_path)}},
    }
    assert bucket_key("storages://lake/us") == bucket_key("gs://b/audit/us")
    assert bucket_key("storages://disk") == bucket_key(f"file://{tmp_path}/")
    assert bucket_key("storages://nothing") == "storages://nothing"
    check_bucket_url("storages://disk/us")
    with pytest.raises(ValueError, match="no entry 'nothing'"):
        check_bucket_url("storages://nothing")


def test_a_bucket_is_opened_once_in_a_process(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    assert get_bucket(url) is get_bucket(url)


@pytest.mark.parametrize("url", ["s3://bucket", "bucket", ""])
def test_an_address_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(BucketMissing, match="Use file:///folder or gs://bucket"):
        open_bucket(url)
