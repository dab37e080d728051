"""Making records durable: failover, the spool, its drain, and the account of every event."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from audit_logging.exceptions import SpoolUnavailable
from audit_publisher.durable.breaker import Breaker
from audit_publisher.durable.spool import CAUSE_HEADER, REFUSED, TOPIC_HEADER, Spool
from audit_publisher.durable.spool_writer import SpoolWriter
from audit_publisher.eventlog import Receipt, Record
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import (
    Backpressure,
    EventLogError,
    RecordRejected,
    RecordTooLarge,
    RegionUnavailable,
    StorageExhausted,
)
from audit_publisher.publish import Publisher
from tests.support import eventually

TOPIC = "events"


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Region(LocalEventLog):
    """A real log whose answers can be made to fail."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, path, max_record_bytes=5000)
        self.failure: EventLogError | None = None
        self.poison: bytes | None = None
        self.appends = 0
        self.probes = 0

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        self.appends += 1
        if self.failure is not None:
            return [Receipt(error=self.failure)] * len(records)
        if any(record.value == self.poison for record in records):
            return [
                Receipt(error=RecordRejected("poison"))
                if record.value == self.poison
                else super(Region, self).append(topic, [record])[0]
                for record in records
            ]
        return super().append(topic, records)

    def partitions(self, topic: str) -> int:
        self.probes += 1
        if isinstance(self.failure, RegionUnavailable):
            raise self.failure
        return super().partitions(topic)

    def values(self, topic: str = TOPIC) -> list[bytes]:
        # Past the failures, as somebody who looks at the disk.
        return [record.value for record in self._queue.read(f"{topic}/0", 0)]


class Setup:
    """Two regions with one topic of one partition, a spool, and a clock."""

    def __init__(self, folder: Path, spool_bytes: int = 1 << 20) -> None:
        self.clock = Clock()
        self.logs = {name: Region(name, folder / f"{name}.db") for name in ("primary", "secondary")}
        for log in self.logs.values():
            log.ensure_topic(TOPIC, 1)
        self.spool = Spool(folder / "spool", spool_bytes)
        self.publisher = self.another()

    @property
    def primary(self) -> Region:
        return self.logs["primary"]

    @property
    def secondary(self) -> Region:
        return self.logs["secondary"]

    def another(self, **options: Any) -> Publisher:
        """A publisher of another process, as it were; its background work is called by hand."""
        made = Publisher(
            tuple(self.logs),
            self.spool,
            open_region=self.logs.__getitem__,
            topics=lambda: (TOPIC,),
            cooldown=2,
            drain_batch=3,
            clock=self.clock,
            **options,
        )
        made.start = lambda: None  # type: ignore[method-assign]
        return made

    def publish(self, *values: bytes, topic: str = TOPIC) -> list[str]:
        outcomes = self.publisher.publish([(topic, Record(value, key=b"k")) for value in values])
        return [outcome.region or outcome.status for outcome in outcomes]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


DOWN = RegionUnavailable("down")


def test_the_first_region_takes_it(setup: Setup) -> None:
    assert setup.publish(b"1", b"2") == ["primary", "primary"]
    assert (setup.primary.values(), setup.secondary.values()) == ([b"1", b"2"], [])


def test_the_second_takes_over(setup: Setup) -> None:
    setup.primary.failure = DOWN
    assert setup.publish(b"1") == ["secondary"]
    assert setup.secondary.values() == [b"1"]


def test_a_dead_region_costs_one_request_its_timeout_and_no_other(setup: Setup) -> None:
    setup.primary.failure = DOWN
    for n in range(5):
        setup.clock.now += 60  # requests never probe, however long it has been
        assert setup.publish(str(n).encode()) == ["secondary"]
    assert setup.primary.appends == 1


