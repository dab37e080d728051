"""Probes and metrics: what they say, and which setting they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from audit_publisher import eventlog, health, publish, routing
from audit_publisher.conf import conf
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.models import TopicRoute
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import URL, Configure
from tests.unit.audit_publisher.test_views import post


@pytest.fixture(autouse=True)
def not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_started", False)


def look() -> None:
    """What the background does first."""
    publish.get_publisher().probe()


def test_nothing_is_promised_before_the_first_look(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish.Publisher, "start", lambda self: None)
    for probe in ("ready", "startup"):
        assert api.get(f"/health/{probe}").status_code == 503
    assert api.get("/health/live").status_code == 200
    look()
    assert api.get("/health/ready").status_code == 200


def test_all_is_well(api: Client) -> None:
    look()
    for probe in ("live", "ready", "startup"):
        response = api.get(f"/health/{probe}")
        assert (response.status_code, response.json()["status"]) == (200, "ok"), probe
    report = api.get("/health/ready").json()
    assert report["regions"] == {"primary": {"up": True, "missing_topics": []}}
    assert report["spool"]["records"] == 0


def test_every_region_down_is_degraded_while_the_disk_takes_events(
    api: Client, configure: Configure
) -> None:
    configure(PRIMARY_URL="kafka://127.0.0.1:1", REQUEST_TIMEOUT=0.3)
    look()
    response = api.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "AUDIT_PUBLISHER_PRIMARY_URL" in response.json()["problems"][0]
    assert "kafka://127.0.0.1:1" in response.json()["problems"][0]


def test_nowhere_durable(api: Client, configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configure(
        PRIMARY_URL=f"local://{tmp_path}/file/log.sqlite3", SPOOL_DIR=tmp_path / "file" / "spool"
    )
    look()
    response = api.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (503, "failing")
    assert any("AUDIT_PUBLISHER_SPOOL_DIR" in line for line in response.json()["problems"])
    assert api.get("/health/live").status_code == 200


class Strict(LocalEventLog):
    """A region that makes no topic by itself, as Kafka."""


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalEventLog:
    log = Strict("primary", tmp_path / "strict.sqlite3")
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: log)
    return log


def test_a_wrong_default_topic_is_found_before_traffic(api: Client, strict: LocalEventLog) -> None:
    look()
    response = api.get("/health/ready")
    assert response.status_code == 503
    (problem,) = response.json()["problems"]
    assert "AUDIT_PUBLISHER_DEFAULT_TOPIC" in problem
    assert "api-audit-events" in problem
    assert api.get("/health/startup").status_code == 503


def test_one_service_s_missing_topic_does_not_stop_the_others(
    api: Client, strict: LocalEventLog
) -> None:
    strict.ensure_topic("api-audit-events", 1)
    TopicRoute.objects.create(service_name="inventory-api", topic="inventory-evnets")
    routing.refresh()
    look()
    response = api.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "inventory-evnets" in response.json()["problems"][0]
    assert "Topic routes" in response.json()["problems"][0]
    # But a rollout stops here.
    assert api.get("/health/startup").status_code == 503
    strict.ensure_topic("inventory-evnets", 1)
    look()
    assert api.get("/health/startup").status_code == 200


def test_startup_stays_done(api: Client, configure: Configure, tmp_path: Path) -> None:
    look()
    assert api.get("/health/startup").status_code == 200
    (tmp_path / "file").write_text("")
    configure(
        PRIMARY_URL=f"local://{tmp_path}/file/log.sqlite3", SPOOL_DIR=tmp_path / "file" / "spool"
    )
    assert api.get("/health/startup").status_code == 200


def test_a_registry_that_never_answered(api: Client, configure: Configure) -> None:
    configure(REGISTRY_URL="http://127.0.0.1:1", REGISTRY_TIMEOUT=0.2)
    look()
    response = api.get("/health/ready")
    assert response.status_code == 503
    assert "AUDIT_PUBLISHER_REGISTRY_URL" in response.json()["problems"][0]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
@pytest.mark.parametrize("known", [False, True])
def test_credentials_that_cannot_be_read(
    api: Client,
    configure: Configure,
    tmp_path: Path,
    content: bytes | None,
    known: bool,
) -> None:
    path = tmp_path / "credentials"
    path.write_text("user:password")
    configure(
        REGISTRY_URL="http://127.0.0.1:1", REGISTRY_TIMEOUT=0.2, REGISTRY_CREDENTIALS_FILE=path
    )
    if known:
        # Read before it went away, as by a process that is older.
        assert path == conf.REGISTRY_CREDENTIALS_FILE
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    look()
    for probe in ("ready", "startup"):
        response = api.get(f"/health/{probe}")
        assert response.status_code == 503
        assert "REGISTRY_CREDENTIALS_FILE" in response.json()["problems"][0]
    assert api.get("/health/live").status_code == 200
    response = post(api, URL, make_event())
    assert (response.status_code, response.json()["retryable"]) == (503, True)


def test_a_probe_is_never_an_error_itself(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(routing, "topics", fail)
    for probe in ("ready", "startup"):
        response = api.get(f"/health/{probe}")
        assert (response.status_code, response.json()["status"]) == (503, "failing")
        assert "secret" not in response.content.decode()


def test_metrics(api: Client, configure: Configure) -> None:
    response = api.get("/metrics")
    assert response["Content-Type"].startswith("text/plain")
    for name in ("audit_publisher_events_received_total", "audit_publisher_region_up"):
        assert name in response.content.decode()
    configure(METRICS_PUBLIC=False)
    assert api.get("/metrics").status_code == 403


def test_metrics_of_several_processes(
    api: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert api.get("/metrics").status_code == 200
