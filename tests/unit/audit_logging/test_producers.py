"""Producers: numbers, heartbeats, and what is known of a process that was killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_logging import metrics, producer_files
from audit_logging.batch import Batch
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import GIVE_UP_AFTER, RETRY_STREAM, Deliverer
from audit_logging.exceptions import Declined, RetryLater
from audit_logging.outcome import Delivered, Refusal
from audit_logging.producers import Producer
from audit_logging.transport import Transport
from tests.support import eventually

ROOT = Path(__file__).parents[3]
SHARED = Path(f"/dev/shm/audit-logging-{os.geteuid()}")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["in memory", "on disk"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where tallies lie: the folder."""
    if request.param == "in memory":
        if producer_files.in_memory() is None:
            pytest.skip("there is no tmpfs at /dev/shm")
        yield SHARED
    else:
        monkeypatch.setattr(producer_files, "_is_tmpfs", lambda path: False)
        yield tmp_path / "data" / "producers"


@pytest.fixture
def options(tmp_path: Path) -> Iterator[LoggingSettings]:
    made = options_for(tmp_path / "data", f"api-{uuid.uuid4().hex}")
    yield made
    for path in tallies(SHARED, made):
        path.unlink()


def options_for(data_dir: Path, service: str) -> LoggingSettings:
    return LoggingSettings(
        {"AUDIT_LOGGING_DATA_DIR": str(data_dir), "AUDIT_LOGGING_SERVICE_NAME": service}
    )


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    assert all("\n" not in line and line.isascii() for line in lines)
    return [json.loads(line) for line in lines]


def tallies(place: Path, options: LoggingSettings) -> list[Path]:
    group = producer_files.group_of(options.DATA_DIR, options.SERVICE_NAME)
    return sorted(place.glob(f"{group}*")) if place.exists() else []


# -- numbers and heartbeats -----------------------------------------------------------------------


def test_numbers_begin_at_zero_and_have_no_gap(options: LoggingSettings) -> None:
    producer = Producer(options)
    assert [producer.number() for _ in range(3)] == [0, 1, 2]
    producer.attach()
    assert [producer.number() for _ in range(3)] == [3, 4, 5]
    assert producer.count == 6
    assert Producer(options).epoch != producer.epoch


def test_the_first_heartbeat_comes_at_once_the_next_when_due_and_only_with_news(
    options: LoggingSettings,
) -> None:
    clock = Clock()
    producer = Producer(options, clock=clock)
    producer.number()
    producer.attach()
    first = producer.due(10.0)
    (record,) = parsed(first)
    assert record["record"] == "producer"
    assert (record["producer_epoch"], record["seq"], record["state"]) == (producer.epoch, 1, "open")
    assert (record["service_name"], record["pid"]) == (options.SERVICE_NAME, os.getpid())
    assert (record["started_at"], record["at"]) == (clock.now, clock.now)
    producer.settled(first)
    producer.number()
    assert producer.due(10.0 + 59) == []
    second = producer.due(10.0 + 60)
    assert [each["seq"] for each in parsed(second)] == [2]
    producer.settled(second)
    assert producer.due(10.0 + 600) == []
    producer.number()
    assert [each["seq"] for each in parsed(producer.due(10.0 + 601))] == [3]


def test_a_clock_that_is_set_back_does_not_end_the_heartbeats(options: LoggingSettings) -> None:
    producer = Producer(options)
    producer.number()
    producer.settled(producer.due(1_000_000.0))
    producer.number()
    assert len(producer.due(5.0)) == 1


def test_what_found_no_place_is_offered_again_in_its_newest_form(options: LoggingSettings) -> None:
    producer = Producer(options)
    producer.number()
    first = producer.due(0.0)
    assert producer.due(1.0) == []
    assert producer.due(5.0) == first
    producer.number()
    again = producer.due(60.0)
    assert [each["seq"] for each in parsed(again)] == [2]
    producer.settled(first)
    assert producer.due(66.0) == again


def test_records_say_what_was_dropped_and_left_out_since_the_process_began(
    options: LoggingSettings,
) -> None:
    metrics.rejected.inc(7, reason="spool_full")
    producer = Producer(options)
    metrics.rejected.inc(2, reason="buffer_full")
    metrics.rejected.inc(reason="spool_full")
    metrics.skipped.inc(5, reason="sampled")
    record = json.loads(producer.record("open", 1.0))
    assert record["dropped"] == {"buffer_full": 2, "spool_full": 1}
    assert record["skipped"] == {"sampled": 5}


