"""A worker's metrics over its port: of all its processes."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import eventually
from tests.unit.audit_logging.test_delivery import Script, script, server

from .test_worker import Installation, broker_url, installation, send

__all__ = ["broker_url", "installation", "script", "send", "server"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("broker_url", ["durable"], indirect=True),
]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found: int = taken.getsockname()[1]
    return found


def value(port: int, name: str, **labels: str) -> float | None:
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
    except URLError:
        return None
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_the_port_tells_what_all_processes_of_a_worker_did(
    installation: Installation, script: Script, send: Any, port: int, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    installation.environ["TMPDIR"] = str(temporary)
    worker = installation.worker("--concurrency", "2", "--metrics-port", str(port))
    send(1)
    send(2)

    def delivered() -> float | None:
        return value(port, "audit_log_delivered_total", status="published")

    eventually(lambda: delivered() == 6, 90, installation.said)
    assert value(port, "audit_log_delivery_seconds_count") == 2
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, installation.said()
    assert list(temporary.glob("audit-metrics-*")) == []


def test_a_port_that_is_taken_stops_the_worker_with_a_sentence(
    installation: Installation, port: int
) -> None:
    with socket.create_server(("", port)):
        worker = installation.worker("--metrics-port", str(port))
        assert worker.wait(90) == 1
    assert f"Metrics cannot be served on port {port}" in installation.said()
