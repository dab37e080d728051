"""A bucket that does not let us in: loud at once, never poison, and well again by itself."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_sink.exceptions import BucketMissing, BucketRefused, BucketUnavailable
from audit_sink.ingest.failures import record_failure
from audit_sink.lake.ledger import ledger_problems
from audit_sink.lake.storage import open_bucket
from audit_sink.metrics import STALLED
from audit_sink.models import Batch, DeadLetter, Lane, Site
from audit_sink.status import sink_statuses
from tests.services.errors import Unavailable
from tests.services.fixtures import give_up

from .conftest import World

NAME = "events/service=a/date=2026-01-02/endpoint=b/t-primary-0-0-10.parquet"


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(folder)):
        give_up(Unavailable("a small file system", "mount is not permitted", "run as root"))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_is_waited_for_and_leaves_no_rest(disk: Path) -> None:
    bucket = open_bucket(f"file://{disk}/bucket")
    bucket.create("events/first", b"x")
    for _ in range(3):
        with pytest.raises(BucketUnavailable, match=r"No space left.*Make room"):
            bucket.create(NAME, b"x" * (2 << 20))
    assert list(bucket.list()) == ["events/first"]
    assert list((disk / "bucket/_temporary").iterdir()) == []
    assert _mount("-o", "remount,size=8m", str(disk))
    assert bucket.create(NAME, b"x" * (2 << 20)) is True


def test_a_disk_that_cannot_be_written_is_a_refusal(disk: Path) -> None:
    bucket = open_bucket(f"file://{disk}/bucket")
    bucket.create(NAME, b"x")
    assert _mount("-o", "remount,ro", str(disk))
    for call in (lambda: bucket.create("events/other", b"x"), bucket.probe):
        with pytest.raises(BucketRefused, match=r"Read-only.*Mount it"):
            call()
    assert bucket.read(NAME) == b"x"
    assert _mount("-o", "remount,rw", str(disk))
    assert bucket.create("events/other", b"x") is True


def test_a_mount_that_is_gone_is_missing_not_made(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    bucket = open_bucket(f"file://{mount}/bucket")
    mount.mkdir()
    bucket.create(NAME, b"x")
    mount.rename(tmp_path / "elsewhere")
    for call in (lambda: bucket.create("events/other", b"x"), bucket.probe):
        with pytest.raises(BucketMissing, match="correct the site's bucket URL"):
            call()
    assert not mount.exists()


def test_a_bucket_that_refuses_stalls_its_lane_at_once_and_is_tried_again(
    world: World, us: Site, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    us.bucket = f"file://{disk}/bucket"
    us.save()
    world.publish(world.event("US"), world.event("CA"))
    assert _mount("-o", "remount,ro", str(disk))
    with caplog.at_level(logging.WARNING, "audit_sink"):
        world.ingest()
    (record,) = [one for one in caplog.records if "Read-only" in one.getMessage()]
    assert record.levelno == logging.ERROR
    assert "Nothing is lost" in record.getMessage()
    lane = world.lane("US")
    assert lane.due_at == world.clock.now + 60
    assert STALLED.labels(*lane.key)._value.get() == 1
    us.refresh_from_db()
    assert "Mount it so that it can be written" in us.last_error
    (status,) = (one for one in sink_statuses(clock=world.clock) if one.sink == "US")
    assert status.stalled_lanes == 1
    assert len(world.ids("CA")) == 1
    assert DeadLetter.objects.count() == len(world.letters()) == 0
    # Access is back.
    assert _mount("-o", "remount,rw", str(disk))
    world.clock.advance(60)
    world.ingest()
    assert len(world.ids("US")) == 1
    assert world.lane("US").failures == 0
    us.refresh_from_db()
    assert us.last_error == ""
    assert STALLED.labels(*lane.key)._value.get() == 0
    assert Batch.objects.filter(state="claimed").count() == 0
    assert ledger_problems() == []


@pytest.mark.django_db
def test_a_refusal_counts_as_more_failures_than_are_tolerated() -> None:
    lane = Lane.objects.create(sink="US", region="r", topic="t", partition=0, start_offset=0)
    record_failure(lane, BucketUnavailable("away"), lambda: 0.0)
    lane.refresh_from_db()
    assert (lane.failures, lane.due_at) == (1, 5)
    record_failure(lane, BucketRefused("no"), lambda: 0.0)
    lane.refresh_from_db()
    assert (lane.failures, lane.due_at) == (6, 60)
    record_failure(lane, BucketRefused("no"), lambda: 0.0)
    lane.refresh_from_db()
    assert lane.failures == 7
