"""What an operator wants of regions, and what publisher processes say they see."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

from audit_logging.background import Loop
from audit_publisher.durable import control
from audit_publisher.durable.control import NOTHING, Wishes, arranged
from audit_publisher.models import PublisherProcess, RegionWish
from audit_publisher.operating import reports
from audit_publisher.operating.reports import Hour, Reporter, prune
from tests.unit.audit_publisher.operating import heard
from tests.unit.audit_publisher.test_publish import DOWN, TOPIC, Setup

REGIONS = ("primary", "secondary")


@pytest.fixture(autouse=True)
def no_thread(monkeypatch: pytest.MonkeyPatch, configure: Any) -> Iterator[None]:
    """Wishes are read when a test says so; a thread beside it would lock the table."""
    monkeypatch.setattr(Loop, "ensure_running", lambda self: None)
    control._wishes = control._snapshot()
    yield
    control._wishes = control._snapshot()


# -- the order ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wishes(), ("primary", "secondary")),
        (Wishes(first="secondary"), ("secondary", "primary")),
        (Wishes(first="primary"), ("primary", "secondary")),
        (Wishes(first="elsewhere"), ("primary", "secondary")),
        (Wishes(frozenset({"primary"})), ("secondary",)),
        (Wishes(frozenset({"primary"}), "primary"), ("secondary",)),
        (Wishes(frozenset({"secondary"}), "secondary"), ("primary",)),
        (Wishes(frozenset(REGIONS)), ()),
        (Wishes(frozenset({"elsewhere"})), ("primary", "secondary")),
    ],
)
def test_the_order_that_is_wished(wanted: Wishes, expected: tuple[str, ...]) -> None:
    assert arranged(REGIONS, wanted) == expected


def test_others_keep_their_order_behind_the_first() -> None:
    assert arranged(("a", "b", "c", "d"), Wishes(frozenset({"b"}), "d")) == ("d", "a", "c")


@pytest.mark.django_db
def test_wishes_are_read_once_and_then_in_the_background(
    django_assert_num_queries: Any,
) -> None:
    RegionWish.objects.create(region="primary", drained=True)
    assert control.order(REGIONS) == ("secondary",)
    with django_assert_num_queries(0):
        assert control.order(REGIONS) == ("secondary",)
        assert not control.takes("primary")
        assert control.takes("secondary")
    RegionWish.objects.create(region="secondary", first=True)
    assert control.wishes().first is None
    assert control.refresh()
    assert control.wishes() == Wishes(frozenset({"primary"}), "secondary")


@pytest.mark.django_db
def test_a_database_that_is_down_leaves_the_last_wishes_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    RegionWish.objects.create(region="primary", drained=True)
    assert control.refresh()

    def down(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("the database is down")

    with connection.execute_wrapper(down):
        assert not control.refresh()
        assert control.order(REGIONS) == ("secondary",)
    assert control.refresh()


@pytest.mark.django_db
def test_without_a_table_nothing_is_wished() -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("no such table: audit_publisher_regionwish")

    with connection.execute_wrapper(missing):
        assert control.order(REGIONS) == REGIONS
    assert control.wishes() == NOTHING


@pytest.mark.django_db
def test_in_active_active_mode_no_region_is_first(configure: Any) -> None:
    RegionWish.objects.create(region="secondary", first=True, drained=False)
    control.refresh()
    assert control.order(REGIONS) == ("secondary", "primary")
    configure(REGION_MODE="active-active")
    control.refresh()
    assert control.order(REGIONS) == REGIONS
    RegionWish.objects.update(drained=True)
    control.refresh()
    assert control.order(REGIONS) == ("primary",)


@pytest.mark.django_db
def test_one_region_at_most_is_first() -> None:
    RegionWish.objects.create(region="primary", first=True)
    with pytest.raises(DatabaseError):
        RegionWish.objects.create(region="secondary", first=True)


# -- reports ------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.django_db
def test_a_process_says_what_it_sees(setup: Setup, tmp_path: Path) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publisher.probe()
    assert setup.publish(b"1", b"2") == ["spooled", "spooled"]
    reporter = Reporter(Clock())
    reporter.tell(setup.publisher)
    assert reporter.flush()
    row = PublisherProcess.objects.get()
    state = row.state
    assert state["order"] == ["primary", "secondary"]
    assert state["regions"]["primary"]["up"] is False
    assert state["regions"]["primary"]["open"] is True
    assert state["regions"]["primary"]["error"]
    spool = state["spool"]
    assert (spool["records"], spool["refused"], spool["drain"]) == (2, 0, "waiting")
    assert spool["bytes"] == spool["used_bytes"] == setup.spool.size()[1]
    assert spool["folder"] == str(tmp_path / "spool")
    assert abs(spool["oldest"] - time.time()) < 60
    assert row.minutes[-1][5] == spool["used_bytes"]


@pytest.mark.django_db
def test_a_process_says_that_its_spool_takes_nothing(setup: Setup) -> None:
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"1")
    reporter = Reporter(clock := Clock())
    reporter.tell(setup.publisher)
    assert reporter.flush()
    assert PublisherProcess.objects.get().state["spool"]["refuses"] == ""
    setup.spool.accepts = lambda: "the spool is full"  # type: ignore[method-assign]
    clock.now += 1
    assert reporter.flush(), "that is news"
    assert PublisherProcess.objects.get().state["spool"]["refuses"] == "the spool is full"


@pytest.mark.django_db
def test_a_wish_that_reached_the_process_is_in_its_report(setup: Setup) -> None:
    RegionWish.objects.create(region="primary", drained=True)
    control.refresh()
    state = reports.see(setup.publisher)
    assert (state["order"], state["drained"]) == (["secondary"], ["primary"])


@pytest.mark.django_db
def test_it_is_written_when_there_is_news_and_now_and_then_otherwise(setup: Setup) -> None:
    clock = Clock()
    reporter = Reporter(clock)
    assert not reporter.flush()

    reporter.tell(setup.publisher)
    told = reporter.flush

    assert told()
    clock.now += 1
    assert not told()
    clock.now += 8
    assert not told(), "nothing is new"
    clock.now += 2
    assert told(), "it lives"
    # What a region does is told at once; numbers a little later.
    setup.publisher.probe()
    assert told()
    clock.now += 1
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"1")
    assert told()
    clock.now += 1
    setup.publish(b"2")
    assert not told()
    clock.now += 5
    assert told()
    assert PublisherProcess.objects.get().state["spool"]["records"] == 2


@pytest.mark.django_db
def test_a_database_that_is_down_never_disturbs_the_publisher(setup: Setup) -> None:
    reporter = Reporter(Clock())

    def down(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("the database is down")

    with connection.execute_wrapper(down):
        reporter.tell(setup.publisher)
        assert reporter._step() > 1
    # The test's own transaction is none of the reporter's.
    transaction.set_rollback(False)
    assert reporter._step() == 1.0
    assert PublisherProcess.objects.count() == 1


@pytest.mark.django_db
def test_an_upkeep_that_hangs_is_seen(setup: Setup) -> None:
    clock = Clock()
    reporter = Reporter(clock)
    reporter.tell(setup.publisher)
    reporter.flush()
    assert not PublisherProcess.objects.get().state["upkeep_late"]
    clock.now += reports.STALE + 1
    assert reporter.flush()
    assert PublisherProcess.objects.get().state["upkeep_late"]


@pytest.mark.django_db
def test_what_cannot_be_seen_never_raises() -> None:
    reporter = Reporter(Clock())
    reporter.tell(object())  # type: ignore[arg-type]
    assert reporter._step() > 1


@pytest.mark.django_db
def test_the_silent_are_forgotten(setup: Setup) -> None:
    reporter = Reporter(Clock())
    reporter.tell(setup.publisher)
    reporter.flush()
    assert prune() == 0
    assert prune(time.time() + reports.FORGET + 1) == 1
    assert not PublisherProcess.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("waits", "left"), [(False, 0), (True, 1)])
def test_who_ends_well_is_no_ghost_unless_something_waits(
    setup: Setup, waits: bool, left: int
) -> None:
    heard(pid=1)
    if waits:
        setup.primary.failure = setup.secondary.failure = DOWN
        setup.publish(b"1")
    reporter = Reporter(Clock())
    reporter.leave()
    reporter.tell(setup.publisher)
    reporter.flush()
    assert PublisherProcess.objects.count() == 2
    # Long enough for the slowest machine; it returns as soon as it is done.
    reporter.leave(30)
    assert PublisherProcess.objects.count() == 1 + left
    assert PublisherProcess.objects.filter(pid=1).exists(), "the others stay"


@pytest.mark.django_db
def test_a_database_that_hangs_holds_up_no_stop(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = Reporter(Clock())
    reporter.tell(setup.publisher)
    reporter.flush()
    go_on, asked = threading.Event(), threading.Event()

    def hangs() -> int:
        asked.set()
        go_on.wait()
        raise DatabaseError("too late")

    monkeypatch.setattr(reports, "forget", hangs)
    reporter.leave(0.05)
    assert asked.wait(30)
    go_on.set()
    assert PublisherProcess.objects.count() == 1


def test_an_hour_by_minutes(setup: Setup) -> None:
    clock = Clock()
    hour = Hour(clock)
    setup.publish(b"1", b"2")
    hour.count(0)
    clock.now += 60
    setup.primary.failure = setup.secondary.failure = DOWN
    setup.publish(b"3")
    hour.count(99)
    hour.count(98)
    assert hour.minutes == [[16, 2, 0, 0, 0, 0], [17, 0, 1, 0, 0, 98]]
    for _ in range(100):
        clock.now += 60
        hour.count(0)
    assert len(hour.minutes) == 60


def test_looking_makes_no_spool(setup: Setup, tmp_path: Path) -> None:
    state = reports.see(setup.publisher)
    assert state["spool"]["records"] == 0
    assert not (tmp_path / "spool").exists()
    assert TOPIC not in str(state)
