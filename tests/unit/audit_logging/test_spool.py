"""The durable queue against a model, against kill -9, against other processes and a full disk."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from audit_logging.exceptions import SpoolFull, SpoolUnavailable
from audit_logging.spool import DurableQueue, Record, StoredRecord, StreamStats
from tests.support import eventually, fork


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> DurableQueue:
    return DurableQueue(tmp_path / "deep" / "queue.sqlite3", clock=clock)


def values(records: list[StoredRecord]) -> list[bytes]:
    return [record.value for record in records]


def lease(queue: DurableQueue, **kwargs: Any) -> list[StoredRecord]:
    return queue.lease("s", **({"seconds": 10, "owner": "me"} | kwargs))


# -- single promises ---------------------------------------------------------------------------


def test_a_record_comes_back_as_it_went_in(queue: DurableQueue) -> None:
    headers = (("a", b"\xff\x00"), ("a", None), ("b", b""))
    record = Record(b"\x00value", key=b"\xffkey", headers=headers, timestamp=7)
    assert queue.append("s", [record, Record(b"2")]) == range(2)
    first, second = queue.read("s", 0)
    assert (first.value, first.key, first.headers) == (record.value, record.key, headers)
    assert (first.timestamp, first.offset, first.lease) == (7, 0, None)
    assert (second.timestamp, second.offset) == (1_700_000_000_000_000, 1)
    assert queue.stats("s") == StreamStats(2, record.size + Record(b"2").size, 7)
    assert queue.streams() == ["s"]
    assert queue.append("s", []) == range(0)


def test_files_and_folder_are_the_owner_s_alone(queue: DurableQueue) -> None:
    before = os.umask(0)
    try:
        queue.append("s", [Record(b"1")])
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in queue.path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ("queue.sqlite3", "queue.sqlite3-wal", "queue.sqlite3-shm", "queue.sqlite3-reserve"), 0o600
    )
    assert stat.S_IMODE(queue.path.parent.stat().st_mode) == 0o700


def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    DurableQueue(tmp_path / "queue.sqlite3").append("s", [Record(b"1")])
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_streams_do_not_mix(queue: DurableQueue) -> None:
    queue.append("a", [Record(b"1")])
    queue.append("b", [Record(b"2"), Record(b"3")])
    assert values(queue.read("b", 0)) == [b"2", b"3"]
    queue.settle("a", queue.lease("a", seconds=9, owner="me"))
    assert queue.watermarks("b") == (0, 2)
    assert queue.watermarks("c") == (0, 0)
    assert queue.stats("c") == StreamStats()


def test_a_lease_runs_out_and_its_owner_can_no_longer_settle(
    queue: DurableQueue, clock: Clock
) -> None:
    queue.append("s", [Record(b"1")])
    mine = lease(queue)
    assert lease(queue) == []
    clock.now += 9.9
    assert lease(queue) == []
    clock.now += 0.2
    theirs = lease(queue, owner="other")
    assert [record.attempts for record in mine + theirs] == [1, 2]
    assert queue.settle("s", mine) == 0
    queue.release("s", mine)
    assert lease(queue) == []
    assert queue.settle("s", theirs) == 1
    assert queue.stats("s").records == 0
    assert queue.used_bytes() == 0


def test_released_records_come_again_at_once_or_later(queue: DurableQueue, clock: Clock) -> None:
    queue.append("s", [Record(b"1"), Record(b"2")])
    queue.release("s", lease(queue))
    first = lease(queue, max_records=1)
    assert values(first) == [b"1"]
    queue.release("s", first, delay=5)
    assert values(lease(queue)) == [b"2"]
    clock.now += 5
    assert values(lease(queue)) == [b"1"]


def test_limits_of_a_read_and_of_a_lease(queue: DurableQueue) -> None:
    queue.append("s", [Record(b"x" * 1000) for _ in range(5)])
    assert len(queue.read("s", 0, max_records=3)) == 3
    assert len(queue.read("s", 0, max_bytes=2500)) == 2
    assert len(queue.read("s", 3)) == 2
    assert len(queue.read("s", 0, max_bytes=1)) == 1  # one at least
    assert len(lease(queue, max_bytes=2500)) == 2
    assert len(lease(queue, max_records=1)) == 1


def test_the_offset_at_a_time(queue: DurableQueue) -> None:
    queue.append("s", [Record(b"", timestamp=at) for at in (10, 20, 30)])
    assert [queue.offset_at("s", at) for at in (0, 10, 11, 30, 31)] == [0, 0, 1, 2, 3]


def test_what_is_appended_while_a_time_is_looked_for_is_not_older(
    queue: DurableQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a retention that looks and then trims would forget it."""
    other, read = DurableQueue(queue.path), queue._read

    @contextmanager
    def meanwhile() -> Iterator[sqlite3.Connection]:
        with read() as connection:
            yield connection
        other.append("s", [Record(b"x")])

    queue.append("t", [Record(b"x")])
    monkeypatch.setattr(queue, "_read", meanwhile)
    before = queue.offset_at("s", 0)
    monkeypatch.undo()
    queue.trim("s", before)
    assert len(queue.read("s", 0)) == other.watermarks("s")[1]


