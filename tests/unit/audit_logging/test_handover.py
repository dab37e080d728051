"""The ways of DELIVERY, as the background thread of a service has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_logging import handover, metrics
from audit_logging.batch import pack
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import Deliverer, PerProcess
from audit_logging.exceptions import RetryLater
from audit_logging.handover import DirectSend, sends_beside
from audit_logging.outbox import Outbox
from audit_logging.publisher_client import Publisher
from tests.support import eventually, fork
from tests.unit.audit_logging.test_delivery import (
    LINES,
    Counted,
    Script,
    dead,
    items,
    script,
    server,
    waiting,
)

__all__ = ["script", "server"]

REPOSITORY = Path(__file__).resolve().parents[3]

SERVICE = """
import json, sys
sys.path.insert(0, sys.argv[3])
from django.conf import settings
settings.configure(
    ROOT_URLCONF="__main__", SECRET_KEY="x", ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django.contrib.contenttypes", "audit_logging"],
    MIDDLEWARE=["audit_logging.middleware.AuditMiddleware"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DATA_DIR": sys.argv[1], "PUBLISHER_URL": sys.argv[2],
                   "DELIVERY": "direct", "FLAGS_SOURCE": "settings", "SHUTDOWN_SECONDS": 20.0},
)
import django
django.setup()
from django.core.management import call_command
from django.http import JsonResponse
from django.test import Client
from django.urls import path

urlpatterns = [path("items/<int:pk>", lambda request, pk: JsonResponse({"pk": pk}))]
call_command("check")
for n in range(30):
    assert Client().get(f"/items/{n}").status_code == 200

