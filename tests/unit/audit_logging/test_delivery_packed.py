"""Batches travel packed: what is damaged, what an older version sent, and what answers may do."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from audit_logging import metrics
from audit_logging.batch import Batch, pack
from audit_logging.delivery import DEAD_STREAM, RETRY_STREAM, Publisher
from audit_logging.exceptions import Declined, RetryLater
from audit_logging.spool import Record
from tests.unit.audit_logging.test_delivery import (
    LINES,
    Counted,
    Script,
    dead,
    give,
    items,
    make,
    script,
    server,
    waiting,
)

__all__ = ["make", "script", "server"]

CUT = pack(LINES)[:-9]
FLIPPED = bytes([*pack(LINES)[:40], *(byte ^ 0x55 for byte in pack(LINES)[40:])])


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def as_the_publisher_does(script: Script) -> Callable[[list[str]], Any]:
    """It refuses a body that is not gzip; the handler then has no lines."""
    return lambda lines: script.take(lines) if lines else (400, {}, b"The body is not gzip.")


@pytest.mark.parametrize(
    "payload",
    [encoded(CUT), encoded(FLIPPED), encoded(b""), encoded(b"\x00" * 20), "no base64 \u2603", ""],
)
def test_a_damaged_message_becomes_a_dead_letter_and_goes_round_no_loop(
    make: Any, script: Script, counted: Counted, payload: str
) -> None:
    script.answer = as_the_publisher_does(script)
    deliverer = make()
    deliverer.deliver(payload, 8)
    assert waiting(deliverer) == []
    (record,) = deliverer.dead_letters.read(DEAD_STREAM, 0)
    assert dict(record.headers)["reason"]
    # The very bytes, for whoever wants to save what can be saved.
    kept = base64.b64decode(record.value)
    assert kept in (payload.encode(), base64.b64decode(payload.encode("ascii", "ignore") + b"=="))
    assert counted(metrics.dead_lettered) == 8
    give(deliverer, LINES)
    assert script.stored == LINES


def test_damage_in_the_spool_ends_among_the_dead_letters_too(make: Any, script: Script) -> None:
    script.answer = as_the_publisher_does(script)
    deliverer = make()
    deliverer.spool.append(
        RETRY_STREAM,
        [
            Record(CUT, headers=(("events", b"8"),)),
            Record(b"{\xff\xfe", headers=(("events", b"1"),)),
            Record(pack(LINES), headers=(("events", b"8"),)),
        ],
    )
    while deliverer.drain_step() == 0.0:
        pass
    assert script.stored == LINES
    assert len(dead(deliverer)) == 2
    assert deliverer.spool.stats(RETRY_STREAM).records == 0


def test_damage_that_only_a_split_finds(make: Any, script: Script) -> None:
    """A firewall's 403 says nothing of gzip: it is declined until somebody looks inside."""
    script.answer = lambda lines: (403, {}, b"")
    deliverer = make()
    deliverer.deliver(encoded(CUT), 8)
    assert deliverer.spool.stats(RETRY_STREAM).records == 1
    for later in range(1, 5):
        deliverer.spool._clock = lambda later=later: time.time() + later * 1000
        deliverer.drain_step()
    assert len(dead(deliverer)) == 1
    assert deliverer.spool.stats(RETRY_STREAM).records == 0


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: encoded(text.encode())])
def test_messages_and_spools_of_an_older_version_are_delivered(
    make: Any, script: Script, wrap: Callable[[str], str]
) -> None:
    deliverer = make()
    deliverer.deliver(wrap("\n".join(LINES)), 8)
    assert script.stored == LINES
    deliverer.spool.append(RETRY_STREAM, [Record("\n".join(LINES[:3]).encode())])
    deliverer.drain_step()
    assert script.stored == LINES + LINES[:3]


