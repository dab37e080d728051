"""Records that go from one stream of a queue to another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from audit_logging.spool import DurableQueue, Record
from audit_logging.spool_looks import heads
from audit_logging.spool_moves import move


@pytest.fixture
def queue(tmp_path: Path) -> DurableQueue:
    return DurableQueue(tmp_path / "queue.sqlite3")


def add(queue: DurableQueue, stream: str, *values: bytes) -> None:
    queue.append(stream, [Record(value, key=b"k", timestamp=7) for value in values])


def values(queue: DurableQueue, stream: str) -> list[bytes]:
    return [record.value for record in queue.read(stream, 0)]


def test_moved_records_keep_what_they_are_and_take_new_headers(queue: DurableQueue) -> None:
    add(queue, "a", b"1", b"2", b"3")
    add(queue, "b", b"0")
    first, _, third = queue.read("a", 0)
    told = [replace(record, headers=(("why", b"bad"),)) for record in (first, third)]
    assert move(queue, "a", "b", told) == 2
    assert values(queue, "a") == [b"2"]
    kept = queue.read("b", 0)
    assert [(each.offset, each.value, each.key) for each in kept] == [
        (0, b"0", b"k"),
        (1, b"1", b"k"),
        (2, b"3", b"k"),
    ]
    assert kept[1].headers == (("why", b"bad"),)
    assert kept[1].timestamp == 7
    for stream in ("a", "b"):
        stats = queue.stats(stream)
        records = queue.read(stream, 0)
        assert (stats.records, stats.bytes) == (len(records), sum(each.size for each in records))


def test_records_are_moved_without_reading_what_they_carry(queue: DurableQueue) -> None:
    add(queue, "a", b"x" * 1000, b"y")
    found = [record for record, _ in heads(queue, "a", 0, 2)]
    assert [record.value for record in found] == [b"", b""]
    assert move(queue, "a", "b", [replace(found[0], headers=(("why", b"bad"),)), found[1]]) == 2
    records = queue.read("b", 0)
    assert [record.value for record in records] == [b"x" * 1000, b"y"]
    assert records[0].headers == (("why", b"bad"),)
    assert [size for _, size in heads(queue, "b", 0, 2)] == [each.size for each in records]
    assert queue.stats("b").bytes == queue.used_bytes() == sum(each.size for each in records)


def test_what_is_gone_already_is_not_moved_twice(queue: DurableQueue) -> None:
    add(queue, "a", b"1", b"2")
    records = queue.read("a", 0)
    assert move(queue, "a", "b", records) == 2
    assert move(queue, "a", "b", records) == 0
    assert values(queue, "b") == [b"1", b"2"]
    # Offsets are never given twice.
    add(queue, "a", b"3")
    assert queue.read("a", 0)[0].offset == 2


def test_a_full_queue_can_still_move(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "queue.sqlite3", max_bytes=100)
    queue.append("a", [Record(b"x" * 60)])
    (record,) = queue.read("a", 0)
    assert move(queue, "a", "b", [replace(record, headers=(("why", b"y" * 40),))]) == 1
    assert values(queue, "b") == [b"x" * 60]
