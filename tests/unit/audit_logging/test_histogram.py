"""A histogram that the request path may write to."""

from __future__ import annotations

import os
import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from audit_logging.histogram import Histogram
from tests.support import fork


def make() -> Histogram:
    return Histogram("added_seconds", "Help.", (0.1, 1.0))


def test_each_observation_is_in_its_bucket_and_all_above() -> None:
    histogram = make()
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    buckets, total = histogram.read()
    assert buckets == [(0.1, 2), (1.0, 3), (float("inf"), 4)]
    assert total == pytest.approx(7.65)
    assert histogram.value() == 4


def test_it_waits_for_nobody_and_what_waits_is_bounded() -> None:
    histogram = make()
    with histogram._lock:
        requests = threading.Thread(target=lambda: [histogram.observe(0.5) for _ in range(2000)])
        requests.start()
        requests.join(20)
        assert not requests.is_alive()
    # Nobody has asked yet: the next to observe sorts them.
    histogram.observe(0.5)
    assert len(histogram._waiting) == 0
    assert histogram.value() == 2001


def test_many_threads_lose_no_observation() -> None:
    histogram = make()
    threads = [
        threading.Thread(target=lambda: [histogram.observe(0.5) for _ in range(5000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        histogram.read()
    assert histogram.value() == 20_000


def test_prometheus_reads_it() -> None:
    histogram = make()
    histogram.observe(0.5)

    class Collector:
        def collect(self) -> list:
            return [histogram.family()]

    registry = CollectorRegistry()
    registry.register(Collector())  # type: ignore[arg-type]
    page = generate_latest(registry).decode()
    assert 'added_seconds_bucket{le="0.1"} 0.0' in page
    assert 'added_seconds_bucket{le="+Inf"} 1.0' in page
    assert "added_seconds_sum 0.5" in page
    assert "added_seconds_count 1.0" in page


def test_a_child_hands_on_its_own_observations_alone() -> None:
    histogram = make()
    histogram._in_files = True
    histogram.observe(0.5)
    reader, writer = os.pipe()
    with histogram._lock:  # as another thread may hold it at the fork
        pid = fork()
        if pid == 0:
            histogram.observe(0.7)
            os.write(writer, repr(histogram.take_due()).encode())
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"{(): [0.7]}"
    assert histogram.take_due() == {(): [0.5]}
    assert histogram.take_due() == {}
    os.close(reader)
    os.close(writer)
