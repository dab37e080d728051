"""audit_doctor as people run it, and against the real servers that a project may use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from audit_logging.doctor import broker
from audit_logging.doctor.examinations import Finding
from tests.services.base import Service

ROOT = Path(__file__).resolve().parents[2]


def manage(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=clean
        | {"AUDIT_DATA_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "config.settings"}
        | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_embedded_project_before_and_after_migrate(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    before = manage(folder, "audit_doctor")
    assert before.returncode == 1, before.stderr
    assert "Run manage.py migrate." in before.stdout
    # What fails is told once, on the page.
    assert before.stderr == ""
    assert manage(folder, "migrate", "-v0").returncode == 0
    after = manage(folder, "audit_doctor")
    assert after.returncode == 0, after.stdout
    assert "FAIL" not in after.stdout
    for word in ("settings", "database", "topics", "buckets", "registry", "0 failures"):
        assert word in after.stdout
    assert manage(folder, "audit_doctor", "--fail-level", "warning").returncode == 1


def test_wrong_usage_and_help(tmp_path: Path) -> None:
    assert manage(tmp_path, "audit_doctor", "--only", "nonsense").returncode == 2
    assert manage(tmp_path, "audit_doctor", "--nonsense").returncode == 2
    said = manage(tmp_path, "audit_doctor", "--help")
    assert said.returncode == 0
    assert "manage.py audit_doctor --only topics" in said.stdout


def test_nothing_hangs_for_ever_and_no_secret_is_shown(tmp_path: Path) -> None:
    """Every server takes the connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        said = manage(
            tmp_path,
            *("audit_doctor", "--json", "--deploy"),
            AUDIT_DATABASE_URL=f"postgresql://audit:hidden-1@{where}/audit",
            AUDIT_BROKER_URL=f"amqp://audit:hidden-2@{where}//",
            AUDIT_PUBLISHER_PRIMARY_URL=f"kafka://{where}",
            AUDIT_PUBLISHER_REGISTRY_URL=f"http://{where}",
        )
    assert said.returncode == 1
    found = json.loads(said.stdout)["findings"]
    failed = {each["group"] for each in found if each["level"] == "FAIL"}
    assert failed >= {"database", "broker", "topics", "registry", "buckets"}
    assert all(each["cure"] for each in found if each["level"] == "FAIL")
    assert "hidden-" not in said.stdout + said.stderr


def levels(found: Any) -> list[str]:
    return [each.level for each in found]


def messages(found: list[Finding]) -> str:
    return " ".join(each.message for each in found)


def test_a_redis_that_keeps_what_it_acknowledges(redis_server: Any) -> None:
    import redis

    url = redis_server.url_for(7)
    queue = f"q{uuid.uuid4().hex[:8]}"
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        assert levels(broker.look("X", url)) == ["ok", "ok"]
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            (_, finding) = broker.look("X", url)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
        assert finding.level == "warning"
        assert "maxmemory-policy is allkeys-lru, not noeviction" in finding.message
        client.rpush(queue, b"one", b"two")
        (waiting,) = broker.depth("X", url, queue)
        assert waiting.message == f"{queue}: 2 waiting"
        client.delete(queue)


def test_a_rabbitmq(rabbitmq_server: Any) -> None:
    from kombu import Connection

    url = rabbitmq_server.url
    queue = f"q{uuid.uuid4().hex[:8]}"
    assert levels(broker.look("X", url)) == ["ok", "ok"]
    (missing,) = broker.depth("X", url, queue)
    assert missing.message == f"{queue}: not made yet"
    with Connection(url) as connection:
        simple = connection.SimpleQueue(queue)
        simple.put({"a": 1})
        simple.close()
        (waiting,) = broker.depth("X", url, queue)
        assert waiting.message == f"{queue}: 1 waiting"
        connection.default_channel.queue_delete(queue)


def test_a_database_of_another_host(postgres_server: Service, tmp_path: Path) -> None:
    url = postgres_server.create_database("doctor")  # type: ignore[attr-defined]
    said = manage(
        tmp_path,
        *("audit_doctor", "--json", "--only", "database", "--only", "clock"),
        AUDIT_DATABASE_URL=url,
    )
    found = json.loads(said.stdout)["findings"]
    assert said.returncode == 1
    assert [each["level"] for each in found] == ["ok", "FAIL", "ok"]
    assert "agrees with that of the database" in found[2]["message"]
