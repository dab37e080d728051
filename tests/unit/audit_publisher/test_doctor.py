"""What audit_doctor examines of the publisher: each thing right, and each thing wrong."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from audit_logging.doctor import hiding
from audit_logging.doctor.examinations import Asked, Finding
from audit_publisher import codec, eventlog, routing
from audit_publisher.doctor import disk, keys, regions, registry, tls
from audit_publisher.durable.spool import Record, Spool
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import StorageExhausted
from audit_publisher.models import Consumer, TopicRoute
from tests.unit.audit_logging.test_doctor import certificate
from tests.unit.audit_publisher.conftest import Configure

pytestmark = pytest.mark.django_db

Examined = Callable[[Asked], Iterator[Finding]]


def ask(function: Any, *, deploy: bool = False) -> list[Finding]:
    return list(function(Asked(deploy=deploy)))


def levels(function: Any, *, deploy: bool = False) -> list[str]:
    return [each.level for each in ask(function, deploy=deploy)]


def wrong(function: Any, *, deploy: bool = False) -> list[Finding]:
    return [each for each in ask(function, deploy=deploy) if each.level != "ok"]


# -- regions and topics -------------------------------------------------------------------------


def test_the_embedded_publisher_is_well_and_not_for_production(tmp_path: Path) -> None:
    for function in (regions.regions, regions.spool, registry.registry):
        assert set(levels(function)) == {"ok"}, function
    said = " ".join(each.message for each in ask(regions.regions))
    assert "api-audit-events: primary (4 partitions, kept 7 days)" in said
    assert "api-audit-events_DLQ" in said
    messages = [each.message for each in wrong(regions.regions, deploy=True)]
    assert len(messages) == 2
    assert "one disk of one host" in messages[0]
    assert "There is one region" in messages[1]
    assert len(wrong(registry.registry, deploy=True)) == 1


def test_looking_makes_no_topic(tmp_path: Path) -> None:
    ask(regions.regions)
    log: Any = eventlog.get_region("primary")
    assert log._known_topics() == {}


def test_a_region_that_does_not_answer_and_one_that_does(configure: Configure) -> None:
    configure(SECONDARY_URL="kafka://127.0.0.1:1", REQUEST_TIMEOUT=0.3)
    (failure,) = wrong(regions.regions)
    assert failure.level == "FAIL"
    assert "secondary (kafka://127.0.0.1:1)" in failure.message
    assert "AUDIT_PUBLISHER_SECONDARY_URL" in failure.cure
    # The other one is still examined.
    assert any("api-audit-events: primary" in each.message for each in ask(regions.regions))


def test_topics_that_are_missing_or_differ(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(SECONDARY_URL=f"local://{tmp_path}/unused.sqlite3")
    logs = {name: LocalEventLog(name, tmp_path / name) for name in ("primary", "secondary")}
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: logs[name])
    TopicRoute.objects.create(service_name="inventory-api", topic="inventory-evnets")
    for name, count in (("primary", 4), ("secondary", 8)):
        logs[name].ensure_topic("api-audit-events", count)
    found = wrong(regions.regions)
    assert {each.level for each in found} == {"FAIL"}
    said = "\n".join(f"{each.message} {each.cure}" for each in found)
    assert "region primary has no topic 'inventory-evnets'" in said
    assert "audit_topics --create" in said
    assert "primary 4, secondary 8" in said


def test_one_file_under_two_names(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    configure(
        PRIMARY_URL=f"local://{tmp_path}/log.sqlite3",
        SECONDARY_URL=f"local://{tmp_path}/link/log.sqlite3",
    )
    (finding,) = wrong(regions.regions)
    assert finding.level == "FAIL"
    assert "primary and secondary are one and the same" in finding.message


def test_the_spool(configure: Configure, tmp_path: Path) -> None:
    configure(SPOOL_DIR=tmp_path / "spool", SPOOL_MAX_BYTES=1 << 20)
    assert ask(regions.spool)[0].message.startswith("empty")
    spool = Spool(tmp_path / "spool", 1 << 20)
    spool.append("t", [Record(b"x" * 1000)])
    assert levels(regions.spool) == ["ok"]
    spool.append("t", [Record(b"x" * 600_000)])
    (finding,) = ask(regions.spool)
    assert (finding.level, "filled by 57%" in finding.message) == ("warning", True)


@pytest.mark.parametrize("last", [400_000, 100])
def test_a_spool_that_refuses(configure: Configure, tmp_path: Path, last: int) -> None:
    """It is full for the next record like those that wait, though some bytes are left."""
    configure(SPOOL_DIR=tmp_path / "spool", SPOOL_MAX_BYTES=1 << 20)
    spool = Spool(tmp_path / "spool", 1 << 20)
    records = [Record(b"x" * last)] * (1 if last > 1000 else 20)

    def fill() -> None:
        while True:
            spool.append("t", records)

    with pytest.raises(StorageExhausted):
        fill()
    assert spool.queue.used_bytes() < 1 << 20
    assert spool.accepts()
    (finding,) = ask(regions.spool)
    assert (finding.level, "503" in finding.message) == ("FAIL", True)
    assert "Bring a region back" in finding.cure


def test_folders(configure: Configure, tmp_path: Path) -> None:
    assert levels(disk.spool_folder) == levels(disk.local_logs) == ["ok"]
    (tmp_path / "file").write_text("")
    configure(SPOOL_DIR=tmp_path / "file" / "spool")
    (finding,) = ask(disk.spool_folder)
    assert (finding.level, "AUDIT_PUBLISHER_SPOOL_DIR" in finding.message) == ("FAIL", True)
    configure(SPOOL_MAX_BYTES=1 << 55)
    assert levels(disk.spool_folder) == ["warning", "ok"]


# -- who may publish ----------------------------------------------------------------------------


def test_nobody_may_publish_yet(configure: Configure) -> None:
    configure(SIGNATURE="enforce")
    (finding,) = ask(keys.consumers)
    assert (finding.level, "nobody may publish" in finding.message) == ("warning", True)
    assert "audit_key add" in finding.cure
    assert levels(keys.consumers, deploy=True) == ["FAIL"]


def test_keys_that_end(consumer: Consumer, configure: Configure) -> None:
    configure(SIGNATURE="enforce")
    assert levels(keys.consumers) == levels(keys.consumers, deploy=True) == ["ok"]
    key = consumer.keys.get()
    key.not_after = timezone.now() + timedelta(days=3)
    key.save()
    (finding, _) = ask(keys.consumers)
    assert (finding.level, "ends at" in finding.message) == ("warning", True)
    key.revoked = True
    key.save()
    (finding, _) = ask(keys.consumers)
    assert (finding.level, "no valid key" in finding.message) == ("warning", True)
    configure(SIGNATURE="off")
    assert "audit_publisher.W001" in {each.id for each in wrong(keys.consumers, deploy=True)}


# -- TLS ----------------------------------------------------------------------------------------


def test_files_of_tls(configure: Configure, tmp_path: Path) -> None:
    assert ask(tls.kafka) == ask(tls.registry) == []
    properties = tmp_path / "kafka.properties"
    key = tmp_path / "client.key"
    key.write_text("key")
    key.chmod(0o644)
    properties.write_text(
        "security.protocol=SASL_SSL\nsasl.password=open-sesame-42\n"
        f"ssl.ca.location={certificate(tmp_path / 'ca.pem', 300)}\n"
        f"ssl.certificate.location={certificate(tmp_path / 'client.pem', 2)}\n"
        f"ssl.key.location={key}\n"
    )
    properties.chmod(0o600)
    configure(PRIMARY_URL="kafka://127.0.0.1:1", KAFKA_CONFIG_FILE=properties)
    found = wrong(tls.kafka, deploy=True)
    assert [each.level for each in found] == ["warning", "warning"]
    assert "ssl.certificate.location in kafka.properties" in found[0].message
    assert "ssl.key.location" in found[1].message
    assert hiding.scrub("it says open-sesame-42") == "it says ***"
    properties.write_text("client.id=x\n")
    (plain,) = wrong(tls.kafka, deploy=True)
    assert "plain text (PLAINTEXT)" in plain.message


def test_files_of_the_registry(configure: Configure, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("audit:open-sesame-43\n")
    credentials.chmod(0o600)
    configure(
        REGISTRY_URL="http://127.0.0.1:1",
        REGISTRY_TIMEOUT=0.3,
        REGISTRY_CREDENTIALS_FILE=credentials,
        REGISTRY_CA_FILE=certificate(tmp_path / "ca.pem", -2),
    )
    found = wrong(tls.registry, deploy=True)
    assert [each.level for each in found] == ["FAIL", "warning"]
    assert "plain HTTP" in found[1].message
    assert hiding.scrub("open-sesame-43") == "***"


# -- the registry -------------------------------------------------------------------------------


def test_a_registry_that_does_not_answer(configure: Configure) -> None:
    configure(REGISTRY_URL="http://127.0.0.1:1", REGISTRY_TIMEOUT=0.3)
    (finding,) = ask(registry.registry)
    assert (finding.level, "does not answer" in finding.message) == ("FAIL", True)
    # Of the clock nothing can be said.
    assert ask(registry.clock) == []


@pytest.fixture
def topic(schema_registry: Any, configure: Configure) -> str:
    name = f"doctor-{uuid.uuid4().hex[:8]}"
    configure(REGISTRY_URL=schema_registry.url, REGISTRY_TIMEOUT=10, DEFAULT_TOPIC=name)
    return name


def test_a_real_registry(schema_registry: Any, topic: str, configure: Configure) -> None:
    assert "no schema yet" in ask(registry.registry)[-1].message
    subjects = schema_registry.request("GET", "/subjects")
    # Looking registers nothing.
    assert f"{topic}-value" not in subjects
    routing.refresh()
    codec.schema_ids.get(topic)
    found = ask(registry.registry)
    assert {each.level for each in found} == {"ok"}
    assert "our schema is version 1" in found[-1].message
    assert "would be refused" in found[-2].message
    assert len(schema_registry.request("GET", f"/subjects/{topic}-value/versions")) == 1
    assert [each.level for each in ask(registry.clock)] in (["ok"], [])


@pytest.fixture
def lax(schema_registry: Any) -> Iterator[None]:
    """The registry as it comes: it takes everything."""
    schema_registry.request("PUT", "/config", {"compatibility": "NONE"})
    yield
    schema_registry.request("PUT", "/config", {"compatibility": "BACKWARD"})


def test_a_registry_that_enforces_nothing(topic: str, lax: None) -> None:
    (before,) = wrong(registry.registry)
    codec.schema_ids.get(topic)
    (after,) = wrong(registry.registry)
    for finding in (before, after):
        assert (finding.level, "enforces no compatibility" in finding.message) == ("warning", True)
        assert '{"compatibility": "BACKWARD"}' in finding.cure


def test_a_schema_that_the_registry_would_refuse(schema_registry: Any, topic: str) -> None:
    other = json.loads(codec.schema_text())
    for field in other["fields"]:
        if field["name"] == "response_code":
            field["type"] = "string"
    body = {"schema": json.dumps(other)}
    schema_registry.request("POST", f"/subjects/{topic}-value/versions", body)
    (finding,) = wrong(registry.registry)
    assert finding.level == "FAIL"
    assert "breaks the readers" in finding.message


def test_an_address_that_leads_past_the_registry(
    schema_registry: Any, topic: str, configure: Configure
) -> None:
    root = schema_registry.url.partition("/apis/")[0]
    configure(REGISTRY_URL=f"{root}/nowhere", REGISTRY_TIMEOUT=10, DEFAULT_TOPIC=topic)
    (finding,) = ask(registry.registry)
    assert finding.level == "FAIL"
    assert "answered 404" in finding.message
    assert "/subjects" in finding.cure