def test_what_is_sent_again_is_packed_anew_and_the_rest_is_not_unpacked(
    make: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Batch] = []
    lines = Batch.lines
    monkeypatch.setattr(Batch, "lines", lambda batch: (looked.append(batch), lines(batch))[1])
    deliverer = make(DELIVERY_RETRIES=0)
    give(deliverer, LINES)
    assert looked == []
    again = {"status": "rejected", "retryable": True}
    script.answer = lambda said: (
        200,
        {},
        items([again, *({"status": "spooled"} for _ in LINES[1:])]),
    )
    give(deliverer, LINES)
    assert looked
    assert waiting(deliverer) == LINES[:1]


def test_a_count_that_is_wrong_is_not_believed(make: Any, script: Script) -> None:
    deliverer = make()
    deliverer.deliver(Batch.of(LINES).message(), 3)
    assert script.stored == LINES
    assert waiting(deliverer) == []
    script.answer = lambda lines: (200, {}, items({"status": "published"} for _ in range(3)))
    with pytest.raises(Declined, match="3 of 8"):
        deliverer.target.send(Batch(pack(LINES), 3 + 1))


# -- Retry-After -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (formatdate(1_800_000_030, usegmt=True), 30.0),
        (formatdate(1_700_000_000, usegmt=True), 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1.5", None),
        ("Fri, 99 Foo 2026 99:99:99 GMT", None),
        ("9" * 400, 999_999_999.0),
    ],
)
def test_both_forms_of_retry_after_are_understood(
    make: Any, script: Script, value: str, seconds: float | None
) -> None:
    publisher = Publisher(make()._options, clock=lambda: 1_800_000_000.0)
    script.answer = lambda lines: (503, {"Retry-After": value}, b"")
    with pytest.raises(RetryLater) as later:
        publisher.send(Batch.of(LINES))
    assert later.value.retry_after == seconds


def test_who_asks_for_a_long_pause_is_not_asked_again_before(make: Any, script: Script) -> None:
    script.answer = lambda lines: (429, {"Retry-After": "30"}, b"")
    deliverer = make(DELIVERY_RETRIES=5)
    give(deliverer, LINES)
    give(deliverer, LINES)
    assert len(script.requests) == 1
    assert waiting(deliverer) == LINES * 2
    assert not deliverer.breaker.allows


# -- answers that do not end -------------------------------------------------------------------


def test_an_answer_that_drips_costs_a_bounded_time(make: Any) -> None:
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                while not over.wait(0.02):
                    connection.sendall(b" ")
            except OSError:
                # The client hung up, as it should.
                over.set()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        publisher = Publisher(make(PUBLISHER_URL=url, DELIVERY_TIMEOUT=0.5)._options)
        with pytest.raises(RetryLater, match="takes too long"):
            publisher.send(Batch.of(LINES))
        thread.join(5)
        assert over.is_set()


def test_an_answer_larger_than_any_is_not_read_to_its_end(
    make: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit_logging.publisher_client._MAX_ANSWER", 100_000)
    script.answer = lambda lines: (200, {}, b" " * 200_000)
    with pytest.raises(RetryLater, match="does not end"):
        make().target.send(Batch.of(LINES))


def test_connections_are_used_again(make: Any, script: Script, server: Any) -> None:
    accepted: list[Any] = []
    process = server.process_request
    server.process_request = lambda *args: (accepted.append(args), process(*args))[1]
    deliverer = make()
    for line in LINES:
        give(deliverer, [line])
    script.answer = lambda lines: (500, {}, json.dumps({"a": 1}).encode())
    give(deliverer, LINES)
    assert len(accepted) == 1


def test_so_are_those_of_many_threads(make: Any, script: Script, server: Any) -> None:
    """As `audit_worker --pool threads` has them."""
    accepted: list[Any] = []
    process = server.process_request
    server.process_request = lambda *args: (accepted.append(args), process(*args))[1]
    together = threading.Barrier(8)

    def answer(lines: list[str]) -> tuple[int, dict[str, str], bytes]:
        together.wait(20)
        return script.take(lines)

    script.answer = answer
    target = make().target
    for _ in range(3):
        threads = [threading.Thread(target=target.send, args=(Batch.of([line]),)) for line in LINES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(script.stored) == 24
    assert len(accepted) == 8
