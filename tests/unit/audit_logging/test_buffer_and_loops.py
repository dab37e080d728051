"""The small parts between the threads: buffer, breaker, background loops, metrics."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from django.test import RequestFactory
from hypothesis import given
from hypothesis import strategies as st

from audit_logging import background, metrics
from audit_logging.background import Loop, Snapshot
from audit_logging.breaker import Breaker
from audit_logging.buffer import Buffer
from audit_logging.capture import Exchange
from audit_logging.policy import Decision
from tests.support import eventually, in_child


def exchange(body: bytes = b"") -> Exchange:
    made = Exchange(RequestFactory().get("/x"), Decision(max_body_bytes=1000))
    made.response_body = body
    return made


# -- buffer ------------------------------------------------------------------------------------


@given(
    st.integers(1, 5),
    st.integers(3000, 9000),
    st.lists(st.one_of(st.integers(0, 4000), st.none()), max_size=30),
    st.booleans(),
)
def test_the_buffer_is_bounded_by_bytes_and_where_nobody_helps_by_count(
    events: int, size: int, steps: list[int | None], overflow: bool
) -> None:
    buffer = Buffer(events, size, overflow=overflow)
    numbers, expected_numbers = count(), count()
    held: list[Exchange] = []
    for step in steps:
        if step is None:
            taken = buffer.take(2)
            assert taken == held[:2]
            held = held[2:]
        else:
            new = exchange(b"x" * step)
            used = sum(item.weigh() for item in held)
            expected = None
            if len(held) >= events and not overflow:
                expected = "buffer_full"
            elif held and used + new.weigh() > size:
                expected = "buffer_bytes"
            else:
                held.append(new)
            assert buffer.put(new, numbers.__next__) == expected
            # Also one that is refused has its number: it is missed by it.
            assert new.seq == next(expected_numbers)
        assert len(buffer) == len(held)
        assert buffer.bytes == sum(item.weigh() for item in held)
        assert buffer.nearly_full == (len(held) >= 0.8 * events or buffer.bytes >= 0.8 * size)


# -- breaker -----------------------------------------------------------------------------------


def test_the_breaker_opens_for_longer_and_longer_and_closes_at_once() -> None:
    now = [100.0]
    breaker = Breaker(first=1, longest=8, clock=lambda: now[0])
    assert breaker.closed
    assert breaker.allows
    for failures in range(12):
        breaker.failed()
        assert not breaker.closed
        assert not breaker.allows
        longest = min(8, 2**failures)
        now[0] += longest * 0.49
        assert not breaker.allows
        now[0] += longest * 1.02
        assert breaker.allows
    breaker.succeeded()
    assert breaker.closed
    breaker.failed(retry_after=60)
    now[0] += 59
    assert not breaker.allows
    now[0] += 2
    assert breaker.allows


def test_a_breaker_that_is_half_open_admits_one_at_a_time() -> None:
    now = [100.0]
    breaker = Breaker(first=1, longest=8, clock=lambda: now[0])
    assert breaker.admits(5)
    assert breaker.admits(5)
    breaker.failed()
    assert not breaker.admits(5)
    now[0] += 1.5
    assert breaker.admits(5)
    assert not breaker.admits(5)
    assert not breaker.allows
    # The one that was admitted died without a word.
    now[0] += 5
    assert breaker.admits(5)
    breaker.succeeded()
    assert breaker.admits(5)
    assert breaker.allows


def test_no_wish_closes_the_breaker_for_good() -> None:
    now = [100.0]
    breaker = Breaker(clock=lambda: now[0])
    breaker.failed(retry_after=99_999_999)
    now[0] += 59
    assert not breaker.allows
    now[0] += 2
    assert breaker.allows


# -- loops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_loop_survives_whatever_its_step_raises(error: type[BaseException]) -> None:
    calls: list[int] = []

    def step() -> float:
        calls.append(1)
        if len(calls) < 3:
            raise error("no")
        return 60

    loop = Loop(step, name="t", on_error=0.001)
    assert not loop.running
    loop.ensure_running()
    eventually(lambda: len(calls) == 3)
    assert loop.running
    loop.wake()
    eventually(lambda: len(calls) == 4)
    assert loop.stop(5)
    assert not loop.running
    loop.ensure_running()
    assert not loop.running


def test_many_callers_start_one_thread() -> None:
    started: list[int] = []

    def step() -> float:
        started.append(threading.get_ident())
        return 60

    loop = Loop(step, name="t")
    threads = [threading.Thread(target=loop.ensure_running) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: started)
    loop.stop(5)
    assert len(set(started)) == 1


def test_a_start_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(lambda: 60, name="t")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            loop.ensure_running()
    loop.ensure_running()
    assert loop.running
    loop.stop(5)


@pytest.mark.parametrize("hooks", [True, False])
def test_a_forked_child_starts_a_thread_of_its_own(
    hooks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Python's at-fork hooks, and where (as under uWSGI) nobody calls them."""
    calls: list[int] = []

    def step() -> float:
        calls.append(os.getpid())
        return 0.01

    loop = Loop(step, name="t")
    loop.ensure_running()
    eventually(lambda: calls)
    if not hooks:
        monkeypatch.setattr(background, "_instances", [])
    # The worst moment: another thread is just starting the loop.
    loop._locks[os.getpid()].acquire()

    def child() -> bool:
        assert not loop.running
        loop.ensure_running()
        eventually(lambda: os.getpid() in calls, 5)
        return loop.running

    assert in_child(child)
    loop._locks[os.getpid()].release()
    assert loop.running
    loop.stop(5)


