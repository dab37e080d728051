"""Callers that leave, at every moment of a request: one record each, and nothing left open."""

from __future__ import annotations

import itertools
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.servers import kinds, wire
from tests.integration.servers.conversations import DOCUMENT, FILES, JSON, MULTIPART, by_case
from tests.integration.servers.kinds import Kind, Served
from tests.integration.servers.project.views import MEGABYTES
from tests.services.fixtures import serve
from tests.support import eventually

pytestmark = [pytest.mark.services, pytest.mark.slow]

KINDS = (
    kinds.SYNC,
    kinds.GTHREAD_PRELOAD,
    kinds.ASGI_WORKER,
    kinds.UVICORN_WORKER,
    kinds.UVICORN,
    kinds.UWSGI,
)
ASGI = [kind for kind in KINDS if kind.asgi]
WSGI = [kind for kind in KINDS if not kind.asgi]
_cases = itertools.count()


@pytest.fixture(scope="module", params=KINDS, ids=str)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    kind: Kind = request.param
    # Its worker may be held by a caller of ours: what is in the way is named after 5 seconds.
    with serve(Served(kind)) as served:
        yield served


def behind(some: list[Kind]) -> pytest.MarkDecorator:
    """For these servers alone: elsewhere there is no such moment."""
    return pytest.mark.parametrize("served", some, indirect=True, ids=str, scope="module")


@pytest.fixture
def case() -> str:
    return f"leaving-{next(_cases)}"


