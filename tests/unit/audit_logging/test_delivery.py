"""Delivery against a publisher that answers in every way: each event ends in one place."""

from __future__ import annotations

import base64
import gzip
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import Reject
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from django.core.management import call_command

from audit_logging import delivery, metrics, tasks
from audit_logging.batch import Batch, pack
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import (
    BATCH_PATH,
    DEAD_STREAM,
    RETRY_STREAM,
    Deliverer,
    Publisher,
)
from audit_logging.exceptions import DeliveryRefused, RetryLater, SpoolError
from audit_logging.signing import Signer, SigningError, canonical
from audit_logging.spool import DurableQueue, Record
from tests.support import eventually

Counted = Callable[..., float]

LINES = [json.dumps({"request_id": f"id-{n}", "n": n}) for n in range(8)]


class Script:
    """What the publisher does: a function of the lines it was sent, to (status, headers, body)."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.bodies: list[bytes] = []
        self.requests: list[tuple[str, dict[str, str], list[str]]] = []
        self.answer: Callable[[list[str]], tuple[int, dict[str, str], bytes]] = self.take

    def take(self, lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        self.stored += lines
        return 200, {}, items({"status": "published"} for _ in lines)


def items(answers: Any) -> bytes:
    return json.dumps({"items": list(answers)}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # one packet, not one for the headers and one, 40 ms later, for the rest

    def do_POST(self) -> None:
        script: Script = self.server.script  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        script.bodies.append(body)
        assert self.headers["Content-Encoding"] == "gzip"
        try:
            lines = [line for line in gzip.decompress(body).decode().split("\n") if line]
        except (OSError, EOFError, zlib.error):
            lines = []
        script.requests.append((self.path, dict(self.headers), lines))
        status, headers, answer = script.answer(lines)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(script: Script) -> Iterator[http.server.ThreadingHTTPServer]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.script = script  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def make(server: Any, options: Callable[..., LoggingSettings]) -> Iterator[Any]:
    made: list[Deliverer] = []

    def make(**values: Any) -> Deliverer:
        values = {
            "PUBLISHER_URL": f"http://127.0.0.1:{server.server_port}/",
            "DELIVERY_RETRIES": 1,
            "DELIVERY_TIMEOUT": 5,
        } | values
        chosen = options(**values)
        deliverer = Deliverer(Publisher(chosen), chosen, sleep=lambda seconds: None)
        # Tests drain by hand.
        deliverer.start = lambda: None  # type: ignore[method-assign]
        made.append(deliverer)
        return deliverer

    yield make
    for deliverer in made:
        deliverer.stop()


def give(deliverer: Deliverer, lines: Sequence[str]) -> None:
    """Deliver a batch as Celery's task does."""
    batch = Batch.of(lines)
    deliverer.deliver(batch.message(), batch.count)


def waiting(deliverer: Deliverer) -> list[str]:
    records = deliverer.spool.read(RETRY_STREAM, 0)
    return [line for record in records for line in Batch.from_record(record.value, 0).lines()]


def dead(deliverer: Deliverer) -> list[str]:
    return [record.value.decode() for record in deliverer.dead_letters.read(DEAD_STREAM, 0)]


def places(deliverer: Deliverer, script: Script) -> list[str]:
    return sorted(script.stored + waiting(deliverer) + dead(deliverer))


def test_a_batch_is_stored(make: Any, script: Script, counted: Counted) -> None:
    deliverer = make()
    give(deliverer, LINES)
    assert script.stored == LINES
    ((path, headers, _),) = script.requests
    assert script.bodies == [pack(LINES)]  # the very bytes
    assert path == BATCH_PATH
    assert headers["Content-Type"] == "application/x-ndjson"
    assert counted(metrics.delivered, status="published") == 8
    assert places(deliverer, script) == sorted(LINES)