def test_failing_back(setup: Setup) -> None:
    setup.primary.failure = DOWN
    setup.publish(b"1")
    setup.publisher.probe()
    assert setup.publish(b"2") == ["secondary"]
    setup.primary.failure = None
    setup.publisher.probe()
    assert setup.publish(b"3") == ["secondary"], "not before the cool-down is over"
    setup.clock.now += 2.1
    setup.publisher.probe()
    assert setup.publish(b"4") == ["primary"]
    assert setup.publisher.states["primary"].up


def test_the_background_finds_a_dead_region_before_any_request(setup: Setup) -> None:
    setup.primary.failure = DOWN
    setup.publisher.probe()
    assert setup.publish(b"1") == ["secondary"]
    assert setup.primary.appends == 0
    assert setup.publisher.states["primary"].error == "down"


def test_both_down_then_drained_in_order(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    for n in range(8):
        assert setup.publish(f"{n}".encode()) == ["spooled"]
    assert (setup.primary.appends, setup.secondary.appends) == (1, 1)
    assert setup.publisher.drain() == 0
    setup.secondary.failure = None
    setup.clock.now += 100
    setup.publisher.probe()
    setup.publisher.drain()
    assert setup.secondary.values() == [f"{n}".encode() for n in range(8)]
    assert setup.spool.size() == (0, 0)
    assert setup.publish(b"new") == ["secondary"]


def test_a_drain_that_is_cut_off_goes_on_where_it_stopped(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(*(f"{n}".encode() for n in range(7)))
    setup.primary.failure = None

    real = Region.append

    def first_batch_only(log: Region, topic: str, records: Sequence[Record]) -> list[Receipt]:
        if log.values():
            log.failure = DOWN
        return real(log, topic, records)

    setup.primary.append = first_batch_only.__get__(setup.primary)  # type: ignore[method-assign]
    setup.clock.now += 100
    setup.publisher.probe()
    setup.publisher.drain()
    assert setup.primary.values() == [b"0", b"1", b"2"]
    assert setup.spool.size()[0] == 4
    del setup.primary.append
    setup.primary.failure = None
    setup.clock.now += 100
    setup.publisher.probe()
    setup.publisher.drain()
    assert setup.primary.values() == [f"{n}".encode() for n in range(7)]


def test_a_spool_survives_its_process(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"1", b"2")
    setup.primary.failure = None
    assert setup.another().drain() == 2
    assert setup.primary.values() == [b"1", b"2"]


def test_one_process_drains_at_a_time(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"1")
    setup.primary.failure = None
    other = setup.another()
    with setup.spool.only_drainer() as mine:
        assert mine
        assert other.drain() == 0
    assert other.drain() == 1


def test_a_spooled_record_that_no_log_takes_does_not_block_the_others(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"1", b"bad", b"2")
    setup.primary.failure, setup.primary.poison = None, b"bad"
    assert setup.another().drain() == 3
    assert setup.primary.values() == [b"1", b"2"]
    assert [record.value for record in setup.spool.oldest(REFUSED, 10)] == [b"bad"]
    assert setup.spool.size() == (0, 0)


def test_a_refused_record_keeps_its_topic_and_the_cause(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"bad")
    setup.primary.failure, setup.primary.poison = None, b"bad"
    setup.another().drain()
    (kept,) = setup.spool.oldest(REFUSED, 10)
    assert kept.headers == ((TOPIC_HEADER, TOPIC.encode()), (CAUSE_HEADER, b"poison"))
    assert kept.key == b"k"


def test_a_refused_record_does_not_block_the_drain_of_a_full_spool(tmp_path: Path) -> None:
    setup = Setup(tmp_path, spool_bytes=300)
    setup.primary.failure = setup.secondary.failure = DOWN
    assert setup.publish(b"b" * 100, b"1" * 100) == ["spooled", "spooled"]
    assert setup.publish(b"2" * 100) == ["rejected"]
    setup.primary.failure, setup.primary.poison = None, b"b" * 100
    assert setup.another().drain() == 2
    assert setup.primary.values() == [b"1" * 100]
    assert len(setup.spool.oldest(REFUSED, 10)) == 1


def test_too_large_is_refused_and_never_tried_elsewhere(setup: Setup) -> None:
    outcomes = setup.publisher.publish([(TOPIC, Record(b"x" * 6000)), (TOPIC, Record(b"ok"))])
    assert isinstance(outcomes[0].error, RecordTooLarge)
    assert (outcomes[0].status, outcomes[0].retryable) == ("rejected", False)
    assert outcomes[1].status == "published"
    assert setup.secondary.appends == 0


def test_a_missing_topic_leaves_the_others_alone(setup: Setup) -> None:
    assert setup.publish(b"1", topic="missing") == ["spooled"]
    assert setup.publish(b"2") == ["primary"]
    setup.secondary.ensure_topic("missing", 1)
    assert setup.publish(b"3", topic="missing") == ["spooled"]
    assert setup.another().drain() == 2
    assert setup.secondary.values("missing") == [b"1", b"3"]


def test_what_cannot_be_drained_does_not_keep_a_region_away(setup: Setup) -> None:
    setup.publish(b"1", topic="missing")
    setup.primary.failure = DOWN
    assert setup.publish(b"2") == ["secondary"]
    setup.primary.failure = None
    setup.clock.now += 100
    setup.publisher.probe()
    assert setup.publish(b"3") == ["primary"]


def test_a_region_that_answers_but_takes_nothing_is_not_let_in(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"1")
    refusing = Region.append

    def refuse(log: Region, topic: str, records: Sequence[Record]) -> list[Receipt]:
        log.appends += 1
        return [Receipt(error=RegionUnavailable("not enough replicas"))] * len(records)

    Region.append = refuse  # type: ignore[method-assign]
    try:
        setup.primary.failure = setup.secondary.failure = None
        setup.clock.now += 100
        setup.publisher.probe()
        appends = setup.primary.appends
        assert setup.publish(b"2") == ["spooled"]
        assert setup.primary.appends == appends, "the background tried it, the request did not"
    finally:
        Region.append = refusing  # type: ignore[method-assign]


def test_too_much_in_flight_goes_to_disk_not_to_another_region(setup: Setup) -> None:
    setup.primary.failure = Backpressure("queue full")
    assert setup.publish(b"1") == ["spooled"]
    assert setup.secondary.appends == 0
    setup.primary.failure = None
    assert setup.publish(b"2") == ["primary"], "the region itself was never given up"


def test_a_full_spool(tmp_path: Path) -> None:
    setup = Setup(tmp_path, spool_bytes=260)
    setup.primary.failure = setup.secondary.failure = DOWN
    assert setup.publish(b"x" * 100) == ["spooled"]
    (outcome,) = setup.publisher.publish([(TOPIC, Record(b"x" * 200))])
    assert (outcome.status, outcome.retryable) == ("rejected", True)
    assert isinstance(outcome.error, StorageExhausted)
    # The rest of its room is too small for what comes, so that it never holds all it may.
    assert "SPOOL_MAX_BYTES" in setup.spool.accepts()
    assert setup.publish(b"x") == ["spooled"], "there is room for less"
    assert setup.spool.accepts() == ""
    setup.primary.failure = Backpressure("queue full")
    (outcome,) = setup.another().publish([(TOPIC, Record(b"x" * 200))])
    assert isinstance(outcome.error, Backpressure)


def test_an_operator_has_the_second_region_used_first(setup: Setup) -> None:
    setup.publisher = setup.another(order=lambda regions: tuple(reversed(regions)))
    assert setup.publish(b"1") == ["secondary"]
    setup.secondary.failure = DOWN
    assert setup.publish(b"2") == ["primary"]


def test_with_all_regions_drained_everything_is_spooled_and_stays_there(setup: Setup) -> None:
    setup.publisher = setup.another(order=lambda regions: ())
    assert setup.publish(b"1", b"2") == ["spooled", "spooled"]
    assert setup.publisher.drain() == 0
    setup.publisher.probe()
    assert setup.spool.size()[0] == 2
    assert setup.another().drain() == 2


def test_both_regions_take_their_share_by_key(setup: Setup) -> None:
    publisher = setup.another(spread=True)
    items = [(TOPIC, Record(b"%d" % n, key=b"service/%d" % (n % 20))) for n in range(100)]
    outcomes = publisher.publish(items)
    by_key: dict[bytes | None, set[str | None]] = {}
    for (_, record), outcome in zip(items, outcomes, strict=True):
        by_key.setdefault(record.key, set()).add(outcome.region)
    # A key has one region, and each region some keys.
    assert all(len(regions) == 1 for regions in by_key.values())
    assert {region for regions in by_key.values() for region in regions} == {
        *("primary", "secondary")
    }
    for region, log in setup.logs.items():
        mine = [r.value for (_, r), o in zip(items, outcomes, strict=True) if o.region == region]
        assert log.values() == mine
    setup.secondary.failure = DOWN
    assert {outcome.region for outcome in publisher.publish(items)} == {"primary"}


def test_the_spool_leaves_room_for_requests(setup: Setup) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        setup.clock.now += seconds

    setup.primary.failure = setup.secondary.failure = DOWN
    assert setup.publish(*(b"%d" % n for n in range(9))) == ["spooled"] * 9
    setup.primary.failure = setup.secondary.failure = None
    publisher = setup.another(drain_rate=6.0, interval=60.0, sleep=sleep)
    assert publisher.drain() == 9
    # Three at a time, six a second.
    assert slept == [0.0, 0.5, 0.5]
    # The next time, and another topic, wait for what the last batch took.
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"9")
    setup.primary.failure = setup.secondary.failure = None
    assert publisher.drain() == 1
    assert slept == [0.0, 0.5, 0.5, 0.5]


def test_the_rate_is_a_bound_over_topics_and_turns(setup: Setup) -> None:
    topics = ("events", "orders", "shipments")
    for log in setup.logs.values():
        for topic in topics[1:]:
            log.ensure_topic(topic, 1)
    for topic in topics:
        for n in range(20):
            setup.spool.append(topic, [Record(b"%d" % n, timestamp=0)])
    began = setup.clock.now

    def sleep(seconds: float) -> None:
        setup.clock.now += seconds

    publisher = setup.another(drain_rate=10.0, interval=2.0, sleep=sleep)
    moved = 0
    while moved < 60:
        moved += publisher.drain()
    # The last batch needs no time behind it.
    assert setup.clock.now - began >= (60 - 3) / 10.0


def test_a_long_drain_lets_the_regions_be_looked_at(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(*(b"%d" % n for n in range(9)))
    setup.primary.failure = setup.secondary.failure = None
    publisher = setup.another(interval=0.0)
    assert [publisher.drain() for _ in range(4)] == [3, 3, 3, 0]


def test_a_client_that_cannot_be_made_is_a_region_that_is_down(setup: Setup) -> None:
    def broken(name: str) -> Region:
        if name == "primary":
            raise RuntimeError("no such file: tls.properties")
        return setup.logs[name]

    setup.publisher._open_region = broken
    assert setup.publish(b"1") == ["secondary"]
    setup.clock.now += 100
    setup.publisher.probe()
    assert "tls.properties" in setup.publisher.states["primary"].error


def _total(name: str) -> float:
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    )


def test_every_event_is_accounted_for(setup: Setup) -> None:
    names = ("published", "spooled", "rejected")
    before = [_total(f"audit_publisher_events_{name}_total") for name in names]
    setup.publish(b"1", b"x" * 6000)
    setup.primary.failure = DOWN
    setup.publish(b"2")
    setup.secondary.failure = DOWN
    setup.publish(b"3", b"4", b"5")
    after = [_total(f"audit_publisher_events_{name}_total") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 3, 1]


def test_many_threads(setup: Setup) -> None:
    def work(number: int) -> None:
        for n in range(10):
            setup.publish(f"{number}-{n}".encode())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    setup.primary.failure = DOWN
    for thread in threads:
        thread.join()
    values = setup.primary.values() + setup.secondary.values()
    assert sorted(values) == sorted(f"{a}-{b}".encode() for a in range(4) for b in range(10))


def test_the_cool_down_grows_with_each_failure_and_ends_with_a_success() -> None:
    clock = Clock()
    breaker = Breaker(2, clock)
    for wait in (2, 4, 8, 16, 16):
        breaker.failed("primary")
        clock.now += wait - 0.01
        assert not breaker.may_probe("primary")
        clock.now += 0.02
        assert breaker.may_probe("primary")
        breaker.answered("primary")
        assert breaker.admits("primary", TOPIC)
    breaker.succeeded("primary", TOPIC)
    breaker.failed("primary")
    clock.now += 2.01
    assert breaker.may_probe("primary")


def test_failures_at_the_same_time_are_one() -> None:
    clock = Clock()
    breaker = Breaker(2, clock)
    assert breaker.failed("primary") is True
    assert [breaker.failed("primary") for _ in range(50)] == [False] * 50
    clock.now += 2.01
    assert breaker.may_probe("primary")


def test_a_broken_spool_takes_no_region_down(setup: Setup) -> None:
    (setup.spool._folder / "publisher.sqlite3").parent.mkdir(parents=True, exist_ok=True)
    (setup.spool._folder / "publisher.sqlite3").write_bytes(b"this is no database" * 100)
    setup.publisher.probe()
    assert setup.publish(b"1") == ["primary"]
    assert setup.publisher.states["primary"].up


def test_what_was_under_way_does_not_bring_a_region_back(setup: Setup) -> None:
    setup.primary.failure = DOWN
    assert setup.publish(b"1") == ["secondary"]
    setup.publisher.heard("primary", TOPIC, {}, 1)
    assert setup.publisher.is_shut("primary")


def test_a_slow_drain_is_cut_into_small_pieces(setup: Setup) -> None:
    slept: list[float] = []
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(*(b"%d" % n for n in range(9)))
    setup.primary.failure = setup.secondary.failure = None

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        setup.clock.now += seconds

    publisher = setup.another(drain_rate=1.0, interval=2.0, sleep=sleep)
    # Two at a time and not three: regions are to be looked at each two seconds.
    assert [publisher.drain() for _ in range(5)] == [4, 2, 2, 1, 0]
    assert slept == [0.0, 2.0, 2.0, 2.0, 2.0]


def test_a_locked_spool_is_tried_once_for_all_that_wait(setup: Setup) -> None:
    tries: list[int] = []

    class Locked(Spool):
        def append(self, topic: str, records: Any) -> None:
            tries.append(len(records))
            raise StorageExhausted("locked") from SpoolUnavailable("locked")

    writer = SpoolWriter(Locked(setup.spool._folder, 1 << 20))
    told: list[Any] = []
    release = threading.Event()
    writer._thread.submit(release.wait)
    for n in range(5):
        writer.add(TOPIC, [Record(b"%d" % n)], told.append)
    release.set()
    eventually(lambda: len(told) == 5)
    assert tries == [5]


def test_what_waits_for_the_disk_is_bounded(setup: Setup) -> None:
    writer = SpoolWriter(setup.spool, max_bytes=100)
    told: list[Any] = []
    release = threading.Event()
    writer._thread.submit(release.wait)
    for _ in range(3):
        writer.add(TOPIC, [Record(b"x" * 60)], told.append)
    refused = [str(each) for each in told]
    # Before anything can fail: the thread would be waited for at exit.
    release.set()
    assert refused == ["No region takes it, and the spool's disk is behind."] * 2
    eventually(lambda: len(told) == 3)
    writer.add(TOPIC, [Record(b"x" * 60)], told.append)
    eventually(lambda: len(told) == 4)
    assert told[2:] == [None, None]


def test_a_region_that_answers_and_then_fails_has_answered(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def submit(topic: str, records: Any, done: Any) -> None:
        done({})
        raise RuntimeError("too late")

    asked: list[Any] = []
    monkeypatch.setattr(setup.primary, "submit", submit)
    monkeypatch.setattr(setup.secondary, "submit", lambda *args: asked.append(args))
    setup.publisher.submit([(TOPIC, Record(b"1"))], told.append)
    assert [[each.region for each in outcomes] for outcomes in told] == [["primary"]]
    assert asked == []


def test_a_region_that_fails_at_once_leaves_it_to_the_next(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(topic: str, records: Any, done: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(setup.primary, "submit", submit)
    assert setup.publish(b"1") == ["secondary"]


class Mute(Region):
    """Says where its topics are, and takes no record."""

    mute = True

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        if self.mute and records:
            self.appends += 1
            return [Receipt(error=DOWN)] * len(records)
        return super().append(topic, records)


def test_a_region_that_answers_and_takes_nothing_costs_one_request_for_each_look(
    setup: Setup, tmp_path: Path
) -> None:
    mute = Mute("primary", tmp_path / "mute.db")
    mute.ensure_topic(TOPIC, 1)
    setup.logs["primary"] = mute
    assert setup.publish(b"0") == ["secondary"]
    before = _total("audit_publisher_failovers_total")
    for _ in range(20):
        setup.clock.now += 17
        setup.publisher.probe()
        tried = mute.appends
        # It answers: one request shows that it does not take records.
        assert not setup.publisher.is_shut("primary")
        assert setup.publish(b"1", b"2") == ["secondary"] * 2
        assert setup.publisher.is_shut("primary")
        assert [setup.publish(b"3") for _ in range(5)] == [["secondary"]] * 5
        assert mute.appends == tried + 1
    # It has not been back for a moment.
    assert _total("audit_publisher_failovers_total") == before
    mute.mute = False
    setup.clock.now += 17
    setup.publisher.probe()
    assert setup.publish(b"4") == ["primary"]
    assert setup.publish(b"5") == ["primary"]


def test_a_trial_of_which_nobody_tells_is_followed_by_another() -> None:
    clock = Clock()
    breaker = Breaker(2, clock)
    breaker.failed("primary")
    assert not breaker.admits("primary", TOPIC)
    breaker.answered("primary")
    assert [breaker.admits("primary", TOPIC) for _ in range(3)] == [True, False, False]
    clock.now += 2.01
    breaker.answered("primary")
    assert [breaker.admits("primary", TOPIC) for _ in range(3)] == [True, False, False]
    breaker.succeeded("primary", TOPIC)
    assert [breaker.admits("primary", TOPIC) for _ in range(3)] == [True, True, True]


class OneDeadPartition(Region):
    """Takes all records but those of one key."""

    dead: bytes | None = b"dead"

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        if self.failure is not None:
            return super().append(topic, records)
        return [
            Receipt(error=RegionUnavailable("no leader"))
            if record.key == self.dead
            else super(OneDeadPartition, self).append(topic, [record])[0]
            for record in records
        ]


def test_a_dead_partition_holds_up_its_own_keys_alone(setup: Setup, tmp_path: Path) -> None:
    log = OneDeadPartition("primary", tmp_path / "partitions.db")
    log.ensure_topic(TOPIC, 1)
    setup.logs["primary"] = log
    keys = [b"dead", b"a", b"b", b"dead", b"c", b"d", b"e", b"dead", b"f"]
    records = [Record(b"%d" % n, key=key, timestamp=0) for n, key in enumerate(keys)]
    setup.spool.append(TOPIC, records)
    for _ in range(3):
        setup.clock.now += 17
        setup.publisher.drain("primary")
    assert log.values() == [b"1", b"2", b"4", b"5", b"6", b"8"]
    assert setup.spool.size()[0] == 3
    log.dead = None
    setup.publisher.drain("primary")
    # Each once, and those of one key in their order.
    assert log.values()[6:] == [b"0", b"3", b"7"]
    assert setup.spool.size()[0] == 0


def test_a_disk_that_is_full_is_told_until_it_takes_records_again(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    def pages(count: int) -> None:
        # To SQLite a file that may not grow is a disk that is full.
        with setup.spool.queue._write() as connection:
            connection.execute(f"PRAGMA max_page_count = {count}")

    setup.spool.append(TOPIC, [Record(b"1", timestamp=0)])
    assert setup.spool.accepts() == ""
    pages(20)
    for _ in range(3):
        with pytest.raises(StorageExhausted, match="full"):
            setup.spool.append(TOPIC, [Record(b"x" * 200_000, timestamp=0)])
    for _ in range(3):
        problem = setup.spool.accepts()
        assert "SPOOL_DIR" in problem
        assert "full" in problem
    # What is small still has room.
    pages(1_000_000)
    assert setup.spool.accepts() == ""
    assert setup.spool.size() == (1, setup.spool.size()[1])
    told = [record.getMessage() for record in caplog.records]
    assert [("refused" in each, "again" in each) for each in told] == [(True, False), (False, True)]


def test_what_changes_is_logged_once(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    setup.publisher._step()
    setup.primary.failure = setup.secondary.failure = DOWN
    for n in range(3):
        setup.publish(b"%d" % n)
        setup.publisher._step()
    assert told() == [
        "Region primary takes nothing for now: down",
        "Region secondary takes nothing for now: down",
        "Events are on disk, in the spool, until a region takes them.",
    ]
    setup.primary.failure = setup.secondary.failure = None
    setup.clock.now += 17
    setup.publisher._step()
    setup.publisher._step()
    assert told()[0] == "Region primary takes records again."
    setup.publisher._step()
    assert told() == []
    assert setup.spool.size()[0] == 0


def test_a_spool_that_cannot_be_used_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(tmp_path)
    (tmp_path / "file").touch()
    setup.spool = Spool(tmp_path / "file" / "spool", 1 << 20)
    publisher = setup.another()
    for _ in range(3):
        publisher._step()
    (said,) = [record.getMessage() for record in caplog.records if "spool" in record.getMessage()]
    assert "AUDIT_PUBLISHER_SPOOL_DIR" in said


class Once(Region):
    """Does not take one value, the first time."""

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        if any(record.value == b"0" for record in records) and not self.appends:
            self.appends += 1
            took = iter(super().append(topic, [each for each in records if each.value != b"0"]))
            failed = Receipt(error=RegionUnavailable("no leader"))
            return [failed if each.value == b"0" else next(took) for each in records]
        return super().append(topic, records)


def test_a_key_s_later_records_wait_for_the_one_that_failed(setup: Setup, tmp_path: Path) -> None:
    log = Once("primary", tmp_path / "once.db")
    log.ensure_topic(TOPIC, 1)
    setup.logs["primary"] = log
    keys = [b"a", b"b", b"c", b"a", b"d", b"e", b"a"]
    records = [Record(b"%d" % n, key=key, timestamp=0) for n, key in enumerate(keys)]
    setup.spool.append(TOPIC, records)
    setup.publisher.drain("primary")
    assert log.values() == [b"1", b"2", b"4", b"5"]
    setup.clock.now += 17
    setup.publisher.drain("primary")
    assert log.values() == [b"1", b"2", b"4", b"5", b"0", b"3", b"6"]


def test_a_region_that_was_silent_is_back_when_it_answers(setup: Setup) -> None:
    setup.primary.failure = DOWN
    assert setup.publish(b"0") == ["secondary"]
    setup.clock.now += 17
    # It does not answer a question either.
    setup.publisher.probe()
    assert setup.publisher.is_shut("primary")
    setup.primary.failure = None
    setup.clock.now += 17
    setup.publisher.probe()
    # All at once: as a standby it may get no request until the other one is gone.
    breaker = setup.publisher._breaker
    assert [breaker.admits("primary", TOPIC) for _ in range(3)] == [True] * 3
    # If it takes nothing all the same, it is on trial the next time.
    breaker.failed("primary")
    breaker.answered("primary")
    assert [breaker.admits("primary", TOPIC) for _ in range(3)] == [True, False, False]
