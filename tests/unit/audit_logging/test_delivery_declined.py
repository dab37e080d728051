"""Batches that are answered and yet not taken: only what is at fault waits, and not for ever."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from audit_logging import metrics
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import GIVE_UP_SECONDS, RETRY_STREAM, Deliverer, Publisher
from audit_logging.outcome import Refusal
from tests.support import fork
from tests.unit.audit_logging.test_delivery import (
    LINES,
    Counted,
    Script,
    dead,
    give,
    items,
    script,
    server,
    waiting,
)

__all__ = ["script", "server"]

BAD = json.dumps({"request_id": "bad", "request_body": "' OR 1=1 --"})
Answer = tuple[int, dict[str, str], bytes]


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(
    server: Any, clock: Clock, options: Callable[..., LoggingSettings]
) -> Iterator[Callable[..., Deliverer]]:
    def make(**values: Any) -> Deliverer:
        chosen = options(
            PUBLISHER_URL=f"http://127.0.0.1:{server.server_port}", DELIVERY_RETRIES=0, **values
        )
        made = Deliverer(Publisher(chosen), chosen, sleep=lambda seconds: None, clock=clock)
        made.start = lambda: None  # type: ignore[method-assign]
        return made

    return make


def firewall(script: Script, status: int) -> Callable[[list[str]], Answer]:
    """Refuses whatever holds the bad event."""
    return lambda lines: (status, {}, b"<h1>No</h1>") if BAD in lines else script.take(lines)


def drain(deliverer: Deliverer, clock: Clock, seconds: float) -> None:
    """Let the drain run for so long by its own clock."""
    until = clock.now + seconds
    while clock.now < until:
        if deliverer.drain_step():
            clock.now += 1.0


@pytest.mark.parametrize("status", [403, 404, 500])
def test_only_the_event_at_fault_waits_and_then_becomes_a_dead_letter(
    make: Any, script: Script, clock: Clock, counted: Counted, status: int
) -> None:
    script.answer = firewall(script, status)
    deliverer = make()
    good = [json.dumps({"request_id": f"good-{n}"}) for n in range(200)]
    give(deliverer, [*good[:50], BAD, *good[50:100]])
    for n in range(100, 200, 10):
        give(deliverer, good[n : n + 10])
    assert sorted(script.stored) == sorted(good[100:])
    assert deliverer.breaker.closed
    drain(deliverer, clock, 15)
    assert sorted(script.stored) == sorted(good)
    assert waiting(deliverer) == [BAD]
    assert len(script.requests) < 40
    # Not while the reason may be a mistake that somebody is about to mend.
    drain(deliverer, clock, GIVE_UP_SECONDS - 60)
    assert waiting(deliverer) == [BAD]
    assert dead(deliverer) == []
    drain(deliverer, clock, 700)
    assert waiting(deliverer) == []
    assert dead(deliverer) == [BAD]
    assert counted(metrics.dead_lettered) == 1
    assert counted(metrics.rejected) == 0
    assert len(script.requests) < 70
    assert deliverer.breaker.closed


@pytest.mark.parametrize(("status", "body"), [(401, b"{}"), (302, b""), (200, b"<html>")])
def test_what_no_event_is_the_reason_for_costs_no_event(
    make: Any, script: Script, clock: Clock, status: int, body: bytes
) -> None:
    script.answer = lambda lines: (status, {}, body)
    deliverer = make()
    give(deliverer, LINES)
    give(deliverer, [BAD])
    drain(deliverer, clock, 5 * GIVE_UP_SECONDS)
    assert sorted(waiting(deliverer)) == sorted([*LINES, BAD])
    assert dead(deliverer) == []
    assert len(deliverer.spool.read(RETRY_STREAM, 0)) == 2  # never split
    script.answer = script.take
    drain(deliverer, clock, 400)
    assert sorted(script.stored) == sorted([*LINES, BAD])


def test_the_time_that_the_publisher_was_away_does_not_count_against_an_event(
    make: Any, script: Script, clock: Clock
) -> None:
    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    give(deliverer, [BAD])
    for _ in range(50):
        deliverer.breaker.succeeded()
        assert deliverer.drain_step() == 0.5
        assert not deliverer.breaker.closed
    clock.now += 10 * GIVE_UP_SECONDS
    script.answer = lambda lines: (500, {}, b"")
    deliverer.breaker.succeeded()
    assert deliverer.drain_step() == 0.0
    assert waiting(deliverer) == [BAD]
    script.answer = script.take
    drain(deliverer, clock, 5)
    assert script.stored == [BAD]


def test_with_the_dead_letters_full_it_waits_on(
    make: Any, script: Script, clock: Clock, counted: Counted
) -> None:
    script.answer = lambda lines: (403, {}, b"")
    deliverer = make(SPOOL_MAX_BYTES=100_000)
    deliverer._bury([Refusal(json.dumps({"body": "x" * 99_000}), "no")])
    give(deliverer, [json.dumps({"body": "y" * 5_000})])
    drain(deliverer, clock, 3 * GIVE_UP_SECONDS)
    assert len(waiting(deliverer)) == 1
    assert counted(metrics.rejected) == 0


def test_events_to_be_sent_again_let_others_pass(
    make: Any, script: Script, clock: Clock, counted: Counted
) -> None:
    def answer(lines: list[str]) -> Answer:
        script.stored += [line for line in lines if line != BAD]
        again = {"status": "rejected", "retryable": True}
        return 200, {}, items(again if line == BAD else {"status": "published"} for line in lines)

    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    give(deliverer, [BAD, LINES[0]])
    for line in LINES[1:]:
        give(deliverer, [line])
    deliverer.breaker.succeeded()
    script.answer = answer
    before = len(script.requests)
    for _ in range(9):
        assert deliverer.drain_step() == 0.0
    assert deliverer.drain_step() == 1.0  # it waits, and asks for nothing meanwhile
    assert len(script.requests) - before == 9
    assert script.stored == LINES
    assert waiting(deliverer) == [BAD]
    assert counted(metrics.spooled) == 9
    drain(deliverer, clock, 5 * GIVE_UP_SECONDS)
    assert waiting(deliverer) == [BAD]


def test_several_processes_drain_one_spool_and_send_each_batch_once(
    make: Any, script: Script
) -> None:
    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    batches = [[json.dumps({"request_id": f"{n}-{m}"}) for m in range(3)] for n in range(60)]
    for batch in batches:
        give(deliverer, batch)
    script.answer = script.take
    deliverer.spool.close()
    children = []
    for _ in range(3):
        child = fork()
        if child == 0:
            status = 1
            try:
                mine = make()
                while mine.drain_step() == 0.0:
                    pass
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
    assert sorted(script.stored) == sorted(line for batch in batches for line in batch)
    assert waiting(deliverer) == []
