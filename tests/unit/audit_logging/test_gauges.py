"""What an operator sees of buffer, spools and breakers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit_logging import metrics
from audit_logging.breaker import Breaker
from audit_logging.conf import LoggingSettings
from audit_logging.gauges import EVERY, SpoolGauges
from audit_logging.outbox import STREAM, Outbox
from audit_logging.spool import DurableQueue, Record


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_spools_gauges(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "spool.sqlite3", max_bytes=10_000, clock=lambda: 5000.0)
    gauges = SpoolGauges(queue, "s", "test")
    gauges.measure()
    assert not queue.path.exists()
    queue.append("s", [Record(b"x" * 2468)])
    gauges.measure()
    assert metrics.spool_bytes.value(spool="test") == 2500
    assert metrics.spool_fill.value(spool="test") == 0.25
    assert metrics.spool_oldest.value(spool="test") == 5000.0
    queue.settle("s", queue.lease("s", seconds=1, owner="me"))
    gauges.measure()
    assert metrics.spool_bytes.value(spool="test") == 0
    assert metrics.spool_oldest.value(spool="test") == 0


def test_what_others_do_to_the_spool_is_seen_now_and_then(tmp_path: Path) -> None:
    clock = Clock()
    queue = DurableQueue(tmp_path / "spool.sqlite3")
    gauges = SpoolGauges(queue, "s", "shared", clock)
    gauges.now_and_then()
    queue.append("s", [Record(b"x")])
    gauges.now_and_then()
    assert metrics.spool_bytes.value(spool="shared") == 0
    clock.now += EVERY
    gauges.now_and_then()
    assert metrics.spool_bytes.value(spool="shared") == 33


def test_a_disk_that_fails_leaves_the_gauges(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite3"
    path.write_bytes(b"this is no database, however long one reads it" * 100)
    SpoolGauges(DurableQueue(path), "s", "damaged").measure()
    assert metrics.spool_bytes.value(spool="damaged") == 0


def test_a_spool_of_an_earlier_run_is_seen_before_anything_is_sent(
    options: Callable[..., LoggingSettings],
) -> None:
    def refuse(batch: bytes, count: int) -> None:
        raise OSError("the broker is away")

    outbox = Outbox(refuse, options())
    outbox.spool.append(STREAM, [Record(b"x" * 67)])
    outbox.replay()
    assert metrics.spool_bytes.value(spool="capture") == 99
    assert metrics.breaker_open.value(to="broker") == 1


def test_a_breaker_is_shown_while_it_is_open() -> None:
    breaker = Breaker(to="somebody")
    breaker.succeeded()
    assert ("somebody",) not in metrics.breaker_open.values()
    breaker.failed()
    breaker.failed()
    assert metrics.breaker_open.value(to="somebody") == 1
    breaker.succeeded()
    assert metrics.breaker_open.value(to="somebody") == 0


@pytest.mark.parametrize(
    ("events", "size", "ratio"), [(0, 0, 0.0), (5, 0, 0.5), (1, 900, 0.9), (12, 0, 1.2)]
)
def test_the_buffer_is_as_full_as_its_fuller_bound(events: int, size: int, ratio: float) -> None:
    from audit_logging.transport import show_buffer

    class Full:
        max_events, max_bytes, bytes = 10, 1000, size

        def __len__(self) -> int:
            return events

    show_buffer(Full())  # type: ignore[arg-type]
    assert metrics.buffer_fill.value() == ratio
    assert metrics.buffer_depth.value() == events
