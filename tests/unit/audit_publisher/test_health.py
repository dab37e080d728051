"""Probes and metrics: what they say, and which setting they name."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from audit_logging.spool import Record
from audit_publisher import eventlog, health, publish, routing
from audit_publisher.conf import conf
from audit_publisher.eventlog import Receipt
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import RegionUnavailable
from audit_publisher.models import TopicRoute
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import URL, Configure
from tests.unit.audit_publisher.test_views import post


@pytest.fixture(autouse=True)
def not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_started", False)
    monkeypatch.setattr(health, "_began", time.monotonic())
    # What is asked is answered, however slow the machine is; tests of patience set their own.
    monkeypatch.setattr(health, "PATIENCE", 60.0)


def of_staff(api: Client) -> Client:
    """The client of somebody who may know addresses."""
    api.force_login(get_user_model().objects.create_user("operator", is_staff=True))
    return api


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
    for words in ("AUDIT_PUBLISHER_PRIMARY_URL", "primary", "audit_doctor"):
        assert words in response.content.decode()
    # Where it is, and what its client says, is not everybody's to know.
    for words in ("kafka://", "127.0.0.1", "broker"):
        assert words not in response.content.decode()
    assert "kafka://127.0.0.1:1" in of_staff(api).get("/health/ready").json()["problems"][0]


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


class Mute(LocalEventLog):
    """Says where its topics are, and takes no record."""

    def append(self, topic: str, records: Sequence[Record]) -> list[Receipt]:
        if not records:
            return super().append(topic, records)
        return [Receipt(error=RegionUnavailable("not enough replicas"))] * len(records)


def test_a_region_that_takes_no_record_is_not_there(
    api: Client, configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    configure(SPOOL_DIR=tmp_path / "file" / "spool")
    mute = Mute("primary", tmp_path / "mute.sqlite3")
    mute.ensure_topic(conf.DEFAULT_TOPIC, 1)
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: mute)
    look()
    assert api.get("/health/ready").status_code == 200
    # Neither here nor on the disk.
    assert post(api, URL, make_event()).status_code == 503
    response = api.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (503, "failing")
    assert any("takes no record" in each for each in response.json()["problems"])


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


@pytest.fixture
def pair(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, LocalEventLog]:
    """Two regions that make no topic by themselves."""
    configure(SECONDARY_URL=f"local://{tmp_path}/unused.sqlite3")
    logs: dict[str, LocalEventLog] = {
        name: Strict(name, tmp_path / f"{name}.sqlite3") for name in ("primary", "secondary")
    }
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: logs[name])
    return logs


def test_a_topic_that_one_region_lacks(api: Client, pair: dict[str, LocalEventLog]) -> None:
    pair["primary"].ensure_topic("api-audit-events", 4)
    look()
    report = api.get("/health/ready").json()
    assert report["status"] == "degraded"
    assert report["problems"] == [
        "AUDIT_PUBLISHER_DEFAULT_TOPIC: region secondary has no topic 'api-audit-events'. "
        "Correct the name, or create it with manage.py audit_topics --create"
    ]
    assert report["regions"]["secondary"]["missing_topics"] == ["api-audit-events"]
    assert api.get("/health/startup").status_code == 503
    pair["secondary"].ensure_topic("api-audit-events", 4)
    look()
    assert api.get("/health/ready").json()["status"] == "ok"
    assert api.get("/health/startup").status_code == 200


def test_an_outage_of_the_region_that_has_the_topic_leaves_the_spool(
    api: Client, pair: dict[str, LocalEventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found degraded before; now events are durable all the same, so traffic may come."""

    def dead(*args: Any) -> Any:
        raise RegionUnavailable("primary: no broker answers")

    monkeypatch.setattr(pair["primary"], "missing", dead)
    look()
    response = of_staff(api).get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert any("no broker answers" in line for line in response.json()["problems"])
    assert post(api, URL, make_event()).json()["status"] == "spooled"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((4, 8), "different numbers of partitions in different regions: primary 4, secondary 8"),
        ((2, 2), "fewer partitions than AUDIT_PUBLISHER_TOPIC_PARTITIONS (4)"),
    ],
)
def test_other_partitions_than_expected(
    api: Client, pair: dict[str, LocalEventLog], counts: tuple[int, int], said: str
) -> None:
    for log, count in zip(pair.values(), counts, strict=True):
        log.ensure_topic("api-audit-events", count)
    look()
    response = api.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    (problem,) = response.json()["problems"]
    assert said in problem


def test_a_topic_that_takes_less_than_the_largest_event(
    api: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = LocalEventLog(
        "primary", tmp_path / "small.sqlite3", create_partitions=4, max_record_bytes=1_048_588
    )
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: log)
    look()
    report = api.get("/health/ready").json()
    assert report["status"] == "degraded"
    assert "max.message.bytes" in report["problems"][0]


def test_startup_does_not_wait_for_ever(
    api: Client, strict: LocalEventLog, configure: Configure
) -> None:
    configure(STARTUP_SECONDS=3600)
    look()
    assert api.get("/health/startup").status_code == 503
    configure(STARTUP_SECONDS=0)
    look()
    # Not a restart, which would mend nothing: readiness keeps traffic away.
    assert api.get("/health/startup").status_code == 200
    assert api.get("/health/ready").status_code == 503


@pytest.fixture
def silent() -> Iterator[str]:
    """A broker that hangs: it takes connections, and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_broker_that_hangs_is_a_region_that_is_down(
    api: Client, configure: Configure, silent: str
) -> None:
    configure(PRIMARY_URL=f"kafka://{silent}", REQUEST_TIMEOUT=0.3)
    look()
    response = of_staff(api).get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert "region primary does not answer" in response.json()["problems"][0]
    assert f"kafka://{silent}" in response.json()["problems"][0]


def test_what_hangs_holds_no_probe(
    api: Client, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    look()
    assert api.get("/health/ready").status_code == 200
    monkeypatch.setattr(health, "PATIENCE", 0.05)
    goes_on = threading.Event()
    hanging = []

    def hang(self: Any) -> str:
        hanging.append(threading.current_thread())
        goes_on.wait(60)
        return ""

    monkeypatch.setattr("audit_publisher.durable.spool.Spool.accepts", hang)
    try:
        # The last answer holds for a while, and then nobody may believe it any more.
        assert api.get("/health/ready").status_code == 200
        monkeypatch.setattr(health, "GOOD_FOR", 0.0)
        response = api.get("/health/ready")
        # A region takes events, whatever else hangs.
        assert (response.status_code, response.json()["status"]) == (200, "degraded")
        publish.get_publisher().states["primary"].up = False
        for probe in ("ready", "startup", "ready"):
            response = api.get(f"/health/{probe}")
            assert response.status_code == 503
            assert "The spool's disk does not answer" in response.json()["problems"][0]
        assert api.get("/health/live").status_code == 200
        assert len(hanging) == 1
    finally:
        goes_on.set()
        for thread in hanging:
            thread.join()
    monkeypatch.setattr(health, "PATIENCE", 60.0)
    assert api.get("/health/ready").status_code == 200


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
    assert str(tmp_path) not in api.get("/health/ready").content.decode()
    of_staff(api)
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