def test_a_process_that_numbered_nothing_says_nothing_and_leaves_nothing(
    options: LoggingSettings, place: Path
) -> None:
    producer = Producer(options)
    producer.attach()
    assert producer.due(0.0) == []
    assert len(tallies(place, options)) == 1
    assert producer.close() == []
    assert tallies(place, options) == []


# -- the end --------------------------------------------------------------------------------------


def test_a_graceful_end_is_reported_and_leaves_nothing(
    options: LoggingSettings, place: Path
) -> None:
    producer = Producer(options)
    producer.attach()
    producer.number()
    producer.due(0.0)
    lines = producer.close()
    assert [(each["state"], each["seq"]) for each in parsed(lines)] == [("closed", 1)]
    assert len(tallies(place, options)) == 1, "removed before the record has its place"
    assert producer.due(100.0) in ([], lines), "a heartbeat after the end"
    producer.settled(lines)
    assert tallies(place, options) == []
    assert producer.close() == []
    # A request that comes after the end is counted all the same.
    producer.number()
    assert [each["seq"] for each in parsed(producer.close())] == [2]


_KILLED = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
import django
from django.conf import settings
settings.configure(AUDIT_LOGGING={{"DATA_DIR": {data!r}, "SERVICE_NAME": {service!r}}})
from audit_logging import metrics, producer_files
from audit_logging.producers import Producer
from audit_logging.transport import Transport
if {disk}:
    producer_files._is_tmpfs = lambda path: False
producer = Producer()
producer.number()
producer.attach()
metrics.rejected.inc(3, reason="buffer_full")
for _ in range({count} - 1):
    producer.number()
producer.due(0.0)
{more}
print(producer.epoch, flush=True)
sys.stdin.read()
"""


def start(
    options: LoggingSettings, place: Path, count: int, more: str = "", **streams: Any
) -> subprocess.Popen[bytes]:
    script = _KILLED.format(
        root=str(ROOT),
        data=str(options.DATA_DIR),
        service=options.SERVICE_NAME,
        disk=place != SHARED,
        count=count,
        more=more,
    )
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **streams,
    )


def line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    assert line
    return line


def killed(options: LoggingSettings, place: Path, count: int, more: str = "") -> str:
    """The epoch of a process that gave `count` numbers and was killed."""
    process = start(options, place, count, more)
    epoch = line_of(process)
    process.kill()
    process.wait()
    return epoch


def test_a_killed_process_is_reported_with_its_last_number_by_another(
    options: LoggingSettings, place: Path
) -> None:
    epoch = killed(options, place, 1234)
    survivor = Producer(options)
    survivor.attach()
    lines = survivor.due(0.0)
    (record,) = parsed(lines)
    assert (record["producer_epoch"], record["seq"], record["state"]) == (epoch, 1234, "lost")
    assert record["dropped"] == {"buffer_full": 3}
    assert record["pid"] != os.getpid()
    # One speaks for it at a time; it is not forgotten before the record has its place.
    second = Producer(options)
    second.attach()
    assert second.due(0.0) == []
    assert len(tallies(place, options)) == 3
    survivor.settled(lines)
    assert len(tallies(place, options)) == 2
    assert survivor.due(60.0) == []


def test_numbers_given_up_to_the_kill_itself_are_known(
    options: LoggingSettings, place: Path
) -> None:
    if place != SHARED:
        pytest.skip("on a disk the count is as of a second ago")
    more = """
def work():
    while True:
        producer.number()
        os.write(2, b"x")