def leave(connection: socket.socket) -> None:
    """Cut the connection: what is under way in either direction is lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def record_of(served: Served, case: str) -> dict[str, Any]:
    """The one record of a case; a request after it shows that the server goes on."""
    assert served.get(f"/items/1?case=after-{case}").status == 201
    found: list[dict[str, Any]] = []

    def recorded() -> bool:
        nonlocal found
        find = by_case(served.records())
        found = find(case)
        return bool(found and find(f"after-{case}"))

    eventually(recorded, 15, lambda: f"{case}: {found}\n{served.tail_log()}")
    (event,) = found
    return event


# -- while it sends ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["body", "pieces", "never"])
def test_before_the_body_is_complete(served: Served, case: str, how: str) -> None:
    sent = wire.message("POST", f"/echo?how={how}&case={case}", DOCUMENT, content_type=JSON)
    connection = wire.connect(served.port)
    connection.sendall(sent[:-50])
    leave(connection)
    if served.kind.asgi:
        # Django itself gives such a request up before any middleware has seen it.
        assert served.get(f"/items/1?case=after-{case}").status == 201
        eventually(lambda: by_case(served.records())(f"after-{case}"), 15)
        assert by_case(served.records())(case) == []
        return
    event = record_of(served, case)
    # Whether the server tells the view of it is the server's affair; what it read is known.
    assert event["request_body_state"] in ("truncated", "omitted_parse")
    assert event["request_size"] == len(DOCUMENT)
    assert DOCUMENT.decode()[:20] not in event["request_body"]
    if how == "never":
        assert event["request_body"].startswith("[not read")


# Behind ASGI Django waits for the whole body, before any middleware.
@behind(WSGI)
def test_a_service_that_does_not_read_waits_for_no_body(served: Served, case: str) -> None:
    sent = wire.message("POST", f"/closed/x?case={case}", DOCUMENT, content_type=JSON)
    with wire.connect(served.port) as connection:
        connection.sendall(sent[:-50])
        assert wire.parse(connection.recv(65536)).status == 401
    assert record_of(served, case)["response_code"] == 401


# -- before the answer -------------------------------------------------------------------------


def test_before_the_answer_of_a_sync_view(served: Served, case: str) -> None:
    """The view runs to its end, as without us."""
    connection = wire.connect(served.port)
    connection.sendall(wire.message("POST", f"/gate?name={case}&case={case}", b"{}",
                                    content_type=JSON))  # fmt: skip
    eventually(lambda: f"entered {case}" in served.notes(), 15)
    leave(connection)
    served.open_gate(case)
    event = record_of(served, case)
    eventually(lambda: f"left {case}" in served.notes(), 15)
    if served.kind.asgi:
        assert (event["outcome"], event["response_code"]) == ("disconnected", 499)
        assert event["response_size"] is None
    else:
        # A WSGI server learns of it when it writes, if then.
        assert (event["outcome"], event["response_code"]) == ("completed", 200)
        assert (event["response_body"], event["response_size"]) == ("through", 7)


# Behind WSGI an async view is a sync one.
@behind(ASGI)
def test_before_the_answer_of_an_async_view(served: Served, case: str) -> None:
    connection = wire.connect(served.port)
    connection.sendall(
        wire.message("POST", f"/gate-async?name={case}&case={case}", DOCUMENT, content_type=JSON)
    )
    eventually(lambda: f"entered {case}" in served.notes(), 15)
    leave(connection)
    event = record_of(served, case)
    eventually(lambda: f"cancelled {case}" in served.notes(), 15)
    assert (event["outcome"], event["response_code"]) == ("disconnected", 499)
    assert event["endpoint_name"] == "gate-async"
    assert event["request_body"] == DOCUMENT.decode()


def _stream_of(served: Served) -> str:
    """The view whose stream is sent as it comes; Django reads the other to its end before."""
    return "stream-async" if served.kind.asgi else "stream"


# -- while the answer comes --------------------------------------------------------------------


def test_in_the_middle_of_a_stream(served: Served, case: str) -> None:
    view = _stream_of(served)
    closed = served.notes().count("stream closed")
    connection = wire.connect(served.port)
    connection.sendall(wire.message("GET", f"/{view}?kind=waits&case={case}"))
    read_until(connection, b"first,")
    leave(connection)
    event = record_of(served, case)
    assert (event["outcome"], event["response_code"]) == ("disconnected", 200)
    assert event["response_body_state"] == "truncated"
    assert event["response_size"] >= 6
    eventually(lambda: served.notes().count("stream closed") == closed + 1, 15)


def test_a_caller_that_reads_slowly(served: Served, case: str) -> None:
    """Its record comes at the true end, with the true size."""
    view = _stream_of(served)
    with wire.connect(served.port) as connection:
        connection.sendall(wire.message("GET", f"/{view}?kind=long&case={case}"))
        received = read_until(connection, b"first,")
        # More is under way than all buffers hold: it cannot have ended.
        assert by_case(served.records())(case) == []
        received += wire.read_all(connection)
    event = record_of(served, case)
    assert event["response_size"] == 6 + (MEGABYTES << 20) + len(b"second,third")
    assert (event["outcome"], event["response_body_state"]) == ("completed", "truncated")
    assert len(received) > MEGABYTES << 20


def test_in_the_middle_of_a_file(served: Served, case: str) -> None:
    connection = wire.connect(served.port)
    connection.sendall(wire.message("GET", f"/large-file?case={case}"))
    read_until(connection, b"llll")
    leave(connection)
    event = record_of(served, case)
    assert (event["response_code"], event["response_body_state"]) == (200, "omitted_binary")


# -- and afterwards ----------------------------------------------------------------------------


def test_nothing_stays_open(served: Served) -> None:
    """Files, sockets and pipes after storms of uploads, streams and broken connections."""

    def storm(times: int) -> None:
        for n in range(times):
            assert served.get("/items/1?case=storm").status == 201
            served.send(wire.message("POST", "/upload?with=temporary&case=storm", FILES,
                                     content_type=MULTIPART))  # fmt: skip
            served.send(wire.message("POST", "/echo?how=pieces&case=storm", DOCUMENT * 150,
                                     content_type=JSON))  # fmt: skip
            served.send(wire.message("GET", "/stream?kind=breaks&case=storm"))
            for target in ("/large-file?case=storm", "/stream?kind=long&case=storm"):
                connection = wire.connect(served.port)
                connection.sendall(wire.message("GET", target))
                if n % 2:
                    read_until(connection, b"HTTP/1.1 200")
                leave(connection)
            connection = wire.connect(served.port)
            connection.sendall(
                wire.message("POST", "/upload?case=storm", FILES, content_type=MULTIPART)[:-900]
            )
            leave(connection)

    storm(3)
    before = open_things(served)
    storm(15)

    def grown() -> Counter[str]:
        return open_things(served) - before

    # A thread that had nothing to do so far may have opened its own way to the spool.
    eventually(lambda: sum(grown().values()) <= 3, 15, lambda: f"{grown()}")


def test_each_request_that_began_made_one_record(served: Served) -> None:
    """All of the above together, however it ended."""

    def counts() -> tuple[int, int]:
        return served.notes().count("started"), len(served.records())

    eventually(lambda: counts()[0] == counts()[1], 15, lambda: f"begun, recorded: {counts()}")
    assert len({event["request_id"] for event in served.records()}) == counts()[0] > 100
    assert "the audit failed" not in served.tail_log(10_000)


def open_things(served: Served) -> Counter[str]:
    """What the server's processes have open, by kind or name."""
    return Counter(re.sub(r"\[\d+\]", "", target) for target in served.descriptors())


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """Read until `wanted` has come, in small pieces; return what came."""
    received = b""
    while wanted not in received:
        piece = connection.recv(512)
        assert piece, f"the connection ended after {received[-200:]!r}"
        received += piece
    return received
