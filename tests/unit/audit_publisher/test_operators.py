"""What operators use: models, admin pages, commands, checks and options."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import CommandError, call_command
from django.test import Client

from audit_publisher import checks, eventlog, routing
from audit_publisher.conf import PublisherSettings
from audit_publisher.eventlog.kafka_config import load_properties
from audit_publisher.eventlog.kafka_errors import FATAL, TABLE, classify
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import RegionUnavailable
from audit_publisher.models import Consumer, ConsumerKey, TopicRoute
from tests.unit.audit_publisher.conftest import CONSUMER, Configure

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


# -- keys ---------------------------------------------------------------------------------


@pytest.fixture
def pem_file(tmp_path: Path, public_pem: str) -> Path:
    path = tmp_path / "public.pem"
    path.write_text(public_pem)
    return path


def test_a_key_is_registered_listed_and_revoked(pem_file: Path) -> None:
    added = json.loads(
        run(
            "audit_key",
            "add",
            f"--consumer={CONSUMER}",
            f"--public-key={pem_file}",
            "--name=Inventory API",
            "--service=inventory-api",
            "--not-after=2099-01-01",
            "--json",
        )
    )
    assert (added[0]["state"], added[0]["services"]) == ("valid", ["inventory-api"])
    assert added[0]["not_after"].startswith("2099-01-01T00:00:00")
    assert CONSUMER in run("audit_key", "list")
    run("audit_key", "revoke", f"--consumer={CONSUMER}", "--key-version=1")
    assert json.loads(run("audit_key", "list", "--json"))[0]["state"] == "revoked"
    # Registering it again is how a revocation is undone.
    again = ("audit_key", "add", f"--consumer={CONSUMER}", f"--public-key={pem_file}")
    with pytest.raises(CommandError, match="--reinstate"):
        run(*again)
    assert ConsumerKey.objects.get().revoked
    run(*again, "--reinstate", "--not-after=2099-01-01")
    run(*again)
    assert str(ConsumerKey.objects.get().not_after) == "2099-01-01 00:00:00+00:00"
    run(*again, "--not-after=")
    assert ConsumerKey.objects.get().not_after is None
    assert ConsumerKey.objects.get().state == "valid"
    assert Consumer.objects.get().name == "Inventory API"


def test_another_key_of_the_same_version_must_be_meant(pem_file: Path, tmp_path: Path) -> None:
    run("audit_key", "add", f"--consumer={CONSUMER}", f"--public-key={pem_file}")
    other = tmp_path / "other.pem"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    other.write_bytes(
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(CommandError, match="--replace"):
        run("audit_key", "add", f"--consumer={CONSUMER}", f"--public-key={other}")
    run("audit_key", "add", f"--consumer={CONSUMER}", f"--public-key={other}", "--replace")
    run("audit_key", "add", f"--consumer={CONSUMER}", f"--public-key={pem_file}", "--key-version=2")
    assert ConsumerKey.objects.count() == 2


def test_a_file_that_is_no_public_key(tmp_path: Path, private_key_file: Path) -> None:
    for content, said in (
        (private_key_file.read_text(), "private key"),
        ("hello", "not a public key"),
    ):
        path = tmp_path / "key.pem"
        path.write_text(content)
        with pytest.raises(CommandError, match=said):
            run("audit_key", "add", f"--consumer={CONSUMER}", f"--public-key={path}")
    with pytest.raises(CommandError, match="public-key"):
        run("audit_key", "add", f"--consumer={CONSUMER}", "--public-key=/no/such/file")
    assert not Consumer.objects.exists()
    with pytest.raises(CommandError, match="audit_key list"):
        run("audit_key", "revoke", "--consumer=x", "--key-version=1")


def public(key: Any) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def test_a_key_is_checked_wherever_it_is_saved(consumer: Consumer) -> None:
    weak = public(rsa.generate_private_key(public_exponent=65537, key_size=1024))  # noqa: S505
    with pytest.raises(ValidationError, match="1024 bits"):
        ConsumerKey.objects.create(consumer=consumer, key_version="2", public_key=weak)
    curve = public(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ValidationError, match="not an RSA key"):
        ConsumerKey.objects.create(consumer=consumer, key_version="2", public_key=curve)


@pytest.mark.parametrize("consumer_id", [" x", "a,b", "a\nb", "é", ""])
def test_consumer_ids_that_no_header_can_carry(consumer_id: str) -> None:
    with pytest.raises(ValidationError):
        Consumer(consumer_id=consumer_id).full_clean()


@pytest.mark.parametrize(
    "topic", ["", ".", "a b", "events_DLQ", "events_dlq", "ä", "x" * 250, "x" * 247]
)
def test_topics_that_cannot_be(topic: str) -> None:
    with pytest.raises(ValidationError):
        TopicRoute(service_name="s", topic=topic).full_clean()


# -- admin --------------------------------------------------------------------------------


@pytest.fixture
def admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("op", "op@example.com", "x"))
    return client


def test_admin_pages(admin: Client, consumer: Consumer) -> None:
    TopicRoute.objects.create(service_name="inventory-api", topic="inventory-events")
    key = consumer.keys.get()
    for page in (
        "consumer/",
        "consumer/?q=8f1f",
        f"consumer/{consumer.pk}/change/",
        "consumerkey/",
        f"consumerkey/{key.pk}/change/",
        "consumerkey/add/",
        "topicroute/",
        "topicroute/add/",
    ):
        assert admin.get(f"/admin/audit_publisher/{page}").status_code == 200, page
    listing = admin.get("/admin/audit_publisher/consumer/").content.decode()
    assert "every service" in listing
    assert (
        key.fingerprint
        in admin.get(f"/admin/audit_publisher/consumerkey/{key.pk}/change/").content.decode()
    )


def test_topic_routes_say_where_all_others_go(admin: Client) -> None:
    page = "/admin/audit_publisher/topicroute/"
    nobody = "No route is in force: all services publish to the default topic, api-audit-events."
    assert nobody in admin.get(page).content.decode()
    route = TopicRoute.objects.create(service_name="a", topic="b", enabled=False)
    assert nobody in admin.get(page).content.decode()
    route.enabled = True
    route.save()
    assert "Services without a route here publish to the" in admin.get(page).content.decode()


def test_times_of_keys_name_their_zone(admin: Client, consumer: Consumer) -> None:
    consumer.keys.update(not_after=datetime(2099, 1, 2, 3, 4, tzinfo=UTC))
    page = "/admin/audit_publisher/consumerkey/"
    assert "2099-01-02 03:04 UTC" in admin.get(page).content.decode()
    form = admin.get(f"{page}{consumer.keys.get().pk}/change/").content.decode()
    assert "Times are in UTC." in form


def test_admin_refuses_a_bad_topic_with_a_sentence(admin: Client) -> None:
    response = admin.post(
        "/admin/audit_publisher/topicroute/add/",
        {"service_name": "s", "topic": "events_DLQ", "enabled": "on"},
    )
    assert "Use another name." in response.content.decode()
    assert not TopicRoute.objects.exists()


def test_admin_refuses_a_bad_key_with_a_sentence(admin: Client, consumer: Consumer) -> None:
    response = admin.post(
        "/admin/audit_publisher/consumerkey/add/",
        {"consumer": consumer.pk, "key_version": "2", "public_key": "nonsense"},
    )
    assert "This is not a public key in PEM" in response.content.decode()


def test_revoking_in_the_admin(admin: Client, consumer: Consumer) -> None:
    key = consumer.keys.get()
    admin.post(
        "/admin/audit_publisher/consumerkey/",
        {"action": "revoke", "_selected_action": [key.pk]},
    )
    key.refresh_from_db()
    assert key.state == "revoked"


# -- topics -------------------------------------------------------------------------------


def test_topics_are_verified_and_created(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(SECONDARY_URL=f"local://{tmp_path}/second.sqlite3")
    logs = {
        name: LocalEventLog(name, tmp_path / f"{name}.sqlite3") for name in ("primary", "secondary")
    }
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: logs[name])
    TopicRoute.objects.create(service_name="inventory-api", topic="inventory-events")
    with pytest.raises(CommandError, match="audit_topics --create"):
        run("audit_topics")
    rows = json.loads(run("audit_topics", "--create", "--partitions=3", "--json"))
    assert {(row["region"], row["topic"]): row["partitions"] for row in rows} == {
        (region, topic): partitions
        for region in logs
        for topic, partitions in (
            ("api-audit-events", 3),
            ("inventory-events", 3),
            ("api-audit-events_DLQ", 1),
            ("inventory-events_DLQ", 1),
        )
    }
    assert "3 partitions" in run("audit_topics")
    logs["primary"].ensure_topic("late-events", 2)
    logs["secondary"].ensure_topic("late-events", 5)
    TopicRoute.objects.create(service_name="late-api", topic="late-events")
    with pytest.raises(CommandError, match="in different regions"):
        run("audit_topics", "--create")


def test_a_topic_that_takes_smaller_records_than_we_do_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LocalEventLog("primary", tmp_path / "small.sqlite3", max_record_bytes=1_048_588)
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: log)
    with pytest.raises(CommandError, match="takes records up to 1,048,588 bytes"):
        run("audit_topics", "--create")


def test_a_region_that_does_not_answer_fails_the_command(configure: Configure) -> None:
    configure(PRIMARY_URL="kafka://127.0.0.1:1", REQUEST_TIMEOUT=0.3)
    with pytest.raises(CommandError, match="primary"):
        run("audit_topics")


# -- options and checks -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PRIMARY_URL", "http://x", "kafka://host:9092 or local:///path"),
        ("PRIMARY_URL", "kafka://host", "host:port"),
        ("PRIMARY_URL", "kafka:/127.0.0.1:9092", "'kafka:/127.0.0.1:9092' names no server"),
        ("PRIMARY_URL", "kafka://a:1,", "'' in 'kafka://a:1,' is not host:port"),
        ("PRIMARY_URL", "kafka://host:9092/topic", "DEFAULT_TOPIC"),
        ("PRIMARY_URL", "local://", "names no file"),
        ("REGISTRY_URL", "https://user:pw@host", "REGISTRY_CREDENTIALS_FILE"),
        ("REGISTRY_URL", "registry:8081", "http(s)"),
        ("DEFAULT_TOPIC", "events_DLQ", "unusable records"),
        ("KAFKA_CONFIG_FILE", "/no/such/file", "cannot be read: No such file"),
        ("REGISTRY_CREDENTIALS_FILE", "/no/such/file", "Name a file that this process can read"),
        ("SIGNATURE", "enforced", "Did you mean 'enforce'?"),
        ("MAX_EVENT_BYTES", "2MB", "not an integer"),
        ("MAX_EVNT_BYTES", "1", "Did you mean AUDIT_PUBLISHER_MAX_EVENT_BYTES?"),
    ],
)
def test_a_wrong_option_is_named_with_its_cure(name: str, value: str, said: str) -> None:
    variable = f"AUDIT_PUBLISHER_{name}"
    (problem,) = PublisherSettings(environ={variable: value}).problems()
    assert problem.setting == variable
    assert said in str(problem)
    assert "pw" not in str(problem)


def ids(messages: Any) -> list[str]:
    return [message.id.removeprefix("audit_publisher.") for message in messages]


def test_checks(configure: Configure, tmp_path: Path) -> None:
    assert checks.check_options() == checks.check_combinations() == []
    configure(MAX_EVENT_BYTES="x")
    assert ids(checks.check_options()) == ["E001"]
    assert checks.check_combinations() == []
    properties = tmp_path / "kafka.properties"
    properties.write_text("sasl.password")
    configure(PRIMARY_URL="kafka://a:1", SECONDARY_URL="kafka://a:1", KAFKA_CONFIG_FILE=properties)
    assert ids(checks.check_combinations()) == ["E002", "E004"]
    configure(MAX_BATCH_BYTES=1000)
    assert ids(checks.check_combinations()) == ["E005"]


def test_checks_at_deployment(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing.refresh()
    assert ids(checks.check_regions()) == ["W002"]
    assert ids(checks.check_signatures()) == ["W001"]
    assert checks.check_registry() == []
    log = LocalEventLog("primary", tmp_path / "strict.sqlite3")
    monkeypatch.setattr(eventlog, "open_region", lambda name, url: log)
    eventlog.close_regions()
    assert ids(checks.check_regions()) == ["W002", "E006"]
    monkeypatch.setattr(routing, "topics", lambda: ["api-audit-events", "api-audit-events_DLQ"])
    (missing,) = [each for each in checks.check_regions() if "_DLQ" in each.msg]
    assert missing.id == "audit_publisher.E006"
    assert "DEFAULT_TOPIC" not in str(missing)
    configure(SIGNATURE="enforce", REGISTRY_URL="http://127.0.0.1:1", REGISTRY_TIMEOUT=0.2)
    assert checks.check_signatures() == []
    assert ids(checks.check_registry()) == ["E007"]


def test_kafka_properties(tmp_path: Path) -> None:
    path = tmp_path / "kafka.properties"
    path.write_text("# TLS\nsecurity.protocol = SASL_SSL\n\nsasl.password=a=b#c\n")
    assert load_properties(path) == {"security.protocol": "SASL_SSL", "sasl.password": "a=b#c"}
    assert load_properties(None) == {}
    path.write_text("sasl.password")
    with pytest.raises(ImproperlyConfigured, match="line 1"):
        load_properties(path)
    path.write_text("\nacks=1\n")
    with pytest.raises(ImproperlyConfigured, match="line 2: acks is set by the publisher"):
        load_properties(path)


def test_every_kafka_error_has_a_meaning() -> None:
    from confluent_kafka import KafkaError

    codes = {name for name in dir(KafkaError) if name.lstrip("_")[:1].isupper()}
    assert set(TABLE) | FATAL <= codes, "a name that librdkafka does not know"
    for name in codes:
        error = KafkaError(getattr(KafkaError, name))
        kind = classify(error, "primary")
        assert type(kind) is TABLE.get(name, RegionUnavailable)
        assert str(kind).startswith("primary: ")
