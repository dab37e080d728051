"""Building events in a process beside the service's: the same events, and none lost with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from django.test import RequestFactory

from audit_logging import forks, metrics
from audit_logging.batch import pack, unpack
from audit_logging.builder_process import FIELDS, exchange_from, packed_state, state_of
from audit_logging.capture import Exchange
from audit_logging.conf import LoggingSettings
from audit_logging.event import EventBuilder
from audit_logging.exceptions import BuilderUnavailable
from audit_logging.policy import Decision
from audit_logging.remote_builder import Built, Load, RemoteBuilder, Room
from audit_logging.transport import Transport
from examples.demo.observe import events_in
from tests.integration.servers.kinds import wait_for_exit
from tests.support import eventually, fork, in_child

Options = Callable[..., LoggingSettings]


def exchange(
    seq: int = 0, body: bytes = b'{"password": "hush-hush", "n": 1}', **values: Any
) -> Exchange:
    request = RequestFactory().post(
        "/orders/7/?token=hush",
        b"",
        content_type="application/json",
        HTTP_AUTHORIZATION="Bearer x1y2z3w4",
    )
    made = Exchange(
        request, Decision(request_body=True, response_body=True, max_body_bytes=1 << 20)
    )
    made.status, made.response_type, made.response_body = 201, "application/json", body
    made.request_body, made.request_size, made.response_size = body, len(body), len(body)
    made.producer_epoch, made.seq = "epoch", seq
    made.route, made.kwargs = "orders/<int:pk>/", {"pk": 7}
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def remote(options: Options) -> Iterator[RemoteBuilder]:
    made = RemoteBuilder(options(MAX_EVENT_BYTES=100_000, BATCH_BYTES=10_000))
    eventually(lambda: made.ready, 30)
    yield made
    made.close()


def lines(parcels: list[tuple[bytes, int]]) -> list[dict[str, Any]]:
    for batch, count in parcels:
        assert len(unpack(batch)) == count
    return [json.loads(line) for batch, _ in parcels for line in unpack(batch)]


def test_the_process_builds_what_the_thread_builds(options: Options, remote: RemoteBuilder) -> None:
    here = EventBuilder(options())
    made = [
        exchange(0),
        exchange(1, body="語 \ud800".encode("utf-8", "surrogatepass")),
        exchange(2, response_body=None, request_body=None, error="ValueError: no price"),
        exchange(3, route="reset/<uuid:token>", kwargs={"token": uuid.UUID(int=7), "none": None},
                 path=f"/reset/{uuid.UUID(int=7)}"),
        exchange(4, route=None, status=404, outcome="completed"),
    ]  # fmt: skip
    _, parcels, failed, _ = remote.build(made)
    expected = [json.loads(here.encode(here.build(one))) for one in made]
    assert lines(parcels) == expected
    assert not failed
    assert str(uuid.UUID(int=7)) not in json.dumps(expected)
    assert "hush" not in json.dumps(expected)


def test_every_field_that_makes_an_event_is_sent() -> None:
    """A new field of an exchange is forgotten here by nobody."""
    not_sent = {"weight", "added", "started_monotonic"}
    declared = {
        name
        for name, value in vars(Exchange).items()
        if not name.startswith("_") and not callable(value) and not isinstance(value, property)
    }
    assigned = {name for name in vars(exchange()) if not name.startswith("_")}
    assert (declared | assigned) - not_sent == set(FIELDS)
    assert vars(exchange_from(packed_state(exchange(), bool))).keys() == set(FIELDS)


def test_batches_are_bounded(remote: RemoteBuilder) -> None:
    body = json.dumps({"note": "n" * 2000}).encode()
    _, parcels, _, _ = remote.build([exchange(n, body) for n in range(10)])
    assert len(parcels) > 2
    assert [event["seq"] for event in lines(parcels)] == list(range(10))


def test_an_event_that_cannot_be_built_costs_itself_alone(remote: RemoteBuilder) -> None:
    _, parcels, failed, _ = remote.build([exchange(0), exchange(1, started=None), exchange(2)])
    assert [event["seq"] for event in lines(parcels)] == [0, 2]
    assert failed == 1


class Own(str):
    """A text of the service's own kind."""

    def __str__(self) -> str:
        raise RuntimeError("nobody's to call")


