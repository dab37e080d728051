"""`manage.py audit_worker` as an operator runs it: real processes, a real broker, real signals."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from audit_logging.batch import Batch, pack
from audit_logging.spool import DurableQueue
from audit_publisher.eventlog import Limits
from audit_publisher.eventlog.local import LocalEventLog
from audit_publisher.exceptions import UnknownTopic
from audit_publisher.testing import make_event
from tests.contracts.broker import producer
from tests.services.rabbitmq import RabbitMQ
from tests.services.redis import Redis
from tests.support import eventually
from tests.unit.audit_logging.test_delivery import Script, items, script, server

__all__ = ["script", "server"]

pytestmark = pytest.mark.slow

#: The publisher's default.
TOPIC = "api-audit-events"

REPOSITORY = Path(__file__).resolve().parents[2]

SETTINGS = """
from tests.settings import *

DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}}
AUDIT_LOGGING = {options!r}
"""


def batch(n: int) -> list[str]:
    return [json.dumps({"request_id": f"{n}-{m}"}) for m in range(3)]


class Installation:
    """A project on disk, and the workers started in it."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder = folder
        self.options = options
        self.log = folder / "worker.log"
        self.running: list[subprocess.Popen[bytes]] = []
        text = SETTINGS.format(database=str(folder / "db.sqlite3"), options=options)
        (folder / "worker_settings.py").write_text(text)
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("AUDIT_")},
            "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}",
            "DJANGO_SETTINGS_MODULE": "worker_settings",
        }

    def start(self, *command: str | Path) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=self.environ, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self.start(REPOSITORY / "manage.py", "audit_worker", *arguments)

    def said(self) -> str:
        return self.log.read_text()[-6000:] if self.log.exists() else ""

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()
            for child in children(process.pid):
                os.kill(child, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Children of a process, also of one that has just ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == pid and int(stat.parent.name) != pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture(params=["durable", "redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "durable":
        return f"durable://{tmp_path}/broker.sqlite3"
    if request.param == "redis":
        server: Redis = request.getfixturevalue("redis_server")
        return server.url_for(7)
    rabbit: RabbitMQ = request.getfixturevalue("rabbitmq_server")
    return rabbit.url


@pytest.fixture
def installation(tmp_path: Path, server: Any, broker_url: str) -> Iterator[Installation]:
    made = Installation(
        tmp_path,
        {
            "SERVICE_NAME": "shop",
            "BROKER_URL": broker_url,
            "CELERY_QUEUE": f"audit-{uuid.uuid4().hex[:8]}",
            "DATA_DIR": str(tmp_path / "data"),
            "PUBLISHER_URL": f"http://127.0.0.1:{server.server_port}",
            "WORKERS_MIN": 2,
            "WORKERS_MAX": 3,
            "DEAD_LETTERS": "file",
        },
    )
    yield made
    made.stop()


@pytest.fixture
def send(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Send a batch as a service does."""
    from audit_logging import celery

    options = installation.options
    block = producer(
        options["BROKER_URL"], options["CELERY_QUEUE"], "audit_logging.deliver", monkeypatch
    )
    with block:
        yield lambda n: celery.send_batch(pack(batch(n)), 3)


class Gate:
    """A publisher that holds its answers back until it is opened."""

    def __init__(self, script: Script) -> None:
        self.open = threading.Event()
        self.held = 0
        self.most = 0
        self._lock = threading.Lock()
        self._script = script
        script.answer = self.answer

    def answer(self, lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            self.held += 1
            self.most = max(self.most, self.held)
        self.open.wait(60)
        with self._lock:
            self.held -= 1
        return self._script.take(lines)


def test_a_worker_grows_delivers_and_ends_with_its_deliveries_done(
    installation: Installation, script: Script, send: Any
) -> None:
    gate = Gate(script)
    worker = installation.worker()
    # Its children: the two that it keeps.
    eventually(lambda: len(children(worker.pid)) >= 2, 90, installation.said)
    for n in range(8):
        send(n)
    # It grows, to the most and no further, with as many deliveries at once.
    eventually(lambda: gate.held == 3, 90, installation.said)
    eventually(lambda: len(children(worker.pid)) == 3, 30, installation.said)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in installation.said(), 30, installation.said)
    assert worker.poll() is None
    gate.open.set()
    assert worker.wait(60) == 0, installation.said()
    assert gate.most == 3
    done = set(script.stored)
    assert len(done) >= 9
    # What it had not begun is still at the broker, for the next one.
    installation.worker("--pool", "threads", "--concurrency", "2")
    everything = {line for n in range(8) for line in batch(n)}
    eventually(lambda: set(script.stored) == everything, 90, installation.said)


def test_children_killed_while_they_wait_take_nothing_along(
    installation: Installation, script: Script, send: Any
) -> None:
    """Not even the lock of a queue that their siblings would wait at for ever."""
    worker = installation.worker("--concurrency", "2")
    eventually(lambda: len(children(worker.pid)) == 2, 90, installation.said)
    send(0)
    eventually(lambda: set(script.stored) == set(batch(0)), 90, installation.said)
    for n, which in enumerate((-1, 0), 1):
        before = sorted(children(worker.pid))
        os.kill(before[which], signal.SIGKILL)
        eventually(
            lambda before=before: len(now := children(worker.pid)) == 2 and sorted(now) != before,
            60,
            installation.said,
        )
        send(n)
        eventually(lambda n=n: set(batch(n)) <= set(script.stored), 60, installation.said)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, installation.said()


def test_the_batch_of_a_killed_child_is_delivered_by_another(
    installation: Installation, script: Script, send: Any
) -> None:
    gate = Gate(script)
    worker = installation.worker("--concurrency", "1")
    eventually(lambda: len(children(worker.pid)) >= 1, 90, installation.said)
    send(1)
    eventually(lambda: gate.held == 1, 60, installation.said)
    (child,) = children(worker.pid)
    os.kill(child, signal.SIGKILL)
    gate.open.set()
    # The first answer went to a process that is no more.
    eventually(lambda: len(script.requests) == 2, 60, installation.said)
    eventually(lambda: script.stored == batch(1) * 2, 30, installation.said)


# -- what is the same whatever the broker --------------------------------------------------------

durable = pytest.mark.parametrize("broker_url", ["durable"], indirect=True)


@durable
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_a_batch_leaves_no_line_in_the_log_unless_asked_for(
    installation: Installation, script: Script, send: Any, level: str
) -> None:
    worker = installation.worker("--concurrency", "1", "--loglevel", level)
    send(1)
    eventually(lambda: set(script.stored) == set(batch(1)), 90, installation.said)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, installation.said()
    said = installation.log.read_text()
    for line in (
        r"Task audit_logging\.deliver\[.*received",
        r"audit_logging\.deliver\[.*succeeded",
    ):
        assert bool(re.search(line, said)) is (level == "DEBUG")


def paths(message: bytes) -> Iterator[str | None]:
    """The paths of the events in a message at the broker."""
    (payload, count), *_ = json.loads(base64.b64decode(json.loads(message)["body"]))
    for line in Batch.from_message(payload, count).lines():
        yield json.loads(line).get("path")


HOST = """
import os, time
from celery import Celery

import django
django.setup()
from django.test import Client

import audit_logging.celery  # knows durable://
from audit_logging.transport import Transport

# The background thread does not come to it: what is in the buffer leaves at the end, or never.
Transport._send_step = lambda self: 60.0

app = Celery("host", broker=os.environ["HOST_BROKER"])
app.conf.broker_transport_options = {"polling_interval": 0.05}
app.conf.worker_enable_remote_control = False
app.conf.task_default_queue = "host"

@app.task(name="host.work")
def work():
    assert Client().get("/nowhere").status_code == 404
    open(os.environ["HOST_DONE"], "w").close()
"""


@durable
def test_a_child_of_the_services_own_celery_worker_empties_its_buffer_at_its_end(
    installation: Installation, tmp_path: Path
) -> None:
    """Celery's children end without running exit hooks."""
    with (tmp_path / "worker_settings.py").open("a") as settings:
        settings.write(
            "MIDDLEWARE = ['audit_logging.middleware.AuditMiddleware']\n"
            "AUDIT_LOGGING |= {'FLAGS_SOURCE': 'settings'}\n"
        )
    (tmp_path / "host_app.py").write_text(HOST)
    done = tmp_path / "done"
    installation.environ |= {
        "HOST_BROKER": f"durable://{tmp_path}/host.sqlite3",
        "HOST_DONE": str(done),
    }
    send = "import host_app; host_app.work.delay()"
    assert installation.start("-c", send).wait(60) == 0, installation.said()
    worker = installation.start(
        "-m", "celery", "-A", "host_app", "worker", "-l", "INFO", "--concurrency=1",
        "--without-gossip", "--without-mingle",
    )  # fmt: skip
    eventually(done.exists, 90, installation.said)
    worker.terminate()
    assert worker.wait(60) == 0, installation.said()
    records = DurableQueue(tmp_path / "broker.sqlite3").read(
        installation.options["CELERY_QUEUE"], 0
    )
    assert "/nowhere" in {path for record in records for path in paths(record.value)}
    # It is no worker of deliveries, though it knows the task.
    assert not (tmp_path / "data" / "delivery-spool.sqlite3").exists()


@durable
def test_a_refused_event_comes_to_the_database_and_is_sent_again_from_there(
    installation: Installation, script: Script, send: Any, tmp_path: Path
) -> None:
    with (tmp_path / "worker_settings.py").open("a") as settings:
        settings.write("AUDIT_LOGGING |= {'DEAD_LETTERS': 'database'}\n")
    database = tmp_path / "db.sqlite3"

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(database, timeout=10)) as connection, connection:
            return connection.execute(sql).fetchall()

    migrate = installation.start(REPOSITORY / "manage.py", "migrate", "-v", "0")
    assert migrate.wait(90) == 0, installation.said()
    bad = batch(1)[1]
    no = {"status": "rejected", "retryable": False, "error": {"field": "n", "reason": "no"}}
    script.answer = lambda lines: (
        200,
        {},
        items(no if line == bad else {"status": "published"} for line in lines),
    )
    worker = installation.worker("--concurrency", "1")
    send(1)
    waiting = "SELECT event, state FROM audit_logging_deadletter"
    eventually(lambda: ask(waiting) == [(bad, "waiting")], 90, installation.said)
    # As admin's action does.
    script.answer = script.take
    ask("UPDATE audit_logging_deadletter SET state = 'resend'")
    eventually(lambda: script.stored == [bad], 60, installation.said)
    eventually(lambda: ask(waiting) == [("", "delivered")], 30, installation.said)
    worker.terminate()
    assert worker.wait(60) == 0, installation.said()


@durable
def test_a_worker_with_delivery_kafka_appends_to_the_event_log(
    installation: Installation, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audit_logging import celery

    with (tmp_path / "worker_settings.py").open("a") as settings:
        log = tmp_path / "eventlog.sqlite3"
        settings.write(
            "AUDIT_LOGGING |= {'DELIVERY': 'kafka'}\n"
            f"AUDIT_PUBLISHER = {{'PRIMARY_URL': 'local://{log}', 'TOPIC_PARTITIONS': 1,"
            f" 'DATA_DIR': {str(tmp_path / 'publisher')!r}}}\n"
        )
    worker = installation.worker()
    events = [make_event() for _ in range(30)]
    url, queue = installation.options["BROKER_URL"], installation.options["CELERY_QUEUE"]
    with producer(url, queue, "audit_logging.deliver", monkeypatch):
        for start in range(0, 30, 3):
            celery.send_batch(pack([json.dumps(event) for event in events[start : start + 3]]), 3)
    region = LocalEventLog("primary", log)

    def appended() -> int:
        try:
            return region.watermarks(TOPIC, 0)[1] if log.exists() else 0
        except UnknownTopic:
            # Made by the worker, a moment after the file.
            return 0

    eventually(lambda: appended() == 30, 120, installation.said)
    found = region.read(TOPIC, 0, 0, Limits(timeout=0))
    ids = {(dict(record.headers)["request_id"] or b"").decode() for record in found}
    assert ids == {event["request_id"] for event in events}
    # Nothing went over HTTP.
    assert script.requests == []
    worker.terminate()
    assert worker.wait(60) == 0, installation.said()


@durable
def test_celery_by_itself_starts_a_worker_too(
    installation: Installation, script: Script, send: Any
) -> None:
    worker = installation.start(
        "-m", "celery", "-A", "audit_logging", "worker", "--concurrency=1", "-l", "INFO"
    )
    send(1)
    eventually(lambda: script.stored == batch(1), 90, installation.said)
    worker.terminate()
    assert worker.wait(60) == 0, installation.said()


@durable
@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["--autoscale", "many"], {}, "Give MAX,MIN: 10,6"),
        (["--autoscale", "10,0"], {}, "Keep one process at least"),
        (["--concurrency", "0"], {}, "not a number above 0"),
        (["--autoscale", "3,1", "--concurrency", "2"], {}, "not allowed with"),
        (["--pool", "threads", "--autoscale", "3,1"], {}, "Use --concurrency"),
        (["--pool", "solo", "--concurrency", "2"], {}, "one batch at a time"),
        ([], {"WORKERS_MIN": 4}, "WORKERS_MIN (4) is more than WORKERS_MAX (3)"),
        ([], {"DELIVERY": "direct"}, "needs no worker"),
        ([], {"DELIVERY": "smoke"}, "celery | direct | kafka"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    installation: Installation,
    tmp_path: Path,
    arguments: list[str],
    options: dict[str, Any],
    said: str,
) -> None:
    with (tmp_path / "worker_settings.py").open("a") as settings:
        settings.write(f"AUDIT_LOGGING |= {options!r}\n")
    assert installation.worker(*arguments).wait(60) in (1, 2)
    assert said in installation.said()
