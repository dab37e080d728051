"""A queue on a full disk can be emptied: whoever filled it, and whatever the log holds."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from audit_logging import reserve
from audit_logging.exceptions import SpoolUnavailable
from audit_logging.spool import DurableQueue, Record
from tests.services.errors import Unavailable
from tests.services.fixtures import give_up


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        give_up(Unavailable("a small file system", "mount is not permitted", "run as root"))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(queue: DurableQueue, size: int) -> list[bytes]:
    """Append until the disk takes no more; return what is kept."""
    kept = []
    for number in range(100_000):
        value = number.to_bytes(4, "big") + random.Random(number).randbytes(size)
        try:
            queue.append("s", [Record(value)])
        except SpoolUnavailable:
            return kept
        kept.append(value)
    raise AssertionError("the disk is never full")


def take_the_rest(disk: Path, name: str = "ballast") -> None:
    """Another program, which takes the last byte."""
    with (disk / name).open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    assert shutil.disk_usage(disk).free < 4096


def replay(queue: DurableQueue, many: int = 1) -> list[bytes]:
    values = []
    while records := queue.lease("s", seconds=60, owner="me", max_records=many):
        values += [record.value for record in records]
        assert queue.settle("s", records) == len(records)
    return values


@pytest.mark.parametrize("size", [100, 5_000, 300_000])
@pytest.mark.parametrize("ballast", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_queue_that_filled_its_disk_is_replayed_to_the_last_record(
    disk: Path, size: int, ballast: bool, restarted: bool
) -> None:
    queue = DurableQueue(disk / "q.sqlite3")
    kept = fill(queue, size)
    assert len(kept) > 5
    if ballast:
        take_the_rest(disk)
    if restarted:
        queue.close()
        queue = DurableQueue(disk / "q.sqlite3")
    assert replay(queue, 50 if size == 100 else 1) == kept
    # What was freed is there for those who come.
    queue.append("s", [Record(b"new")])
    assert replay(queue) == [b"new"]


def test_others_that_take_all_that_is_freed_stop_no_replay(disk: Path) -> None:
    queue = DurableQueue(disk / "q.sqlite3")
    kept = fill(queue, 20_000)
    values = []
    for _ in kept:
        take_the_rest(disk)
        (record,) = queue.lease("s", seconds=60, owner="me", max_records=1)
        take_the_rest(disk)
        assert queue.settle("s", [record]) == 1
        values.append(record.value)
    assert values == kept


def test_records_are_released_and_trimmed_there_too(disk: Path) -> None:
    queue = DurableQueue(disk / "q.sqlite3")
    kept = fill(queue, 5_000)
    take_the_rest(disk)
    records = queue.lease("s", seconds=60, owner="me", max_records=len(kept))
    queue.release("s", records)
    assert queue.trim("s", len(kept)) == len(kept)
    assert queue.stats("s").records == 0


def test_the_reserve_is_private_and_as_large_as_the_log(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite3"
    queue = DurableQueue(path)
    queue.append("s", [Record(b"x" * 500_000)])
    status = (tmp_path / "q.sqlite3-reserve").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    log = (tmp_path / "q.sqlite3-wal").stat().st_size
    assert log <= status.st_size <= log + 3 * reserve.SLACK
    assert status.st_blocks * 512 >= status.st_size


def test_a_file_system_that_cannot_keep_room_stops_no_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    queue = DurableQueue(tmp_path / "q.sqlite3")
    queue.append("s", [Record(b"x")])
    assert replay(queue) == [b"x"]
