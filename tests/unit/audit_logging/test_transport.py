"""The transport: every event is sent, spooled, counted as lost, or still in the buffer."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import RequestFactory

from audit_logging import metrics
from audit_logging.batch import unpack
from audit_logging.breaker import Breaker
from audit_logging.capture import Exchange
from audit_logging.conf import LoggingSettings
from audit_logging.policy import Decision
from audit_logging.spool import DurableQueue
from audit_logging.transport import STREAM, Transport
from tests.support import eventually, fork

Counted = Callable[..., float]


def exchange(path: str = "/x", body: bytes = b"") -> Exchange:
    made = Exchange(
        RequestFactory().get(path),
        Decision(request_body=True, response_body=True, max_body_bytes=10_000_000),
    )
    made.status, made.response_type, made.response_body = 200, "text/plain", body
    made.response_size = len(body)
    return made


class Broker:
    """Takes batches; can be down, or hold whoever sends until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        #: What processes report of themselves, which are no events.
        self.records: list[dict[str, Any]] = []
        self.tries = 0
        self.down = False
        self.refuses = ""
        self.answering = threading.Event()
        self.answering.set()
        self.asked = threading.Event()

    def __call__(self, batch: bytes, count: int) -> None:
        self.tries += 1
        self.asked.set()
        self.answering.wait(30)
        if self.down:
            raise ConnectionError("broker is down")
        events = [json.loads(line) for line in unpack(batch)]
        if not count:
            self.records += events
            return
        assert len(events) == count
        if self.refuses and any(event["path"] == self.refuses for event in events):
            raise ValueError("the message is too large")
        self.batches.append(events)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for batch in self.batches for event in batch]

    @property
    def paths(self) -> list[str]:
        return [event["path"] for event in self.events]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def make(
    broker: Broker, options: Callable[..., LoggingSettings]
) -> Iterator[Callable[..., Transport]]:
    made: list[Transport] = []

    def make(**values: Any) -> Transport:
        made.append(Transport(broker, options(**values)))
        made[-1].outbox.breaker = Breaker(first=0.02, longest=0.1)
        return made[-1]

    yield make
    broker.answering.set()
    for transport in made:
        transport.close()


def spooled(transport: Transport) -> list[str]:
    records = DurableQueue(transport.spool.path).read(STREAM, 0)
    lines = [json.loads(line) for record in records for line in unpack(record.value)]
    return [line["path"] for line in lines if "record" not in line]


def settled(transport: Transport, counted: Counted, submitted: int) -> bool:
    """Whether the books balance: queued + spooled + rejected + still in the buffer."""
    return (
        counted(metrics.queued)
        + counted(metrics.spooled)
        + counted(metrics.rejected)
        + len(transport.buffer)
        == submitted
    )


def test_events_arrive_in_order_and_are_numbered(make: Any, broker: Broker) -> None:
    transport = make(BUFFER_SIZE=1000)
    for n in range(250):
        transport.submit(exchange(f"/{n}"))
    eventually(lambda: len(broker.events) == 250)
    assert broker.paths == [f"/{n}" for n in range(250)]
    assert [event["seq"] for event in broker.events] == list(range(250))
    assert len({event["producer_epoch"] for event in broker.events}) == 1
    assert max(len(batch) for batch in broker.batches) <= transport._options.BATCH_SIZE


def test_batches_are_bounded_by_bytes(make: Any, broker: Broker) -> None:
    transport = make(BATCH_BYTES=10_000)
    broker.answering.clear()
    transport.submit(exchange())
    assert broker.asked.wait(5)
    for _ in range(6):
        transport.submit(exchange(body=b"x" * 4000))
    broker.answering.set()
    eventually(lambda: len(broker.events) == 7)
    assert max(len(batch) for batch in broker.batches) == 2


def test_batches_are_measured_in_bytes_and_not_in_characters(make: Any, broker: Broker) -> None:
    transport = make(BATCH_BYTES=10_000)
    with transport._sender_hand.at_work:
        for _ in range(8):
            transport.submit(exchange(body="語".encode() * 1200))
    eventually(lambda: len(broker.events) == 8)
    assert max(len(batch) for batch in broker.batches) == 2