threading.Thread(target=work, daemon=True).start()
"""
    process = start(options, place, 1, more, stderr=subprocess.PIPE)
    assert process.stderr is not None
    line_of(process)
    seen = len(process.stderr.read(5000))
    process.kill()
    seen += len(process.stderr.read())
    process.wait()
    survivor = Producer(options)
    survivor.attach()
    (record,) = parsed(survivor.due(0.0))
    # It may have been killed between giving a number and saying so.
    assert record["seq"] in (1 + seen, 1 + seen + 1)


def test_a_living_process_is_nobody_elses_to_report(options: LoggingSettings, place: Path) -> None:
    process = start(options, place, 10)
    try:
        line_of(process)
        survivor = Producer(options)
        survivor.attach()
        assert survivor.due(0.0) == []
    finally:
        process.kill()
        process.wait()
    assert [each["seq"] for each in parsed(survivor.due(60.0))] == [10]


def test_a_speaker_that_dies_itself_is_followed_by_the_next(
    options: LoggingSettings, place: Path
) -> None:
    first = killed(options, place, 5)
    # It takes the tally over in due(), and is killed before the record has a place.
    second = killed(options, place, 6)
    survivor = Producer(options)
    survivor.attach()
    found = {each["producer_epoch"]: each["seq"] for each in parsed(survivor.due(0.0))}
    assert found == {first: 5, second: 6}


def test_other_services_dead_are_left_to_them(options: LoggingSettings, place: Path) -> None:
    killed(options, place, 5)
    other = Producer(options_for(options.DATA_DIR, "orders-api"))
    other.attach()
    assert other.due(0.0) == []


def test_of_many_dead_processes_some_are_looked_at_each_time(
    options: LoggingSettings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit_logging.producer_files._MOST_OWN", 2)
    for count in range(1, 6):
        killed(options, place, count)
    survivor = Producer(options)
    survivor.attach()
    found: list[int] = []
    sizes = []
    for moment in range(200):
        lines = survivor.due(60.0 * moment)
        sizes.append(len(lines))
        found += [record["seq"] for record in parsed(lines)]
        survivor.settled(lines)
    assert sorted(found) == [1, 2, 3, 4, 5]
    assert max(sizes) <= 2


def test_a_service_that_is_here_no_more_is_forgotten_after_a_month(
    options: LoggingSettings, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit_logging.producer_files._MOST_OTHERS", 100_000)
    gone = options_for(options.DATA_DIR, f"gone-{uuid.uuid4().hex}")
    alive = start(gone, place, 5)
    line_of(alive)
    killed(gone, place, 5)
    try:
        for days, left in ((29, 2), (31, 1)):
            for path in tallies(place, gone):
                os.utime(path, (time.time() - days * 86_400,) * 2)
            producer = Producer(options)
            producer.attach()
            assert producer.due(0.0) == []
            assert len(tallies(place, gone)) == left, "the living one's, too"
    finally:
        alive.kill()
        alive.wait()
        for path in tallies(place, gone):
            path.unlink()


def test_a_forked_child_does_not_keep_its_parent_alive(
    options: LoggingSettings, place: Path
) -> None:
    more = """
child = os.fork()
if child == 0:
    os.close(0), os.close(1), os.close(2)
    producer.number()
    signal.pause()