def test_each_event_by_its_own_answer(make: Any, script: Script, counted: Counted) -> None:
    def answer(lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        said = []
        for line in lines:
            n = json.loads(line)["n"]
            if n % 4 == 0:
                script.stored.append(line)
                said.append({"status": "published"})
            elif n % 4 == 1:
                script.stored.append(line)
                said.append({"status": "spooled"})
            elif n % 4 == 2:
                why = {"field": "path", "reason": "too long"}
                said.append({"status": "rejected", "retryable": False, "error": why})
            else:
                said.append({"status": "rejected", "retryable": True})
        return 200, {}, items(said)

    script.answer = answer
    deliverer = make()
    give(deliverer, LINES)
    assert places(deliverer, script) == sorted(LINES)
    assert dead(deliverer) == [LINES[2], LINES[6]]
    assert waiting(deliverer) == [LINES[3], LINES[7]]
    assert counted(metrics.delivered, status="spooled") == 2
    assert counted(metrics.dead_lettered) == 2
    assert counted(metrics.spooled, reason="publisher_down") == 2
    (reason,) = {dict(r.headers)["reason"] for r in deliverer.dead_letters.read(DEAD_STREAM, 0)}
    assert json.loads(reason or b"") == {"field": "path", "reason": "too long"}


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"Retry-After": "1"}, b"{}"),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"{}"),
        (503, {"Retry-After": "\xb2"}, b"{}"),
        (502, {}, b""),
        (200, {}, items({} for _ in range(8))),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2][:20].decode()}",
)
def test_what_is_away_is_asked_again_and_then_from_the_spool(
    make: Any, script: Script, answer: tuple[int, dict[str, str], bytes]
) -> None:
    script.answer = lambda lines: answer
    deliverer = make()
    give(deliverer, LINES)
    assert waiting(deliverer) == LINES
    assert dead(deliverer) == []
    assert len(script.requests) == 2
    script.answer = script.take
    deliverer.breaker.succeeded()
    eventually(lambda: (deliverer.drain_step(), waiting(deliverer) == [])[1])
    assert script.stored == LINES


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b"<h1>Server Error</h1>"),
        (401, {}, b"{}"),
        (403, {}, b"{}"),
        (404, {}, b"not here"),
        (405, {}, b""),
        (302, {"Location": "https://login.example.com/"}, b""),
        (200, {}, b""),
        (200, {}, b"not json"),
        (200, {}, b"[]"),
        (200, {}, b'{"items": null}'),
        (200, {}, b'{"items": [1, 2, 3, 4, 5, 6, 7, 8]}'),
        (200, {}, b'{"items": []}'),
        (200, {}, items({"status": "published"} for _ in range(7))),
        (204, {}, b""),
        (200, {}, b"[" * 100_000),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2][:20].decode()}",
)
def test_a_batch_that_is_not_taken_waits_in_the_spool_and_stops_no_other(
    make: Any, script: Script, answer: tuple[int, dict[str, str], bytes]
) -> None:
    script.answer = lambda lines: answer
    deliverer = make()
    give(deliverer, LINES)
    assert waiting(deliverer) == LINES
    assert dead(deliverer) == []
    assert len(script.requests) == 1
    script.answer = script.take
    other = json.dumps({"request_id": "other"})
    give(deliverer, [other])
    assert deliverer.drain_step() == 0.0
    assert script.stored == [other, *LINES]
    assert waiting(deliverer) == []


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_one_bad_event_costs_itself_alone(make: Any, script: Script, status: int) -> None:
    def answer(lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        if LINES[0] in lines or LINES[5] in lines:
            return status, {}, b'{"title": "bad"}'
        return script.take(lines)

    script.answer = answer
    deliverer = make()
    give(deliverer, LINES)
    assert dead(deliverer) == [LINES[0], LINES[5]]
    assert places(deliverer, script) == sorted(LINES)
    reason = dict(deliverer.dead_letters.read(DEAD_STREAM, 0)[0].headers)["reason"]
    assert f"answered {status}".encode() in (reason or b"")


def test_too_much_at_once_is_split(make: Any, script: Script) -> None:
    script.answer = lambda lines: (413, {}, b"") if len(lines) > 2 else script.take(lines)
    deliverer = make()
    give(deliverer, LINES)
    assert script.stored == LINES


def test_a_publisher_that_dies_half_way_through_a_split_batch(make: Any, script: Script) -> None:
    def answer(lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        if len(lines) > 4:
            return 413, {}, b""
        return (503, {}, b"") if script.stored else script.take(lines)

    script.answer = answer
    deliverer = make()
    give(deliverer, LINES)
    assert script.stored == LINES[:4]
    assert waiting(deliverer) == LINES[4:]


def test_a_dead_port(make: Any, counted: Counted) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    deliverer = make(PUBLISHER_URL=f"http://127.0.0.1:{port}")
    for line in LINES:
        give(deliverer, [line])
    assert waiting(deliverer) == LINES
    # Two tries, and then the breaker keeps the others from asking.
    assert counted(metrics.delivery_failures, reason="unavailable") == 2
    assert deliverer.drain_step() == 0.5


def test_whether_it_is_back_costs_one_thread_its_time_and_not_all(
    make: Any, script: Script
) -> None:
    held, asked = threading.Event(), threading.Event()

    def answer(lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        asked.set()
        held.wait(10)
        return 503, {}, b""

    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    give(deliverer, LINES[:1])
    deliverer.breaker._open_until = 0.0  # its time is over
    script.answer = answer
    before = len(script.requests)
    first = threading.Thread(target=give, args=(deliverer, LINES[1:2]))
    first.start()
    assert asked.wait(10)
    for line in LINES[2:]:
        give(deliverer, [line])
    assert deliverer.drain_step() == 0.5
    held.set()
    first.join(10)
    # Once, also by the one that asks: there is time for retries when it is back.
    assert len(script.requests) - before == 1
    assert sorted(waiting(deliverer)) == sorted(LINES)
    deliverer.breaker._open_until = 0.0
    script.answer = script.take
    give(deliverer, ["{}"])
    assert deliverer.breaker.closed


def test_an_answer_of_any_kind_says_that_it_is_back(make: Any, script: Script) -> None:
    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    give(deliverer, LINES[:1])
    deliverer.breaker._open_until = 0.0
    script.answer = lambda lines: (403, {}, b"") if lines == LINES[1:2] else script.take(lines)
    give(deliverer, LINES[1:2])
    give(deliverer, LINES[2:3])
    assert script.stored == LINES[2:3]


def test_a_publisher_that_does_not_answer_in_time(make: Any, script: Script) -> None:
    held = threading.Event()

    def answer(lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        held.wait(10)
        return 200, {}, b""

    script.answer = answer
    deliverer = make(DELIVERY_TIMEOUT=0.1, DELIVERY_RETRIES=0)
    give(deliverer, LINES)
    held.set()
    assert waiting(deliverer) == LINES


def test_the_spool_drains_by_itself_when_the_publisher_is_back(
    make: Any, script: Script, counted: Counted
) -> None:
    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    for line in LINES:
        give(deliverer, [line])
    assert waiting(deliverer) == LINES
    script.answer = script.take
    del deliverer.start
    deliverer.breaker.succeeded()
    deliverer.start()
    eventually(lambda: script.stored == LINES)
    eventually(lambda: counted(metrics.replayed, spool="delivery") == 8)
    assert waiting(deliverer) == []


def test_drained_events_that_are_refused_or_to_be_sent_again(make: Any, script: Script) -> None:
    script.answer = lambda lines: (503, {}, b"")
    deliverer = make()
    give(deliverer, LINES[:2])
    deliverer.breaker.succeeded()
    script.answer = lambda lines: (
        200,
        {},
        items(
            [{"status": "rejected", "retryable": False}, {"status": "rejected", "retryable": True}]
        ),
    )
    assert deliverer.drain_step() == 0.0
    assert dead(deliverer) == [LINES[0]]
    assert waiting(deliverer) == [LINES[1]]


def test_full_dead_letters_hold_nothing_up_and_are_counted(
    make: Any, script: Script, counted: Counted
) -> None:
    script.answer = lambda lines: (400, {}, b"")
    deliverer = make(SPOOL_MAX_BYTES=100_000)
    for _ in range(4):
        give(deliverer, [json.dumps({"body": "x" * 40_000})])
    assert len(dead(deliverer)) == 2
    assert counted(metrics.rejected, reason="dead_letters_full") == 2


def test_a_batch_that_can_go_nowhere_is_given_back_to_the_broker(
    make: Any, script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Celery would acknowledge a task that fails."""
    (tmp_path / "file").write_text("in the way")
    script.answer = lambda lines: (503, {}, b"")
    deliverer = make(DATA_DIR=tmp_path / "file" / "data")
    with pytest.raises(SpoolError):
        give(deliverer, LINES)
    monkeypatch.setattr(tasks, "get_deliverer", lambda: deliverer)
    monkeypatch.setattr(tasks, "REQUEUE_SECONDS", 0)
    with pytest.raises(Reject) as rejected:
        tasks.deliver(Batch.of(LINES).message(), 8)
    assert rejected.value.requeue


def test_a_process_has_one_deliverer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery.get_publisher, "_made", None)
    monkeypatch.setattr(delivery.get_deliverer, "_made", None)
    assert delivery.get_deliverer() is delivery.get_deliverer()
    assert delivery.get_publisher() is delivery.get_publisher()


# -- signatures --------------------------------------------------------------------------------


def write_key(path: Path) -> rsa.RSAPrivateKey:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    new = path.with_suffix(".new")
    new.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    new.replace(path)
    return key


def verify(key: rsa.RSAPrivateKey, headers: dict[str, str]) -> None:
    signed = canonical(
        headers["WM-CONSUMER.ID"], headers["WM-CONSUMER.INTIMESTAMP"], headers["WM-SEC.KEY-VERSION"]
    )
    key.public_key().verify(
        base64.b64decode(headers["WM-SEC.AUTH-SIGNATURE"], validate=True),
        signed,
        padding.PKCS1v15(),
        hashes.SHA256(),
    )


def test_the_canonical_string_is_the_public_one() -> None:
    assert canonical(" c ", "1700000000000", "2 ") == b"c\n1700000000000\n2\n"


def test_deliveries_are_signed_and_a_rotated_key_is_read_again(
    make: Any, script: Script, tmp_path: Path
) -> None:
    path = tmp_path / "key.pem"
    first = write_key(path)
    deliverer = make(PRIVATE_KEY_PATH=path, CONSUMER_ID="shop-id", KEY_VERSION="3")
    give(deliverer, [LINES[0]])
    second = write_key(path)
    give(deliverer, [LINES[1]])
    verify(first, script.requests[0][1])
    verify(second, script.requests[1][1])
    assert script.requests[1][1]["WM-SEC.KEY-VERSION"] == "3"
    path.unlink()
    give(deliverer, [LINES[2]])
    verify(second, script.requests[2][1])


@pytest.mark.parametrize("content", [None, b"nonsense", b""])
def test_a_key_that_cannot_be_used_costs_no_event(
    make: Any, script: Script, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    deliverer = make(PRIVATE_KEY_PATH=path, CONSUMER_ID="shop-id")
    give(deliverer, [LINES[0]])
    assert script.requests == []
    assert waiting(deliverer) == [LINES[0]]
    write_key(path)
    deliverer.breaker.succeeded()
    deliverer.drain_step()
    assert script.stored == [LINES[0]]


def test_what_is_wrong_with_a_key_is_said(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(SigningError, match="No such file"):
        Signer("c", "1", path).headers(0)
    with pytest.raises(SigningError, match="CONSUMER_ID is empty"):
        Signer("", "1", path).headers(0)
    key = write_key(path)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"x"),
        )
    )
    with pytest.raises(SigningError, match="not an unencrypted PEM"):
        Signer("c", "1", path).headers(0)


def test_errors_of_the_publisher_are_told_apart(make: Any, script: Script) -> None:
    publisher = make().target
    script.answer = lambda lines: (429, {"Retry-After": "7"}, b"slow\ndown")
    with pytest.raises(RetryLater, match="answered 429: slow down") as later:
        publisher.send(Batch.of(LINES))
    assert later.value.retry_after == 7
    script.answer = lambda lines: (422, {}, b"no")
    with pytest.raises(DeliveryRefused):
        publisher.send(Batch.of(LINES[:1]))


# -- the command -------------------------------------------------------------------------------


def command(*args: str) -> str:
    out = io.StringIO()
    call_command("audit_spool", *args, stdout=out)
    return out.getvalue()


def test_the_spool_command(make: Any, script: Script, settings: Any, tmp_path: Path) -> None:
    settings.AUDIT_LOGGING = settings.AUDIT_LOGGING | {"DATA_DIR": tmp_path / "data"}
    assert "0 records" in command()
    assert command("dead-letters") == "No event was refused.\n"
    assert "0 events" in command("redeliver")
    assert not (tmp_path / "data").exists()  # looking makes nothing
    deliverer = make()
    script.answer = lambda lines: (400, {}, b"path is missing")
    give(deliverer, LINES[:2])
    shown = {row["spool"]: row["records"] for row in json.loads(command("--json"))}
    assert shown == {"capture": 0, "broker": 0, "delivery": 0, "dead-letters": 2}
    assert "the oldest for" in command("status")
    assert "id-0  the publisher answered 400: path is missing" in command("dead-letters")
    assert len(command("dead-letters", "--limit", "1", "--json").splitlines()) == 1
    assert "2 events will be delivered again" in command("redeliver")
    assert dead(deliverer) == []
    script.answer = script.take
    eventually(lambda: (deliverer.drain_step(), script.stored == LINES[:2])[1])


def test_the_spool_command_tells_of_the_embedded_broker(settings: Any, tmp_path: Path) -> None:
    url = f"durable://{tmp_path}/a%20b/broker.sqlite3"
    mine = {"DATA_DIR": tmp_path / "data", "BROKER_URL": url, "CELERY_QUEUE": "mine"}
    settings.AUDIT_LOGGING = settings.AUDIT_LOGGING | mine
    assert "broker" in command()
    assert list(tmp_path.iterdir()) == []
    queue = DurableQueue(tmp_path / "a b" / "broker.sqlite3")
    queue.append("mine", [Record(b"x")] * 3)
    queue.append("another", [Record(b"x")])
    queue.lease("mine", seconds=60, owner="me", max_records=2)
    line = next(line for line in command().splitlines() if line.startswith("broker"))
    assert "3 records" in line
    assert "2 of them in workers' hands" in line
    (row,) = [row for row in json.loads(command("--json")) if row["spool"] == "broker"]
    assert (row["records"], row["leased"]) == (3, 2)
    settings.AUDIT_LOGGING = settings.AUDIT_LOGGING | {"DELIVERY": "direct"}
    assert "broker" not in command()


def test_the_spool_command_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, repository / "manage.py", "audit_spool"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=repository,
        env=os.environ
        | {"DJANGO_SETTINGS_MODULE": "tests.settings", "AUDIT_LOGGING_DATA_DIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        ({"field": "event_type", "reason": "is missing"}, True),
        ({"field": "", "reason": "This consumer may not publish for this service."}, False),
        (None, False),
    ],
)
def test_an_older_publisher_is_suspected_only_where_a_field_is_at_fault(
    make: Any, script: Script, caplog: pytest.LogCaptureFixture, error: Any, asked: bool
) -> None:
    script.answer = lambda lines: (200, {}, items([{"status": "rejected", "error": error}]))
    make().hand_over(Batch.from_record(pack(LINES[:1]), 0))
    (message,) = caplog.messages
    assert "losses cannot be named" in message
    assert ("older than this service?" in message) is asked