def test_a_message_that_the_broker_refuses_lets_others_pass(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make(BATCH_SIZE=1)
    broker.down = True
    for name in ("/too-large", "/good"):
        transport.submit(exchange(name))
        eventually(lambda name=name: name in spooled(transport))
    broker.refuses = "/too-large"
    broker.down = False
    eventually(lambda: broker.paths == ["/good"])
    eventually(lambda: spooled(transport) == ["/too-large"])
    # In the end it passes, too, if it can.
    broker.refuses = ""
    eventually(lambda: broker.paths == ["/good", "/too-large"], 20)


def test_a_broker_that_is_down_costs_one_try_and_everything_is_replayed_in_order(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make()
    transport.outbox.breaker = Breaker(first=0.3, longest=2)
    broker.down = True
    for n in range(20):
        transport.submit(exchange(f"/{n}"))
        eventually(lambda n=n: len(spooled(transport)) == n + 1)
    assert counted(metrics.spooled, reason="broker_down") == 20
    broker.down = False
    eventually(lambda: len(broker.events) == 20)
    assert broker.paths == [f"/{n}" for n in range(20)]
    eventually(lambda: counted(metrics.replayed, spool="capture") == 20)
    assert spooled(transport) == []
    assert counted(metrics.rejected) == 0


def test_the_spool_is_replayed_while_there_is_traffic(
    make: Any, broker: Broker, counted: Counted
) -> None:
    """A busy service never has an idle moment to replay in."""
    transport = make()
    broker.down = True
    transport.submit(exchange("/old"))
    eventually(lambda: spooled(transport) == ["/old"])
    broker.down = False

    def busy() -> bool:
        if len(transport.buffer) < 5:
            transport.submit(exchange("/new"))
        return counted(metrics.replayed, spool="capture") >= 1

    eventually(busy, pause=0.001)


def test_a_broker_that_hangs_does_not_hold_up_the_buffer(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make(BUFFER_SIZE=10)
    broker.answering.clear()
    transport.submit(exchange("/in hand"))
    assert broker.asked.wait(5)
    for n in range(40):
        transport.submit(exchange(f"/{n}"))
        eventually(lambda: len(transport.buffer) < 10)
    # The overflow thread spools what the sender cannot take.
    eventually(lambda: counted(metrics.spooled, reason="overflow") >= 31)
    assert counted(metrics.rejected) == 0
    broker.answering.set()
    eventually(lambda: sorted(broker.paths) == sorted(["/in hand", *(f"/{n}" for n in range(40))]))
    eventually(lambda: settled(transport, counted, 41))


def test_the_request_thread_waits_for_nothing(make: Any, broker: Broker) -> None:
    """With the broker hanging, the buffer full, and everything held that a background thread holds.

    So many that the least wait in each would add up to more than the deadline.
    """
    transport = make(BUFFER_SIZE=5, OVERFLOW="drop")
    transport.spool.append("other", [])
    broker.answering.clear()
    transport.submit(exchange())
    assert broker.asked.wait(5)
    made = [exchange() for _ in range(3000)]
    requests = threading.Thread(target=lambda: [transport.submit(one) for one in made], daemon=True)
    overflow = transport._overflow_hand
    sender = transport._sender_hand
    with (
        transport.spool._write(),
        overflow.at_work,
        overflow._lock,
        sender._lock,
        metrics._export_lock,
    ):
        assert sender.at_work.locked()  # by the sender, which hangs in the broker
        requests.start()
        requests.join(30)
        waits = requests.is_alive()
    broker.answering.set()
    assert not waits


def test_a_full_buffer_counts_what_it_drops_and_the_log_says_so(
    make: Any, broker: Broker, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    transport = make(BUFFER_SIZE=5, BUFFER_BYTES=20_000, OVERFLOW="drop")
    broker.answering.clear()
    transport.submit(exchange())
    assert broker.asked.wait(5)
    logged_by = set()
    caplog.handler.addFilter(lambda record: logged_by.add(record.thread) or True)
    with transport._overflow_hand.at_work:  # the spool is busy, too
        for _ in range(20):
            transport.submit(exchange())
        transport.buffer.take(4)
        transport.submit(exchange(body=b"x" * 30_000))
        assert counted(metrics.rejected, reason="buffer_full") == 15
        assert counted(metrics.rejected, reason="buffer_bytes") == 1
        transport._overflow.wake()
        eventually(lambda: "events are LOST" in caplog.text)
    assert "80 % full" in caplog.text
    # Writing to a log is I/O: never on the thread of a request.
    assert threading.get_ident() not in logged_by


def test_dropping_instead_of_spooling_is_counted(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make(OVERFLOW="drop")
    broker.down = True
    for _ in range(5):
        transport.submit(exchange())
    eventually(lambda: counted(metrics.rejected, reason="overflow_drop") == 5)
    assert not transport.spool.path.exists()


def test_a_full_spool_is_counted(make: Any, broker: Broker, counted: Counted) -> None:
    transport = make(SPOOL_MAX_BYTES=100_000, BATCH_SIZE=1)
    broker.down = True
    for n in range(10):
        # What no compression makes smaller.
        transport.submit(exchange(f"/{n}", base64.b64encode(os.urandom(30_000))))
        eventually(lambda n=n: counted(metrics.spooled) + counted(metrics.rejected) == n + 1)
    assert counted(metrics.spooled) == 3
    assert counted(metrics.rejected, reason="spool_full") == 7


def test_a_spool_that_cannot_be_written_is_counted(
    make: Any, broker: Broker, counted: Counted, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    transport = make(DATA_DIR=tmp_path / "file" / "data")
    broker.down = True
    transport.submit(exchange())
    eventually(lambda: counted(metrics.rejected, reason="spool_unavailable") == 1)
    broker.down = False
    eventually(lambda: transport.outbox.breaker.allows)
    transport.submit(exchange("/after"))
    eventually(lambda: broker.paths == ["/after"])


def test_a_spool_that_breaks_while_it_is_replayed_stops_nothing(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make()
    broker.down = True
    transport.submit(exchange())
    eventually(lambda: spooled(transport) == ["/x"])
    for suffix in ("", "-wal", "-shm"):
        Path(f"{transport.spool.path}{suffix}").unlink(missing_ok=True)
    transport.spool.path.write_bytes(b"no database" * 100)
    broker.down = False
    eventually(lambda: transport.outbox.breaker.allows)
    for n in range(3):
        transport.submit(exchange(f"/{n}"))
        eventually(lambda n=n: f"/{n}" in broker.paths)


def test_an_event_that_cannot_be_built_costs_itself_alone(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make()
    broken = exchange()
    broken.started = None  # type: ignore[assignment]
    with transport._sender_hand.at_work:
        transport.submit(broken)
        transport.submit(exchange("/good"))
    eventually(lambda: broker.paths == ["/good"])
    assert counted(metrics.rejected, reason="build_failed") == 1


# -- the end -----------------------------------------------------------------------------------


def test_flush_empties_the_buffer(make: Any, broker: Broker, counted: Counted) -> None:
    transport = make(BUFFER_SIZE=1000)
    transport._sender.stop(5)
    for n in range(300):
        transport.submit(exchange(f"/{n}"))
    assert transport.flush()
    assert broker.paths == [f"/{n}" for n in range(300)]
    assert settled(transport, counted, 300)


def test_flush_waits_for_what_the_sender_has_in_hand(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make(SHUTDOWN_SECONDS=20)
    broker.answering.clear()
    transport.submit(exchange())
    assert broker.asked.wait(5)
    threading.Timer(0.05, broker.answering.set).start()
    assert transport.flush()
    assert broker.paths == ["/x"]


def test_flush_spools_what_a_hanging_broker_holds(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make(SHUTDOWN_SECONDS=0.2, BATCH_SIZE=2)
    with transport._sender_hand.at_work:
        for n in range(2):
            transport.submit(exchange(f"/{n}"))
        broker.answering.clear()
    assert broker.asked.wait(5)
    for n in range(2, 7):
        transport.submit(exchange(f"/{n}"))
    assert transport.flush()
    assert sorted(spooled(transport)) == [f"/{n}" for n in range(7)]


def test_flush_without_time_counts_what_it_loses(
    make: Any, broker: Broker, counted: Counted
) -> None:
    transport = make()
    transport._sender.stop(5)
    for _ in range(7):
        transport.submit(exchange())
    assert not transport.flush(0)
    assert counted(metrics.rejected, reason="shutdown") == 7
    assert settled(transport, counted, 7)


PROGRAM = """
import os, sys
from django.conf import settings
settings.configure(
    ROOT_URLCONF=sys.argv[0].removesuffix(".py").rpartition("/")[2],
    SECRET_KEY="x", ALLOWED_HOSTS=["*"], INSTALLED_APPS=["audit_logging"],
    MIDDLEWARE=["audit_logging.middleware.AuditMiddleware"],
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DATA_DIR": sys.argv[1], "FLAGS_SOURCE": "settings"},
)
import django
django.setup()
from django.test import Client
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("<name>", lambda request, name: HttpResponse(name))]
if __name__ == "__main__":
    sys.modules[settings.ROOT_URLCONF] = sys.modules["__main__"]
    client = Client()
    for n in range(5):
        client.get(f"/parent-{n}")
    child = os.fork()
    name = "child" if child == 0 else "late"
    for n in range(5):
        client.get(f"/{name}-{n}")
    if child:
        os.waitpid(child, 0)
"""


def lines_of(message: dict[str, Any]) -> list[str]:
    """The events of a Celery message."""
    payload = json.loads(base64.b64decode(message["body"]))[0][0]
    return unpack(base64.b64decode(payload))


def test_a_real_process_that_forks_and_ends_loses_and_doubles_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "data")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    queue = DurableQueue(tmp_path / "data" / "broker.sqlite3")
    events = []
    for record in queue.read("audit_logging", 0):
        message = json.loads(record.value)
        events += [
            event for line in lines_of(message) if "record" not in (event := json.loads(line))
        ]
    expected = [f"/{name}-{n}" for name in ("parent", "child", "late") for n in range(5)]
    assert sorted(event["path"] for event in events) == sorted(expected)
    epochs = {}
    for event in events:
        epochs.setdefault(event["producer_epoch"], []).append((event["seq"], event["path"]))
    # The child is a producer of its own, and numbers from nought.
    assert sorted([sorted(numbers) for numbers in epochs.values()], key=len) == [
        [(n, f"/child-{n}") for n in range(5)],
        [(n, f"/parent-{n}") for n in range(5)] + [(n + 5, f"/late-{n}") for n in range(5)],
    ]


EXITS = """
import atexit, json, sys, time
from django.conf import settings
settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["*"], INSTALLED_APPS=["audit_logging"],
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DATA_DIR": sys.argv[1], "FLAGS_SOURCE": "settings",
                   "SHUTDOWN_SECONDS": float(sys.argv[2]), "BUFFER_BYTES": 64 << 20},
)
import django
django.setup()
from django.test import RequestFactory
from audit_logging import metrics
from audit_logging.capture import Exchange
from audit_logging.policy import Decision
from audit_logging.transport import get_transport

def say():
    print(json.dumps({
        "rejected": {key[0]: value for key, value in metrics.rejected._values.items()},
        "queued": metrics.queued.value(), "spooled": metrics.spooled.value(),
    }))

atexit.register(say)  # before the transport's, so that it comes after
transport = get_transport()
body = json.dumps([{"name": f"item {n}", "note": "x y z " * 40} for n in range(2000)]).encode()
for n in range(30):
    decision = Decision(response_body=True, max_body_bytes=1 << 20)
    made = Exchange(RequestFactory().get(f"/{n}"), decision)
    made.status, made.response_type, made.response_body = 200, "application/json", body
    made.response_size = len(body)
    transport.submit(made)
transport._sender.wake()
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize(("seconds", "after"), [(0, 0.3), (0.4, 0.3), (30, 0)])
def test_a_process_that_ends_while_events_are_encoded_counts_each(
    tmp_path: Path, seconds: float, after: float
) -> None:
    """Each of the 30 is in one place, or counted as lost."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(
        [sys.executable, "-c", EXITS, str(tmp_path), str(seconds), str(after)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    lost = said["rejected"].get("shutdown", 0)
    assert set(said["rejected"]) <= {"shutdown"}
    assert said["queued"] + said["spooled"] + lost == 30
    if seconds == 30:
        assert lost == 0
    # The counters tell the truth.
    broker = DurableQueue(tmp_path / "broker.sqlite3").read("audit_logging", 0, max_bytes=1 << 30)
    sent = [json.loads(base64.b64decode(json.loads(r.value)["body"]))[0][1] for r in broker]
    assert sum(sent) >= said["queued"]
    kept = DurableQueue(tmp_path / "capture-spool.sqlite3").read(STREAM, 0, max_bytes=1 << 30)
    ids = {
        json.loads(line)["seq"]
        for lines in [
            *(lines_of(json.loads(record.value)) for record in broker),
            *(unpack(record.value) for record in kept),
        ]
        for line in lines
    }
    assert len(ids) >= said["queued"] + said["spooled"]


@pytest.mark.parametrize("hooks", [True, False])
def test_a_forked_child_starts_empty(
    hooks: bool, make: Any, broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    transport = make()
    if not hooks:
        monkeypatch.setattr("audit_logging.transport._instances", [])
    hand = transport._sender_hand
    with hand.at_work, hand._lock, transport.buffer._lock:
        child = fork()
        if child == 0:
            status = 1
            made: list[int] = []
            fresh = transport._fresh

            def slowly() -> None:
                made.append(1)
                threading.Event().wait(0.02)
                fresh()

            transport._fresh = slowly
            try:
                threads = [
                    threading.Thread(target=transport.submit, args=(exchange(f"/{n}"),))
                    for n in range(8)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                eventually(lambda: len(broker.events) == 8, 5)
                numbered = sorted(event["seq"] for event in broker.events) == list(range(8))
                # Made once: a second new buffer would throw the first one's events away.
                status = 0 if numbered and len(made) == (0 if hooks else 1) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert broker.events == []