from audit_logging.transport import get_transport
get_transport().flush()
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded & {"celery", "kombu", "billiard", "amqp", "redis"})))
"""


@pytest.fixture
def direct(
    server: Any, options: Callable[..., LoggingSettings], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    made: list[DirectSend] = []

    def make(**values: Any) -> DirectSend:
        values = {
            "DELIVERY": "direct",
            "PUBLISHER_URL": f"http://127.0.0.1:{server.server_port}",
            "BROKER_TIMEOUT": 2,
        } | values
        send = handover.make_send(options(**values))
        assert isinstance(send, DirectSend)
        with monkeypatch.context() as patch:
            # Tests take its steps by themselves.
            patch.setattr(Deliverer, "start", lambda self: None)
            deliverer(send).start = lambda: None  # type: ignore[method-assign]
        made.append(send)
        return send

    yield make
    for send in made:
        send.close()


def deliverer(send: DirectSend) -> Deliverer:
    return send._deliverer()


def test_the_broker_is_the_way_unless_another_is_chosen(
    options: Callable[..., LoggingSettings],
) -> None:
    from audit_logging.celery import send_batch

    assert handover.make_send(options()) is send_batch
    assert handover.make_send(options(DELIVERY="kafka")) is send_batch
    assert isinstance(handover.make_target(options()), Publisher)


def test_a_direct_service_needs_no_celery(script: Script, server: Any, tmp_path: Path) -> None:
    program = tmp_path / "service.py"
    program.write_text(SERVICE)
    url = f"http://127.0.0.1:{server.server_port}"
    done = subprocess.run(
        [sys.executable, program, tmp_path / "data", url, REPOSITORY],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith(("AUDIT_", "DJANGO_"))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    paths = {json.loads(line).get("path") for line in script.stored}
    assert {f"/items/{n}" for n in range(30)} <= paths


def test_what_the_publisher_takes_is_done(direct: Any, script: Script, counted: Counted) -> None:
    direct()(pack(LINES), 8)
    assert script.bodies == [pack(LINES)]
    assert script.stored == LINES
    assert counted(metrics.delivered, status="published") == 8


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_publisher_that_is_away_raises_and_keeps_nothing(
    direct: Any, script: Script, status: int
) -> None:
    """The capture spool has the batch then; a second copy here would be sent twice."""
    script.answer = lambda lines: (status, {"Retry-After": "9"}, b"")
    send = direct()
    with pytest.raises(RetryLater) as raised:
        send(pack(LINES), 8)
    assert raised.value.retry_after == 9
    assert len(script.requests) == 1
    assert not deliverer(send).spool.path.exists()


def test_through_the_outbox_it_ends_in_the_capture_spool_and_comes_back(
    direct: Any, script: Script, options: Callable[..., LoggingSettings]
) -> None:
    outbox = Outbox(direct(), options())
    script.answer = lambda lines: (503, {"Retry-After": "30"}, b"")
    assert outbox.dispatch(pack(LINES), 8) == (metrics.spooled, {"reason": "broker_down"})
    outbox.dispatch(pack(LINES[:1]), 1)
    # The breaker keeps the second from asking.
    assert len(script.requests) == 1
    # And for as long as the publisher asked.
    assert outbox.breaker._open_until - time.monotonic() > 20
    script.answer = script.take
    outbox.breaker.succeeded()
    eventually(lambda: (outbox.replay(), script.stored == LINES + LINES[:1])[1])
    outbox.spool.close()


def test_each_event_by_its_own_answer(direct: Any, script: Script) -> None:
    script.answer = lambda lines: (
        200,
        {},
        items(
            [
                {"status": "published"},
                {"status": "rejected", "retryable": False, "error": {"reason": "no"}},
                {"status": "rejected", "retryable": True},
                *({"status": "spooled"} for _ in lines[3:]),
            ]
        ),
    )
    send = direct()
    send(pack(LINES), 8)
    assert dead(deliverer(send)) == [LINES[1]]
    assert waiting(deliverer(send)) == [LINES[2]]
    script.answer = script.take
    deliverer(send).drain_step()
    assert script.stored == [LINES[2]]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_is_declined_is_kept_where_the_event_at_fault_is_found(
    direct: Any, script: Script, status: int
) -> None:
    script.answer = lambda lines: (status, {}, b"")
    send = direct()
    send(pack(LINES), 8)
    assert waiting(deliverer(send)) == LINES


def test_what_an_earlier_run_left_is_sent_without_new_traffic(
    direct: Any, script: Script, server: Any, options: Callable[..., LoggingSettings]
) -> None:
    script.answer = lambda lines: (500, {}, b"")
    first = direct()
    first(pack(LINES), 8)
    script.answer = script.take
    url = f"http://127.0.0.1:{server.server_port}"
    second = DirectSend(options(DELIVERY="direct", PUBLISHER_URL=url, DEAD_LETTERS="file"))
    try:
        second(pack(LINES[:1]), 1)
        eventually(lambda: script.stored.count(LINES[7]) == 1)
    finally:
        second.close()


def test_what_others_leave_later_is_sent_and_measured_by_a_process_that_had_nothing(
    direct: Any, script: Script, server: Any, options: Callable[..., LoggingSettings]
) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    running = DirectSend(options(DELIVERY="direct", PUBLISHER_URL=url))
    try:
        running(pack(LINES[:1]), 1)
        assert deliverer(running)._letters.running
        sister = direct()
        script.answer = lambda lines: (500, {}, b"")
        sister(pack(LINES[1:]), 7)
        script.answer = script.take
        eventually(lambda: sorted(script.stored) == sorted(LINES))
        eventually(lambda: waiting(deliverer(sister)) == [])
    finally:
        running.close()


def test_a_forked_child_posts_over_connections_of_its_own(
    direct: Any, script: Script, server: Any
) -> None:
    """One that it shared with its parent would mix their answers up."""
    accepted: list[Any] = []
    process = server.process_request
    server.process_request = lambda *args: (accepted.append(args), process(*args))[1]
    send = direct()
    send(pack(LINES[:1]), 1)
    mine = deliverer(send)
    child = fork()
    if child == 0:
        status = 1
        try:
            send(pack(LINES[1:2]), 1)
            send(pack(LINES[2:3]), 1)
            if deliverer(send) is not mine:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    send(pack(LINES[3:4]), 1)
    assert script.stored == LINES[:4]
    assert len(accepted) == 2
    assert deliverer(send) is mine


def test_one_for_each_process_also_when_a_fork_copies_its_lock() -> None:
    made: list[int] = []
    thing = PerProcess(lambda: made.append(os.getpid()) or object())
    assert thing() is thing()
    lock = thing._locks[os.getpid()]
    with lock:
        child = fork()
        if child == 0:
            status = 1
            try:
                thing()
                if made[-1] == os.getpid():
                    status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made == [os.getpid()]


@pytest.mark.parametrize(
    ("values", "may"),
    [
        ({"BROKER_URL": "redis://127.0.0.1:1/0"}, True),
        ({"BROKER_URL": "redis://127.0.0.1:1/0", "DELIVERY": "kafka"}, True),
        ({"BROKER_URL": "redis://127.0.0.1:1/0", "DELIVERY": "direct"}, False),
        # What another process puts there is in its own memory, and nowhere.
        ({"BROKER_URL": "memory://"}, False),
    ],
)
def test_what_another_process_may_hand_over(
    options: Callable[..., LoggingSettings], values: dict[str, str], may: bool
) -> None:
    assert sends_beside(options(**values)) is may