print(child, flush=True)
"""
    process = start(options, place, 3, more)
    child = int(line_of(process))
    epoch = line_of(process)
    try:
        process.kill()
        process.wait()
        survivor = Producer(options)
        survivor.attach()
        found: list[dict[str, Any]] = []

        def reported() -> bool:
            # The child lets go when it runs, which may be after its parent's death.
            survivor._due_at.clear()
            found.extend(parsed(survivor.due(0.0)))
            return bool(found)

        eventually(reported, timeout=20)
        assert (found[0]["producer_epoch"], found[0]["seq"]) == (epoch, 3)
    finally:
        os.kill(child, signal.SIGKILL)


# -- what may be in the way -----------------------------------------------------------------------


def test_tallies_are_their_owners_alone(options: LoggingSettings, place: Path) -> None:
    producer = Producer(options)
    producer.attach()
    (path,) = tallies(place, options)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    producer.close()


def test_a_tally_that_somebody_removes_is_made_anew(options: LoggingSettings, place: Path) -> None:
    producer = Producer(options)
    producer.attach()
    producer.number()
    producer.settled(producer.due(0.0))
    (path,) = tallies(place, options)
    page = producer._page
    path.unlink()
    if place != SHARED:
        place.rmdir()
    producer.number()
    producer.due(1.0)
    assert tallies(place, options) == [path]
    # A request that was at the former one at that moment is not disturbed.
    if page is not None:
        page[0] = 2
    producer.number()
    producer.due(2.0)
    content = producer_files._read(path.read_bytes())
    assert content is not None
    assert content[1] == 3
    producer.settled(producer.close())
    assert tallies(place, options) == []
    # What is removed at the end stays so.
    producer.due(3.0)
    assert tallies(place, options) == []


def test_a_folder_that_others_can_write_to_is_not_used(
    options: LoggingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shm"
    planted = shared / f"audit-logging-{os.geteuid()}"
    planted.mkdir(parents=True)
    planted.chmod(0o777)
    monkeypatch.setattr(producer_files, "_SHARED_MEMORY", shared)
    monkeypatch.setattr(producer_files, "_is_tmpfs", lambda path: True)
    producer = Producer(options)
    producer.attach()
    assert list(planted.iterdir()) == []
    assert len(tallies(options.DATA_DIR / "producers", options)) == 1


def test_a_planted_link_is_not_followed(
    options: LoggingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, target = tmp_path / "shm", tmp_path / "target"
    shared.mkdir()
    target.mkdir(mode=0o700)
    (shared / f"audit-logging-{os.geteuid()}").symlink_to(target)
    monkeypatch.setattr(producer_files, "_SHARED_MEMORY", shared)
    monkeypatch.setattr(producer_files, "_is_tmpfs", lambda path: True)
    Producer(options).attach()
    assert list(target.iterdir()) == []


def test_memory_that_is_full_means_the_disk(
    options: LoggingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(producer_files, "_SHARED_MEMORY", shared)
    monkeypatch.setattr(producer_files, "_is_tmpfs", lambda path: True)

    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    producer = Producer(options)
    producer.attach()
    producer.number()
    assert producer.attached
    assert list((shared / f"audit-logging-{os.geteuid()}").iterdir()) == []
    assert len(tallies(options.DATA_DIR / "producers", options)) == 1


def test_without_any_place_heartbeats_come_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_files, "_is_tmpfs", lambda path: False)
    (tmp_path / "file").write_text("no folder")
    producer = Producer(options_for(tmp_path / "file", "api"))
    with pytest.raises(FileExistsError):
        producer.attach()
    producer.number()
    lines = producer.due(0.0)
    assert len(lines) == 1
    producer.settled(lines)
    producer.settled(producer.close())


@pytest.mark.parametrize(
    "damage",
    [b"", b"x" * 100, b"audit-producer1\n" + b"\xff" * 8176, b"audit-producer1\n" + bytes(8176)],
)
def test_a_damaged_tally_stops_nobody(options: LoggingSettings, place: Path, damage: bytes) -> None:
    epoch = killed(options, place, 5)
    group = producer_files.group_of(options.DATA_DIR, options.SERVICE_NAME)
    broken = place / f"{group}-0000.producer"
    broken.write_bytes(damage)
    survivor = Producer(options)
    survivor.attach()
    assert [each["producer_epoch"] for each in parsed(survivor.due(0.0))] == [epoch]
    os.utime(broken, (0, 0))
    survivor.due(100.0)
    assert not broken.exists()


def test_totals_cut_off_by_a_kill_leave_those_before(options: LoggingSettings, place: Path) -> None:
    epoch = killed(
        options,
        place,
        5,
        more="metrics.rejected.inc(reason='buffer_full'); producer.due(10.0)",
    )
    (path,) = tallies(place, options)
    content = bytearray(path.read_bytes())
    # The newest of the two places, which the second write went to.
    start = producer_files._TOTALS[0]
    assert content[start : start + 4] != bytes(4)
    content[start + 14] ^= 0xFF
    path.write_bytes(content)
    survivor = Producer(options)
    survivor.attach()
    (record,) = parsed(survivor.due(0.0))
    assert (record["producer_epoch"], record["dropped"]) == (epoch, {"buffer_full": 3})


def test_another_hosts_tally_on_a_shared_disk_is_left_until_it_was_long_silent(
    options: LoggingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_files, "_is_tmpfs", lambda path: False)
    place = options.DATA_DIR / "producers"
    epoch = killed(options, place, 5)
    monkeypatch.setattr("audit_logging.producers.host_name", lambda: "another-host")
    monkeypatch.setattr(producer_files, "host_name", lambda: "another-host")
    monkeypatch.setattr(producer_files, "boot_id", lambda: "another-kernel")
    survivor = Producer(options)
    survivor.attach()
    assert survivor.due(0.0) == []
    for path in tallies(place, options):
        os.utime(path, (0, 0))
    assert [each["producer_epoch"] for each in parsed(survivor.due(60.0))] == [epoch]


def test_numbers_given_while_it_attaches_are_in_the_tally(options: LoggingSettings) -> None:
    if producer_files.in_memory() is None:
        pytest.skip("there is no tmpfs at /dev/shm")
    for _ in range(20):
        producer = Producer(options)
        lock, stop = threading.Lock(), threading.Event()

        def work(producer: Producer = producer, lock: Any = lock, stop: Any = stop) -> None:
            while not stop.is_set():
                with lock:
                    producer.number()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        producer.attach()
        stop.set()
        for thread in threads:
            thread.join()
        assert producer._page is not None
        assert producer._page[0] == producer.count
        producer._finished()


# -- on the way -----------------------------------------------------------------------------------


class Target:
    """Takes batches, or refuses each line of them for good."""

    def __init__(self) -> None:
        self.refuses = False
        self.lines: list[str] = []

    def send(self, batch: Batch) -> Delivered:
        if self.refuses:
            return Delivered(refused=[Refusal(line, "unknown", 422) for line in batch.lines()])
        self.lines += batch.lines()
        return Delivered(stored={"published": len(batch.lines())})


def test_a_record_is_delivered_and_counted_as_no_event(
    options: LoggingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    target = Target()
    deliverer = Deliverer(target, options)
    producer = Producer(options)
    producer.number()
    lines = producer.due(0.0)
    batch = Batch.of(lines)
    assert batch.count == 0
    assert Batch.of([*lines, '{"request_id":"x"}']).count == 1
    before = metrics.delivered.value(), metrics.dead_lettered.value()
    deliverer.deliver(batch.message(), 0)
    assert target.lines == lines
    # An older publisher does not know them: no heartbeat becomes a dead letter.
    target.refuses = True
    deliverer.deliver(batch.message(), 0)
    assert (metrics.delivered.value(), metrics.dead_lettered.value()) == before
    assert "Is the publisher older" in caplog.text
    assert not deliverer.dead_letters.path.exists()
    deliverer.deliver(Batch.of(['{"request_id":"x"}']).message(), 1)
    assert metrics.dead_lettered.value() == before[1] + 1
    deliverer.stop()


class Away:
    """Takes nothing, or everything."""

    def __init__(self, clock: Clock) -> None:
        self.answer: Exception | None = RetryLater("away")
        self.clock = clock
        self.sent = 0

    def send(self, batch: Batch) -> Delivered:
        self.sent += 1
        if self.answer is not None:
            raise self.answer
        return Delivered(stored={"published": len(batch.lines())})


@pytest.fixture
def away(options: LoggingSettings) -> tuple[Away, Deliverer]:
    """A publisher that is away, and a deliverer that keeps a record for it; drained by hand."""
    clock = Clock()
    target = Away(clock)
    deliverer = Deliverer(target, options, sleep=lambda seconds: None, clock=clock)
    deliverer.start = lambda: None  # type: ignore[method-assign]
    producer = Producer(options)
    producer.number()
    deliverer.deliver(Batch.of(producer.due(0.0)).message(), 0)
    assert deliverer.spool.stats(RETRY_STREAM).records == 1
    deliverer.breaker.succeeded()
    target.sent = 0
    return target, deliverer


def test_a_record_from_the_spool_is_delivered_once(away: tuple[Away, Deliverer]) -> None:
    target, deliverer = away
    target.answer = None
    before = metrics.replayed.value()
    for _ in range(5):
        deliverer.drain_step()
        target.clock.now += 400
    assert target.sent == 1
    assert deliverer.spool.stats(RETRY_STREAM).records == 0
    assert metrics.replayed.value() == before


def test_a_record_that_stays_declined_is_no_dead_letter(away: tuple[Away, Deliverer]) -> None:
    target, deliverer = away
    target.answer = Declined("unknown", by_content=True, status=400)
    before = metrics.dead_lettered.value()
    for _ in range(GIVE_UP_AFTER + 2):
        deliverer.drain_step()
        target.clock.now += 400
    assert deliverer.spool.stats(RETRY_STREAM).records == 0
    assert not deliverer.dead_letters.path.exists()
    assert metrics.dead_lettered.value() == before


class Stuck:
    """A broker that holds whoever sends until it is let go."""

    def __init__(self) -> None:
        self.asked, self.answering = threading.Event(), threading.Event()

    def __call__(self, batch: bytes, count: int) -> None:
        self.asked.set()
        self.answering.wait(30)


def test_what_hangs_at_the_broker_is_known_if_the_process_is_killed(
    options: LoggingSettings, place: Path
) -> None:
    from tests.unit.audit_logging.test_transport import exchange

    broker = Stuck()
    transport = Transport(broker, options)
    try:
        transport.submit(exchange())
        assert broker.asked.wait(20)
        (tally,) = tallies(place, options)
        # As somebody else would find it.
        content = producer_files._read(tally.read_bytes())
        assert content is not None
        assert content[0]["producer_epoch"] == transport.producer.epoch
        if place == SHARED:
            assert content[1] == 1
    finally:
        broker.answering.set()
        transport.close()
    assert tallies(place, options) == []


def test_a_process_that_never_rests_reports_all_the_same(options: LoggingSettings) -> None:
    from tests.unit.audit_logging.test_transport import exchange

    busy = LoggingSettings({**options._environ, "AUDIT_LOGGING_BUFFER_SIZE": "1"})
    told, ended = threading.Event(), threading.Event()

    def send(batch: bytes, count: int) -> None:
        if not count:
            told.set()
        elif not ended.is_set():
            # While it worked, the next came.
            transport.submit(exchange())

    transport = Transport(send, busy)
    try:
        transport.submit(exchange())
        assert told.wait(20)
    finally:
        ended.set()
        transport.close()
