"""A call ends when its time is over, though bytes go on coming."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from audit_sink.lake.deadline import DeadlineAdapter, deadline, time_left
from tests.support import eventually, in_child


class Dripping(BaseHTTPRequestHandler):
    """Answers /quick at once, anything else with a byte every now and then."""

    protocol_version = "HTTP/1.1"
    over = threading.Event()

    def do_GET(self) -> None:
        size = 2 if self.path == "/quick" else 1000
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for _ in range(size):
            if size > 2 and self.over.wait(0.05):
                self.close_connection = True
                return
            self.wfile.write(b".")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Dripping.over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Dripping.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.mount("http://", DeadlineAdapter())
        yield session


def took(session: requests.Session, url: str, seconds: float) -> float:
    """How long it took until a dripping answer was given up."""
    begun = time.monotonic()
    with deadline(seconds), pytest.raises(requests.RequestException):
        session.get(f"{url}/slow", timeout=30)
    return time.monotonic() - begun


def test_a_dripping_answer_ends_in_time(session: requests.Session, url: str) -> None:
    assert 0.3 <= took(session, url, 0.3) < 3


def test_the_earliest_of_many_calls_ends_first(url: str) -> None:
    ended: dict[float, float] = {}

    def call(seconds: float) -> None:
        with requests.Session() as session:
            session.mount("http://", DeadlineAdapter())
            ended[seconds] = took(session, url, seconds)

    # The longest is waited for first, so that the others have to wake the watchdog.
    threads = [threading.Thread(target=call, args=(seconds,)) for seconds in (20, 1.0, 0.5, 0.2)]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    assert ended.keys() == {1.0, 0.5, 0.2}
    assert all(seconds <= found < seconds + 3 for seconds, found in ended.items())
    Dripping.over.set()
    threads[0].join()


def test_a_connection_that_is_kept_outlives_the_call(session: requests.Session, url: str) -> None:
    with deadline(0.1):
        assert session.get(f"{url}/quick").content == b".."
    ends = time.monotonic() + 0.3
    eventually(lambda: time.monotonic() > ends)
    assert session.get(f"{url}/quick").content == b".."
    with deadline(5):
        assert session.get(f"{url}/quick").content == b".."


def test_no_request_begins_when_the_time_is_over(session: requests.Session, url: str) -> None:
    with deadline(0.01):
        eventually(lambda: time_left(1) == 0)
        with pytest.raises(requests.Timeout, match="the time for this call is over"):
            session.get(f"{url}/quick")
    assert time_left(7) == 7


def test_an_inner_deadline_does_not_lengthen_the_outer(session: requests.Session, url: str) -> None:
    with deadline(0.3):
        assert took(session, url, 20) < 3


def test_a_forked_child_has_its_own_watchdog(session: requests.Session, url: str) -> None:
    assert took(session, url, 0.1) < 3

    def ends_in_time() -> bool:
        with requests.Session() as own:
            own.mount("http://", DeadlineAdapter())
            return took(own, url, 0.2) < 3

    assert in_child(ends_in_time)