def test_values_of_the_services_own_kinds_are_sent_as_what_they_are(
    options: Options, remote: RemoteBuilder
) -> None:
    made = exchange(
        status=HTTPStatus.CREATED, user=Own("ada"), response_type=Own("application/json")
    )
    _, parcels, failed, _ = remote.build([made])
    (event,) = lines(parcels)
    assert (event["response_code"], event["user"], failed) == (201, "ada", 0)


class Hostile:
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


def test_what_cannot_be_sent_is_built_here_and_stops_nothing(
    options: Options, counted: Callable[..., float], remote: RemoteBuilder
) -> None:
    strange = exchange(1, kwargs={"token": Hostile()})
    with pytest.raises(BuilderUnavailable):
        remote.build([exchange(0), strange])
    # It is no fault of the process.
    assert lines(remote.build([exchange(2)]).parcels)[0]["seq"] == 2
    sent = Sent()
    transport = Transport(sent, options(BUILD_IN="process", LINGER_SECONDS=0))
    try:
        eventually(lambda: transport._remote is not None and transport._remote.ready, 30)
        for one in (exchange(), strange, *(exchange() for _ in range(30))):
            transport.submit(one)
        eventually(lambda: len(sent.events) == 31, 30)
        # The one whose own text fails is lost, and counted.
        eventually(lambda: counted(metrics.rejected, reason="build_failed") == 1)
    finally:
        transport.close()


def test_a_routes_value_is_asked_for_its_text_only_where_its_name_tells_of_a_secret() -> None:
    state = state_of(exchange(kwargs={"pk": 7, "order": Hostile(), "none": None}), lambda _: False)
    assert state[FIELDS.index("kwargs")] == {}


def test_a_secret_key_in_bytes_makes_the_same_fingerprints(options: Options, settings: Any) -> None:
    settings.SECRET_KEY = b"a key in bytes, as some keep it"
    here = EventBuilder(options())
    made = RemoteBuilder(options())
    try:
        eventually(lambda: made.ready, 30)
        (event,) = lines(made.build([exchange()]).parcels)
    finally:
        made.close()
    assert event["token_fingerprint"] == here.build(exchange()).token_fingerprint
    assert event["token_fingerprint"]


def waiting(path: Path) -> list[dict[str, Any]]:
    """The events that the embedded broker holds."""
    records = map(json.loads, events_in(path)) if path.exists() else ()
    return [record for record in records if "record" not in record]


def sent_beside(made: RemoteBuilder, exchanges: list[Exchange]) -> Built:
    """Ask until it is ready to send, which it is a moment after it is ready to build."""
    built: list[Built] = []

    def asked() -> bool:
        built.append(made.build(exchanges, may_send=True))
        return bool(built[-1].sent or built[-1].error)

    eventually(lambda: made.ready, 30)
    eventually(asked, 30)
    return built[-1]


def test_the_process_hands_batches_to_the_broker(options: Options, tmp_path: Path) -> None:
    broker = tmp_path / "broker.sqlite3"
    made = RemoteBuilder(options(BROKER_URL=f"durable://{broker}"), sends=True)
    try:
        built = sent_beside(made, [exchange(1), exchange(2)])
        assert built == (2, [], 0, None)
        assert [event["seq"] for event in waiting(broker)] == [1, 2]
        # Not where its caller knows better.
        built = made.build([exchange(3)], may_send=False)
        assert (built.sent, len(lines(built.parcels))) == (0, 1)
        assert len(waiting(broker)) == 2
    finally:
        made.close()


def test_what_the_broker_does_not_take_comes_back_with_the_reason(options: Options) -> None:
    made = RemoteBuilder(options(BROKER_URL="redis://127.0.0.1:1/0"), sends=True)
    try:
        built = sent_beside(made, [exchange(1)])
        assert built.sent == 0
        assert [event["seq"] for event in lines(built.parcels)] == [1]
        assert built.error
    finally:
        made.close()