def test_trim(queue: DurableQueue) -> None:
    queue.append("s", [Record(b"x") for _ in range(5)])
    held = lease(queue, max_records=2)
    assert queue.trim("s", 3) == 3
    assert queue.watermarks("s") == (3, 5)
    assert queue.settle("s", held) == 0
    assert queue.stats("s").records == 2
    assert queue.trim("s", 99) == 2
    assert queue.watermarks("s") == (5, 5)
    assert queue.append("s", [Record(b"x")]) == range(5, 6)


def test_the_bound_holds_over_all_streams_and_frees_again(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "q.sqlite3", max_bytes=1000)
    queue.append("a", [Record(b"x" * 400)])
    queue.append("b", [Record(b"x" * 400)])
    with pytest.raises(SpoolFull, match=r"864 of 1,000 bytes; 332 more do not fit"):
        queue.append("a", [Record(b"x" * 100), Record(b"x" * 168)])
    assert queue.stats("a").records == 1
    queue.settle("b", queue.lease("b", seconds=9, owner="me"))
    assert queue.append("a", [Record(b"x" * 400)]) == range(1, 2)


# -- faults ------------------------------------------------------------------------------------

CALLS = [
    lambda queue: queue.append("s", [Record(b"x")]),
    lambda queue: queue.read("s", 0),
    lambda queue: queue.watermarks("s"),
    lambda queue: queue.offset_at("s", 0),
    lambda queue: queue.trim("s", 1),
    lambda queue: queue.lease("s", seconds=1, owner="me"),
    lambda queue: queue.settle("s", []),
    lambda queue: queue.release("s", []),
    lambda queue: queue.streams(),
    lambda queue: queue.stats("s"),
    lambda queue: queue.used_bytes(),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_path_that_cannot_be_is_told(tmp_path: Path, call: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpoolUnavailable, match="file"):
        call(DurableQueue(tmp_path / "file" / "q.sqlite3"))


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_is_damaged_is_told(tmp_path: Path, call: Any) -> None:
    (tmp_path / "q.sqlite3").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(SpoolUnavailable, match="not a database"):
        call(DurableQueue(tmp_path / "q.sqlite3"))


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_breaks_under_an_open_connection_is_told(tmp_path: Path, call: Any) -> None:
    queue = DurableQueue(tmp_path / "q.sqlite3")
    queue.append("s", [Record(b"x")])
    other = sqlite3.connect(tmp_path / "q.sqlite3")
    other.executescript("DROP TABLE record; DROP TABLE stream;")
    other.close()
    if call is CALLS[7]:
        # A release of nothing touches no table.
        call(queue)
        return
    with pytest.raises(SpoolUnavailable, match="no such table"):
        call(queue)


def test_a_full_disk_stores_nothing_of_an_append_and_heals(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "q.sqlite3")
    queue.append("s", [Record(b"kept")])
    connection = queue._connection()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(SpoolUnavailable, match="full"):
        queue.append("s", [Record(b"x" * 3000) for _ in range(20)])
    assert values(queue.read("s", 0)) == [b"kept"]
    assert queue.stats("s").records == 1
    connection.execute("PRAGMA max_page_count = 100000")
    assert queue.append("s", [Record(b"y")]) == range(1, 2)


def test_a_writer_that_is_held_up_too_long_is_told(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "q.sqlite3", timeout=0.05)
    queue.append("s", [Record(b"x")])
    other = sqlite3.connect(tmp_path / "q.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpoolUnavailable, match="locked"):
        queue.append("s", [Record(b"y")])
    assert len(queue.read("s", 0)) == 1  # readers are not held up
    assert lease(DurableQueue(tmp_path / "other.sqlite3")) == []
    other.execute("ROLLBACK")
    other.close()
    assert queue.append("s", [Record(b"y")]) == range(1, 2)


# -- threads and processes ---------------------------------------------------------------------


def test_threads_have_a_connection_each(queue: DurableQueue) -> None:
    taken: list[int] = []
    queue.append("s", [Record(str(n).encode()) for n in range(200)])

    def work() -> None:
        while records := lease(queue, max_records=3, owner="same"):
            taken.extend(record.offset for record in records)
            assert queue.settle("s", records) == len(records)
        queue.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(200))
    assert queue.stats("s") == StreamStats()


def test_a_fork_in_the_middle_of_a_transaction(queue: DurableQueue) -> None:
    queue.append("s", [Record(b"parent")])
    with queue._write() as connection:
        connection.execute("UPDATE record SET attempts = 7")
        child = fork()
        if child == 0:
            # The child must not carry on, commit or end the parent's transaction.
            queue.close()
            status = 0 if values(queue.read("s", 0)) == [b"parent"] else 1
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    child = fork()
    if child == 0:
        queue.append("s", [Record(b"child")])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    queue.append("s", [Record(b"parent again")])
    records = queue.read("s", 0)
    assert values(records) == [b"parent", b"child", b"parent again"]
    assert records[0].attempts == 7


WRITER = """
import sys
from audit_logging.spool import DurableQueue, Record
queue = DurableQueue(sys.argv[1], timeout=30)
for batch in range(10_000):
    offsets = queue.append("s", [Record(b"%d:%d" % (batch, n) + b"." * 2000) for n in range(5)])
    print(offsets.start, flush=True)
"""


def test_a_killed_writer_leaves_whole_appends_and_all_that_were_acknowledged(
    tmp_path: Path,
) -> None:
    for round_number in range(3):
        path = tmp_path / f"{round_number}.sqlite3"
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(3 + 7 * round_number)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.wait()
        queue = DurableQueue(path)
        records = queue.read("s", 0, max_records=100_000, max_bytes=1 << 30)
        assert [record.offset for record in records] == list(range(len(records)))
        assert len(records) % 5 == 0
        assert len(records) >= acknowledged[-1] + 5
        assert queue.stats("s").records == len(records)
        assert queue.used_bytes() == sum(record.size for record in records)
        assert queue.append("s", [Record(b"goes on")]).start == len(records)


CONSUMER = """
import sys
from audit_logging.spool import DurableQueue, Record
path, name = sys.argv[1:]
queue = DurableQueue(path, timeout=30)
sys.stdin.readline()
while records := queue.lease("s", seconds=60, owner="same name", max_records=7):
    print(*(record.offset for record in records), flush=True)
    assert queue.settle("s", records) == len(records)
"""


def test_processes_that_start_together_never_hold_the_same_record(tmp_path: Path) -> None:
    path = tmp_path / "q.sqlite3"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONSUMER, str(path), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    DurableQueue(path).append("s", [Record(b"x") for _ in range(300)])
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    offsets: list[int] = []
    for process in processes:
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        offsets += [int(word) for word in printed.split()]
    assert sorted(offsets) == list(range(300))


def test_threads_that_make_the_file_at_the_same_moment(tmp_path: Path) -> None:
    for round_number in range(30):
        queue = DurableQueue(tmp_path / f"{round_number}.sqlite3")
        ready, errors = threading.Barrier(4), []

        def append(queue: DurableQueue = queue, ready: Any = ready, errors: Any = errors) -> None:
            ready.wait()
            try:
                queue.append("s", [Record(b"x")])
                queue.close()
            except SpoolUnavailable as error:
                errors.append(error)

        threads = [threading.Thread(target=append) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


CREATOR = """
import sys
from audit_logging.spool import DurableQueue, Record
sys.stdin.readline()
DurableQueue(sys.argv[1], timeout=30).append("s", [Record(b"x")])
"""


def test_processes_that_make_the_file_at_the_same_moment(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, str(tmp_path / "new" / "q.sqlite3")],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert DurableQueue(tmp_path / "new" / "q.sqlite3").stats("s").records == 6


def test_a_consumer_waits_for_nothing_while_another_process_writes(tmp_path: Path) -> None:
    """An idle poll takes no write lock."""
    queue = DurableQueue(tmp_path / "q.sqlite3", timeout=0.01)
    queue.append("other", [Record(b"x")])
    writer = sqlite3.connect(tmp_path / "q.sqlite3", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    eventually(lambda: lease(queue) == [], 1)
    writer.close()


# -- against a model ---------------------------------------------------------------------------


class QueueAgainstModel(RuleBasedStateMachine):
    """Any order of calls leaves what a dictionary with the same rules would hold."""

    leases = Bundle("leases")

    @initialize()
    def start(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.queue = DurableQueue(
            Path(self.folder.name) / "q.sqlite3", max_bytes=3000, clock=self.clock
        )
        self.next = 0
        self.low = 0
        # offset → [value, held until, token or None]
        self.model: dict[int, list[Any]] = {}

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            self.folder.cleanup()

    def used(self) -> int:
        return sum(len(value) + 32 for value, *_ in self.model.values())

    @rule(payloads=st.lists(st.binary(max_size=300), max_size=4))
    def append(self, payloads: list[bytes]) -> None:
        fits = self.used() + sum(len(value) + 32 for value in payloads) <= 3000
        if not fits and payloads:
            with pytest.raises(SpoolFull):
                self.queue.append("s", [Record(value) for value in payloads])
            return
        offsets = self.queue.append("s", [Record(value) for value in payloads])
        if payloads:
            assert offsets == range(self.next, self.next + len(payloads))
        for value in payloads:
            self.model[self.next] = [value, 0.0, None]
            self.next += 1

    @rule(target=leases, seconds=st.sampled_from([1.0, 10.0]), most=st.integers(1, 3))
    def take(self, seconds: float, most: int) -> Any:
        free = [o for o, (_, until, _t) in sorted(self.model.items()) if until <= self.clock.now]
        records = self.queue.lease("s", seconds=seconds, owner="o", max_records=most)
        assert [record.offset for record in records] == free[:most]
        for record in records:
            assert record.value == self.model[record.offset][0]
            self.model[record.offset][1:] = [self.clock.now + seconds, record.lease]
        return records if records else multiple()

    def ours(self, records: list[StoredRecord]) -> list[int]:
        return [
            r.offset
            for r in records
            if r.offset in self.model and self.model[r.offset][2] == r.lease
        ]

    @rule(records=consumes(leases))
    def settle(self, records: list[StoredRecord]) -> None:
        ours = self.ours(records)
        assert self.queue.settle("s", records) == len(ours)
        for offset in ours:
            del self.model[offset]
        self.low = min(self.model, default=self.next)

    @rule(records=leases, delay=st.sampled_from([0.0, 3.0]))
    def release(self, records: list[StoredRecord], delay: float) -> None:
        self.queue.release("s", records, delay)
        for offset in self.ours(records):
            self.model[offset][1:] = [self.clock.now + delay if delay else 0.0, None]

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(before=st.integers(0, 12))
    def trim(self, before: int) -> None:
        gone = [offset for offset in self.model if offset < before]
        assert self.queue.trim("s", before) == len(gone)
        for offset in gone:
            del self.model[offset]
        if self.next:
            self.low = max(self.low, min(before, self.next))

    @rule()
    def reopen(self) -> None:
        self.queue.close()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "queue"):
            return
        records = self.queue.read("s", 0, max_records=10_000)
        assert [(r.offset, r.value) for r in records] == [
            (offset, value) for offset, (value, *_) in sorted(self.model.items())
        ]
        assert self.queue.watermarks("s") == (self.low, self.next)
        stats = self.queue.stats("s")
        assert (stats.records, stats.bytes) == (len(self.model), self.used())


QueueAgainstModel.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None
)
TestQueueAgainstModel = QueueAgainstModel.TestCase
