"""The bucket's contract, held by each backend, and what is particular to one of them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from audit_sink.exceptions import BucketMissing, BucketUnavailable
from audit_sink.lake.storage import Bucket, get_bucket, open_bucket

from .bucket import NAME, BucketContract


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


def test_a_bucket_is_opened_once_in_a_process(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    assert get_bucket(url) is get_bucket(url)


@pytest.mark.parametrize("url", ["s3://bucket", "bucket", ""])
def test_an_address_of_no_known_kind_is_refused(url: str) -> None:
    with pytest.raises(BucketMissing, match="Use file:///folder or gs://bucket"):
        open_bucket(url)
