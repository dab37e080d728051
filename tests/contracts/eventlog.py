"""What every event log backend must do. Inherit `EventLogContract` and give it `open_log`."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from audit_publisher.eventlog.base import EventLog, Limits, Receipt, Record
from audit_publisher.exceptions import OffsetOutOfRange, RecordTooLarge, UnknownTopic
from tests.support import fork

PARTITIONS = 3
MAX_RECORD_BYTES = 200_000
WAIT = Limits(timeout=5)
NOW = 1_790_000_000_000_000  # whole milliseconds: Kafka keeps no more

OpenLog = Callable[[], EventLog]


def records(count: int, key: bytes | None = b"inventory-api/iac", start: int = 0) -> list[Record]:
    """Records whose values tell them apart."""
    return [Record(str(start + n).encode(), key=key, timestamp=NOW) for n in range(count)]


def errors(receipts: list[Receipt]) -> list[object]:
    """Why records were not taken: an assertion that this is empty explains its failure."""
    return [receipt.error for receipt in receipts if receipt.error is not None]


def read_all(log: EventLog, topic: str, limits: Limits = WAIT) -> dict[int, list]:
    """Everything in a topic, by partition."""
    found: dict[int, list] = {}
    for partition in range(log.partitions(topic)):
        position, high = log.watermarks(topic, partition)
        while position < high:
            part = log.read(topic, partition, position, limits)
            assert part, f"{topic}/{partition} gave nothing at {position} of {high}"
            found.setdefault(partition, []).extend(part)
            position = part[-1].offset + 1
    return found


class EventLogContract:
    """The suite. Each test has a topic of its own."""

    @pytest.fixture
    def open_log(self) -> Iterator[OpenLog]:
        """A function that opens the same log anew, with MAX_RECORD_BYTES; override it."""
        raise NotImplementedError

    @pytest.fixture
    def log(self, open_log: OpenLog) -> Iterator[EventLog]:
        log = open_log()
        yield log
        log.close()

    @pytest.fixture
    def topic(self, log: EventLog) -> str:
        name = f"contract-{uuid.uuid4().hex[:12]}"
        log.ensure_topic(name, PARTITIONS)
        return name

    # -- topics ---------------------------------------------------------------------------

    def test_a_topic_has_the_partitions_it_was_made_with(self, log: EventLog, topic: str) -> None:
        assert log.partitions(topic) == PARTITIONS
        log.ensure_topic(topic, PARTITIONS + 4)
        assert log.partitions(topic) == PARTITIONS

    def test_an_unknown_topic_is_named(self, log: EventLog) -> None:
        with pytest.raises(UnknownTopic, match="no-such-topic"):
            log.partitions("no-such-topic")
        with pytest.raises(UnknownTopic, match="no-such-topic"):
            log.largest_record("no-such-topic")
        receipts = log.append("no-such-topic", records(2))
        assert [type(receipt.error) for receipt in receipts] == [UnknownTopic, UnknownTopic]
        assert [receipt.offset for receipt in receipts] == [-1, -1]

    # -- writing --------------------------------------------------------------------------

    def test_one_key_keeps_its_order_in_one_partition(self, log: EventLog, topic: str) -> None:
        receipts = log.append(topic, records(50)) + log.append(topic, records(50, start=50))
        assert errors(receipts) == []
        assert len({receipt.partition for receipt in receipts}) == 1
        assert [receipt.offset for receipt in receipts] == list(range(100))
        (found,) = read_all(log, topic).values()
        assert [int(record.value) for record in found] == list(range(100))

    def test_a_receipt_says_where_its_record_is(self, log: EventLog, topic: str) -> None:
        mixed = [Record(str(n).encode(), key=f"key-{n % 7}".encode()) for n in range(60)]
        receipts = log.append(topic, mixed)
        assert errors(receipts) == []
        found = read_all(log, topic)
        assert len(found) > 1
        for record, receipt in zip(mixed, receipts, strict=True):
            stored = found[receipt.partition][receipt.offset]
            assert (stored.value, stored.key) == (record.value, record.key)

    def test_keys_go_where_java_clients_send_them(self, log: EventLog, topic: str) -> None:
        # murmur2: (hash & 0x7fffffff) % partitions, with the hashes of Kafka's own tests.
        hashes = {b"21": -973932308, b"foobar": -790332482, b"abc": 479470107}
        for key, value in hashes.items():
            (receipt,) = log.append(topic, [Record(b"x", key=key)])
            assert errors([receipt]) == []
            assert receipt.partition == (value & 0x7FFFFFFF) % PARTITIONS

    def test_a_record_without_a_key_is_taken(self, log: EventLog, topic: str) -> None:
        (receipt,) = log.append(topic, records(1, key=None))
        assert errors([receipt]) == []
        assert log.read(topic, receipt.partition, 0, WAIT)[0].key is None

    def test_nothing_to_append(self, log: EventLog, topic: str) -> None:
        assert log.append(topic, []) == []

    def test_headers_are_bytes_of_any_quality(self, log: EventLog, topic: str) -> None:
        headers = (
            ("wm-site-id", b"1704989259133687000"),
            ("wm-site-id", b"\xff\x00\xfe"),
            ("empty", b""),
            ("nothing", None),
            ("wm_consumer.id", "Überraschung".encode()),
        )
        (receipt,) = log.append(topic, [Record(b"value", headers=headers)])
        assert errors([receipt]) == []
        (stored,) = log.read(topic, receipt.partition, 0, WAIT)
        assert stored.headers == headers

    def test_values_are_bytes(self, log: EventLog, topic: str) -> None:
        value = bytes(range(256)) * 10
        (receipt,) = log.append(topic, [Record(value, key=b"\x00\xff")])
        assert errors([receipt]) == []
        (stored,) = log.read(topic, receipt.partition, 0, WAIT)
        assert (stored.value, stored.key) == (value, b"\x00\xff")

    def test_too_large_is_that_records_fate_alone(self, log: EventLog, topic: str) -> None:
        large = Record(b"x" * (MAX_RECORD_BYTES + 1), key=b"k")
        before, refused, after = log.append(topic, [Record(b"1", b"k"), large, Record(b"2", b"k")])
        assert errors([before, after]) == []
        assert isinstance(refused.error, RecordTooLarge)
        (found,) = read_all(log, topic).values()
        assert [record.value for record in found] == [b"1", b"2"]

    def test_the_largest_record_is_told(self, log: EventLog, topic: str) -> None:
        largest = log.largest_record(topic)
        assert largest == MAX_RECORD_BYTES
        (receipt,) = log.append(topic, [Record(b"x" * (largest - 100))])
        assert errors([receipt]) == []

    def test_topics_are_described_without_being_made(self, log: EventLog, topic: str) -> None:
        found = log.describe([topic, "no-such-topic"])
        facts = found[topic]
        assert facts is not None
        assert facts.partitions == PARTITIONS
        assert facts.largest_batch is not None
        assert facts.largest_batch >= MAX_RECORD_BYTES
        assert facts.retention is None or facts.retention > 0
        assert found["no-such-topic"] is None
        assert log.missing(["no-such-topic"]) == ["no-such-topic"]

    def test_a_log_is_told_from_every_other_one(self, open_log: OpenLog, log: EventLog) -> None:
        other = open_log()
        assert log.identity() == other.identity() != ""
        other.close()

    def test_what_has_a_receipt_is_there_after_reopening(
        self, open_log: OpenLog, topic: str
    ) -> None:
        first = open_log()
        (receipt,) = first.append(topic, records(1))
        assert errors([receipt]) == []
        first.close()
        second = open_log()
        assert second.partitions(topic) == PARTITIONS
        assert second.read(topic, receipt.partition, receipt.offset, WAIT)[0].value == b"0"
        second.close()

    def test_many_threads_append(self, log: EventLog, topic: str) -> None:
        failures: list[object] = []

        def work(worker: int) -> None:
            for _ in range(5):
                receipts = log.append(topic, records(10, key=f"w{worker}".encode()))
                failures.extend(each.error for each in receipts if each.error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        found = read_all(log, topic)
        assert sum(len(part) for part in found.values()) == 200
        for part in found.values():
            assert [record.offset for record in part] == list(range(len(part)))

    def test_a_forked_child_appends(self, log: EventLog, topic: str) -> None:
        log.append(topic, records(1))
        child = fork()
        if child == 0:  # pragma: no cover  (in the child)
            status = 1
            try:
                (receipt,) = log.append(topic, records(1, start=1))
                status = 0 if receipt.error is None else 2
            finally:
                os._exit(status)
        deadline = time.monotonic() + 30
        done, status = os.waitpid(child, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.02)
            done, status = os.waitpid(child, os.WNOHANG)
        assert done, "the child hangs"
        assert os.waitstatus_to_exitcode(status) == 0
        assert errors(log.append(topic, records(1, start=2))) == []
        (found,) = read_all(log, topic).values()
        assert [int(record.value) for record in found] == [0, 1, 2]

    # -- reading --------------------------------------------------------------------------

    def test_reading_starts_anywhere(self, log: EventLog, topic: str) -> None:
        receipts = log.append(topic, records(20))
        assert errors(receipts) == []
        partition = receipts[0].partition
        for start in (13, 0, 19, 5, 6):
            found = log.read(topic, partition, start, WAIT)
            assert [record.offset for record in found] == list(range(start, 20))

    def test_reads_keep_their_limits(self, log: EventLog, topic: str) -> None:
        partition = log.append(topic, records(20))[0].partition
        assert len(log.read(topic, partition, 0, Limits(max_records=7, timeout=5))) == 7
        following = log.read(topic, partition, 7, Limits(max_records=7, timeout=5))
        assert [record.offset for record in following] == list(range(7, 14))

    def test_bytes_are_limited_but_one_record_always_comes(self, log: EventLog, topic: str) -> None:
        big = [Record(b"x" * 50_000, key=b"k") for _ in range(4)]
        partition = log.append(topic, big)[0].partition
        assert len(log.read(topic, partition, 0, Limits(max_bytes=110_000, timeout=5))) == 2
        assert len(log.read(topic, partition, 2, Limits(max_bytes=10, timeout=5))) == 1
        rest = log.read(topic, partition, 3, Limits(timeout=5))
        assert [record.offset for record in rest] == [3]

    def test_at_the_end_there_is_nothing_yet(self, log: EventLog, topic: str) -> None:
        partition = log.append(topic, records(3))[0].partition
        started = time.monotonic()
        assert log.read(topic, partition, 3, Limits(timeout=0.2)) == []
        assert time.monotonic() - started < 20  # and not the whole of a client's own patience

    def test_a_waiting_reader_gets_what_arrives(self, log: EventLog, topic: str) -> None:
        partition = log.append(topic, records(1))[0].partition
        found: list = []
        reader = threading.Thread(
            target=lambda: found.extend(log.read(topic, partition, 1, Limits(timeout=15)))
        )
        reader.start()
        log.append(topic, records(1, start=1))
        reader.join(20)
        assert [record.value for record in found] == [b"1"]

    def test_a_position_that_is_not_there_is_reported(self, log: EventLog, topic: str) -> None:
        partition = log.append(topic, records(3))[0].partition
        with pytest.raises(OffsetOutOfRange) as caught:
            log.read(topic, partition, 4, Limits(timeout=0))
        assert (caught.value.low, caught.value.high) == (0, 3)
        with pytest.raises(OffsetOutOfRange):
            log.read(topic, partition, -1, Limits(timeout=0))

    def test_watermarks(self, log: EventLog, topic: str) -> None:
        assert log.watermarks(topic, 0) == (0, 0)
        partition = log.append(topic, records(3))[0].partition
        assert log.watermarks(topic, partition) == (0, 3)

    def test_a_partition_that_is_not_there(self, log: EventLog, topic: str) -> None:
        with pytest.raises(UnknownTopic):
            log.watermarks(topic, PARTITIONS)

    def test_offsets_by_time(self, log: EventLog, topic: str) -> None:
        timed = [Record(b"x", b"k", timestamp=NOW + n * 1_000_000) for n in range(4)]
        partition = log.append(topic, timed)[0].partition
        assert log.offset_at(topic, partition, NOW - 5_000_000) == 0
        assert log.offset_at(topic, partition, NOW + 2_000_000) == 2
        assert log.offset_at(topic, partition, NOW + 1_500_000) == 2
        assert log.offset_at(topic, partition, NOW + 9_000_000) == 4

    def test_timestamps(self, log: EventLog, topic: str) -> None:
        (receipt,) = log.append(topic, [Record(b"x", timestamp=NOW)])
        assert log.read(topic, receipt.partition, 0, WAIT)[0].timestamp == NOW
        before = time.time_ns() // 1000
        (receipt,) = log.append(topic, [Record(b"x", key=b"now")])
        stored = log.read(topic, receipt.partition, receipt.offset, WAIT)[0]
        assert abs(stored.timestamp - before) < 60_000_000

    # -- progress -------------------------------------------------------------------------

    def test_commits_are_kept_by_group(self, open_log: OpenLog, topic: str) -> None:
        first = open_log()
        group = f"sink-{topic}"
        assert first.committed(group, topic, 0) is None
        first.commit(group, topic, 0, 17)
        first.commit(group, topic, 0, 21)
        first.commit(group, topic, 1, 3)
        first.close()
        second = open_log()
        assert second.committed(group, topic, 0) == 21
        assert second.committed(group, topic, 1) == 3
        assert second.committed(f"other-{topic}", topic, 0) is None
        second.close()

    def test_close_twice(self, log: EventLog, topic: str) -> None:
        log.append(topic, records(1))
        log.close()
        log.close()