def test_a_service_with_a_timeout_for_all_its_sockets(
    options: Options, default_timeout: Callable[[float], None]
) -> None:
    default_timeout(5.0)
    made = RemoteBuilder(options(MAX_EVENT_BYTES=1_000_000))
    try:
        eventually(lambda: made.ready, 30)
        body = json.dumps({"note": "n" * 200_000}).encode()
        for number in range(3):
            many = [exchange(10 * number + n, body, max_body_bytes=1 << 20) for n in range(10)]
            assert len(lines(made.build(many).parcels)) == 10
    finally:
        made.close()


@pytest.fixture
def default_timeout() -> Iterator[Callable[[float], None]]:
    before = socket.getdefaulttimeout()
    yield socket.setdefaulttimeout
    socket.setdefaulttimeout(before)


def test_a_stopped_process_is_waited_for_within_bounds(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit_logging.remote_builder._PATIENCE", 1.0)
    made = RemoteBuilder(options())
    try:
        eventually(lambda: made.ready, 30)
        pid = made.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(BuilderUnavailable, match="TimeoutError"):
            made.build([exchange()])
        wait_for_exit(pid)
    finally:
        made.close()


def test_one_that_was_closed_stays_closed(options: Options, caplog: Any) -> None:
    made = RemoteBuilder(options())
    eventually(lambda: made.ready, 30)
    made.close()
    assert not made.ready
    with pytest.raises(BuilderUnavailable):
        made.build([exchange()])
    assert not caplog.records


class Half:
    """A builder process of which each frame's first event is sent, if it may be."""

    ready, starting, unused = True, False, False

    def __init__(self, sent: int) -> None:
        self.sent, self.asked = sent, 0

    def build(self, group: list[Exchange], breathe: Any, *, may_send: bool) -> Built:
        self.asked += may_send
        sent = self.sent if may_send else 0
        parcels = [(pack(["{}"] * (len(group) - sent)), len(group) - sent)]
        return Built(sent, parcels, 0, "timed out" if may_send else None)

    def close(self) -> None:
        pass


def work_off_two(transport: Transport, number: int) -> None:
    """One frame of two events, as the sender brings it to its place."""
    for _ in range(2):
        transport.buffer.put(exchange(number), transport.producer.number)
    transport._sender_hand.take(transport.buffer, 10)
    transport._work_off(transport._sender_hand, transport.outbox.dispatch)


@pytest.mark.parametrize("sent", [0, 1])
def test_what_the_process_could_not_send_is_tried_here(
    options: Options, counted: Callable[..., float], sent: int
) -> None:
    """Whether the broker is away is seen here; where it never is, the process is not asked."""
    taken = Sent()
    transport = Transport(taken, options(BUILD_IN="process"), beside=True)
    transport._sender.stop(10)
    transport._remote = half = Half(sent)  # type: ignore[assignment]
    try:
        for number in range(10):
            work_off_two(transport, number)
        assert transport.outbox.breaker.closed
        assert half.asked == (10 if sent else 1)
        assert counted(metrics.queued) == 20
    finally:
        transport.close()


def test_a_broker_that_is_away_is_asked_by_nobody(options: Options) -> None:
    def fails(batch: bytes, count: int) -> None:
        raise OSError("away")

    transport = Transport(fails, options(BUILD_IN="process"), beside=True)
    transport._sender.stop(10)
    transport._remote = half = Half(1)  # type: ignore[assignment]
    try:
        for number in range(5):
            work_off_two(transport, number)
        assert half.asked == 1
        assert not transport.outbox.breaker.closed
    finally:
        transport.close()


def test_what_flush_has_taken_over_is_not_built_again(options: Options) -> None:
    taken = Sent()
    transport = Transport(taken, options(BUILD_IN="thread"))
    transport._sender.stop(10)
    built: list[int] = []
    hand = transport._sender_hand
    for number in range(5):
        transport.buffer.put(exchange(number), transport.producer.number)
    hand.take(transport.buffer, 10)

    class Builder(EventBuilder):
        def build(self, one: Exchange) -> Any:
            built.append(one.seq)
            hand.surrender()
            return super().build(one)

    group = hand.next(10, 1 << 20)
    builder = Builder(options())
    try:
        for one in group:
            if not transport._build_here(builder, hand, one, transport.outbox.dispatch):
                break
        assert built == [0]
    finally:
        hand.reopen()
        transport.close()


def test_a_connection_that_cannot_be_closed_stops_nothing(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        alias, connection = "other", object()

        def close(self) -> None:
            raise OSError("gone")

    opened: list[list[Broken]] = [[], [Broken()]] * 2
    monkeypatch.setattr("audit_logging.transport._open_connections", lambda: opened.pop(0))
    sent = Sent()
    transport = Transport(sent, options(BUILD_IN="thread"))
    try:
        for number in range(2):
            transport.submit(exchange(number, route=None, status=301, path="/orders"))
        assert transport.flush(10)
        assert [event["seq"] for event in sent.events] == [0, 1]
    finally:
        transport.close()


def test_with_drop_nobody_helps_a_process_that_is_at_work(
    options: Options, counted: Callable[..., float]
) -> None:
    """All that help could do with events there is to drop them."""
    transport = Transport(Sent(), options(OVERFLOW="drop", BUFFER_SIZE=10))
    transport._building_since = time.monotonic() - 60
    try:
        for number in range(9):
            transport.buffer.put(exchange(number), transport.producer.number)
        transport._overflow_step()
        assert len(transport.buffer) == 9
        assert not counted(metrics.rejected)
    finally:
        transport._building_since = None
        transport.close()


def test_a_transport_counts_what_the_process_has_sent(
    options: Options, counted: Callable[..., float], tmp_path: Path
) -> None:
    taken = Sent()
    broker = tmp_path / "broker.sqlite3"
    known = options(BUILD_IN="process", BROKER_URL=f"durable://{broker}")
    transport = Transport(taken, known, beside=True)
    number = iter(range(10_000))

    def queued_beside() -> bool:
        transport.submit(exchange(next(number)))
        return counted(metrics.queued) > len(taken.events)

    try:
        eventually(queued_beside, 30)
        assert transport.flush(10)
        asked = next(number)
        assert counted(metrics.queued) == asked
        assert len(waiting(broker)) == asked - len(taken.events)
    finally:
        transport.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_dies_is_replaced(remote: RemoteBuilder, number: signal.Signals) -> None:
    pid = remote.pid
    assert pid is not None
    os.kill(pid, number)
    if number == signal.SIGKILL:
        with pytest.raises(BuilderUnavailable):
            remote.build([exchange()])
        eventually(lambda: remote.ready, 30)
    # A terminal's and a service manager's signals are the parent's to follow.
    assert lines(remote.build([exchange()]).parcels)
    assert (remote.pid == pid) == (number != signal.SIGKILL)


def test_it_ends_with_its_parent(options: Options, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    parent = fork()
    if parent == 0:
        try:
            made = RemoteBuilder(options())
            eventually(lambda: made.ready, 30)
            assert made.pid is not None
            os.write(writing, str(made.pid).encode())
        finally:
            # As kill -9 does: nothing is closed in an orderly way.
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(writing)
    pid = int(os.read(reading, 20))
    os.close(reading)

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    eventually(gone, 20)


def test_a_forked_child_leaves_it_to_the_parent(remote: RemoteBuilder) -> None:
    child = fork()
    if child == 0:
        remote.let_go()
        remote.close()
        os._exit(0 if not remote._ready else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lines(remote.build([exchange()]).parcels)


def test_a_fork_waits_until_the_process_is_started(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child with copies of the pipes of a start would hold up that start while it lives."""
    monkeypatch.setattr(forks, "_PATIENCE", 20.0)
    begun, done = threading.Event(), threading.Event()

    class Start(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            begun.set()
            super().__init__(*args, **keywords)
            done.set()

    monkeypatch.setattr("audit_logging.remote_builder.subprocess.Popen", Start)
    made = RemoteBuilder(options())
    try:
        assert not made.ready
        assert begun.wait(20)
        assert in_child(done.is_set)
    finally:
        made.close()


def test_a_start_that_hangs_holds_up_nobody(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does while a child lives that was forked in its midst; what comes then is ended."""
    leave, begun = threading.Event(), threading.Event()
    late: list[subprocess.Popen[bytes]] = []

    class Hangs(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            begun.set()
            leave.wait(60)
            super().__init__(*args, **keywords)
            late.append(self)

    monkeypatch.setattr("audit_logging.remote_builder.subprocess.Popen", Hangs)
    monkeypatch.setattr("audit_logging.remote_builder._NEVER", 0.0)
    made = RemoteBuilder(options())
    try:
        assert not made.ready
        assert begun.wait(20)
        assert made.starting
        eventually(lambda: not made.ready and not made._breaker.closed)
        assert made.pid is None
    finally:
        leave.set()
        made.close()
    eventually(lambda: late and late[0].returncode is not None, 30)


def test_one_that_is_closed_while_it_starts_leaves_nothing_behind(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Start(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **keywords: Any) -> None:
            super().__init__(*args, **keywords)
            started.append(self)

    monkeypatch.setattr("audit_logging.remote_builder.subprocess.Popen", Start)
    made = RemoteBuilder(options())
    assert not made.ready
    made.close()
    assert made._line is None
    eventually(lambda: started and started[0].returncode is not None, 30)


class Sent:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, batch: bytes, count: int) -> None:
        found = [json.loads(line) for line in unpack(batch)]
        self.events += [event for event in found if "record" not in event]


@pytest.mark.parametrize("build_in", ["process", "thread"])
def test_a_transport_loses_nothing_when_the_process_is_killed_again_and_again(
    options: Options, counted: Callable[..., float], build_in: str
) -> None:
    sent = Sent()
    transport = Transport(sent, options(BUILD_IN=build_in, BUFFER_SIZE=10_000, LINGER_SECONDS=0))
    try:
        for n in range(400):
            transport.submit(exchange())
            remote = transport._remote
            if n % 80 == 40 and remote is not None:
                eventually(lambda remote=remote: remote.ready or not remote._breaker.allows, 30)
                if remote.pid is not None:
                    os.kill(remote.pid, signal.SIGKILL)
        eventually(lambda: len(sent.events) == 400, 30)
    finally:
        transport.close()
    assert [event["seq"] for event in sent.events] == list(range(400))
    assert counted(metrics.queued) == 400
    assert counted(metrics.rejected) == 0


def test_the_load_is_that_of_the_thread_itself() -> None:
    clock, cpu = [0.0], [0.0]
    load = Load(lambda: clock[0], lambda: cpu[0])
    assert not load.heavy()
    seen = []
    for share in (0.001, 0.02, 0.05, 0.001):
        for _ in range(10):
            clock[0] += 0.5
            cpu[0] += 0.5 * share
            seen.append((share, load.heavy()))
    assert {share for share, heavy in seen if heavy} == {0.05}


@pytest.mark.parametrize(
    ("most", "used", "cache", "room"),
    [
        ("max", 1 << 40, 0, True),
        (str(256 << 20), 100 << 20, 0, True),
        (str(256 << 20), 200 << 20, 0, False),
        # The cache of files is given back at need.
        (str(256 << 20), 200 << 20, 60 << 20, True),
        ("what", 0, 0, True),
    ],
)
def test_a_container_without_room_gets_no_further_process(
    tmp_path: Path, most: str, used: int, cache: int, room: bool
) -> None:
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\ninactive_file {cache}\n")
    clock = [0.0]
    asked = Room(tmp_path, lambda: clock[0])
    # Where it is limited not at once: others ask in the same moment.
    limited = most.isdecimal()
    assert asked.there() != limited
    clock[0] = 10.0
    assert asked.there() == room
    if limited:
        assert not asked.there(), "the next look is later"


def test_where_nothing_tells_of_limits_there_is_room(tmp_path: Path) -> None:
    assert Room(tmp_path / "none").there()