def test_a_snapshot_that_loads_first() -> None:
    snapshot = Snapshot(lambda: "loaded", initial="initial", interval=60, name="t", load_first=True)
    assert snapshot.get() == "loaded"
    assert snapshot.loaded_at is not None
    snapshot.stop()


# -- metrics -----------------------------------------------------------------------------------


def test_metrics_count_and_are_exported(counted: Callable[..., float]) -> None:
    import prometheus_client

    metrics.rejected.inc(3, reason="spool_full")
    assert counted(metrics.rejected, reason="spool_full") == 3
    assert counted(metrics.rejected) == 3
    metrics.spool_bytes.set(17, spool="capture")
    page = prometheus_client.generate_latest().decode()
    assert 'audit_log_rejected_total{reason="spool_full"}' in page
    assert 'audit_log_spool_bytes{spool="capture"} 17.0' in page


def test_every_metric_says_what_it_means_and_every_reason_is_explained() -> None:
    for metric in metrics.METRICS:
        assert metric.name.startswith("audit_log_")
        assert metric.help.endswith(".")
    for reason in (
        "buffer_full", "buffer_bytes", "spool_full", "spool_unavailable", "overflow_drop",
        "shutdown", "dead_letters_full", "build_failed",
    ):  # fmt: skip
        assert reason in metrics.rejected.help


def test_what_comes_before_a_load_is_the_background_threads_alone() -> None:
    threads: list[threading.Thread] = []
    loaded = threading.Event()

    def load() -> int:
        if threads:
            loaded.set()
        return 1

    snapshot = Snapshot(
        load,
        initial=0,
        interval=0.01,
        name="before",
        load_first=True,
        before=lambda: threads.append(threading.current_thread()),
    )
    assert snapshot.refresh()
    assert threads == []
    assert snapshot.get() == 1
    assert loaded.wait(20)
    snapshot.stop()
    assert {thread.name for thread in threads} == {"before"}


def test_threads_lose_no_count(counted: Callable[..., float]) -> None:
    def work() -> None:
        for _ in range(2000):
            metrics.captured.inc()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(metrics.captured) == 8000


def test_a_fork_waits_until_nobody_is_within_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks, taken by a thread that the child has not, would never be given back there."""
    entered, leave = threading.Event(), threading.Event()
    within: list[bool] = []

    class Slow:
        def inc(self, amount: float) -> None:
            within.append(True)
            entered.set()
            leave.wait(10)
            within.clear()

    monkeypatch.setattr(metrics, "_FORK_WAITS", 10.0)
    monkeypatch.setattr(metrics.captured, "_exported", Slow())
    monkeypatch.setattr(metrics.captured, "due", {(): 1.0})
    thread = threading.Thread(target=metrics.export)
    thread.start()
    assert entered.wait(5)
    threading.Timer(0.05, leave.set).start()
    assert in_child(lambda: not within)
    thread.join()


def test_a_fork_does_not_wait_for_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Stuck:
        def inc(self, amount: float) -> None:
            entered.set()
            leave.wait(30)

    monkeypatch.setattr(metrics.captured, "_exported", Stuck())
    monkeypatch.setattr(metrics.captured, "due", {(): 1.0})
    thread = threading.Thread(target=metrics.export)
    thread.start()
    assert entered.wait(5)

    def child() -> bool:
        metrics.export()
        return True

    try:
        for _ in range(2):
            assert in_child(child)
            assert not leave.is_set()
            assert thread.is_alive(), "the fork waited until the disk was done"
            assert metrics._export_lock.locked(), "what the exporting thread holds was given back"
    finally:
        leave.set()
        thread.join()
    metrics.export()


def test_a_fork_while_another_thread_counts_does_not_lock_the_child() -> None:
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            metrics.delivered.inc(status="published")

    def child() -> bool:
        done: list[Any] = []
        worker = threading.Thread(
            target=lambda: done.append(metrics.delivered.inc(status="published")), daemon=True
        )
        worker.start()
        worker.join(5)
        return bool(done)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert all(in_child(child) for _ in range(15))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
