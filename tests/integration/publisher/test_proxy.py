"""The proxy does what it is told, or the tests that rest on it show nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.integration.publisher.proxy import Proxy
from tests.services.base import HOST
from tests.services.processes import free_port
from tests.support import eventually

PRODUCE, METADATA = 0, 3


class Broker:
    """Answers each request with its correlation id, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self._server = socket.create_server((HOST, 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as asked, contextlib.suppress(OSError):
            while length := asked.read(4):
                frame = asked.read(struct.unpack(">i", length)[0])
                correlation = struct.unpack_from(">hhi", frame)[2]
                self.got.append(correlation)
                connection.sendall(struct.pack(">ii", 4, correlation))


class Client:
    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=timeout)

    def ask(self, correlation: int, key: int = METADATA) -> None:
        self.socket.sendall(struct.pack(">ihhi", 8, key, 0, correlation))

    def answer(self) -> int | None:
        """The next answer's correlation id; None for a connection that was reset or closed."""
        try:
            data = self.socket.recv(8)
        except ConnectionResetError:
            return None
        return int(struct.unpack(">ii", data)[1]) if data else None


def hears_nothing(client: Client) -> bool:
    """Whether no answer comes for a moment."""
    client.socket.settimeout(0.3)
    try:
        client.answer()
    except TimeoutError:
        return True
    finally:
        client.socket.settimeout(20)
    return False


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()
    yield made
    made.close()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    with Proxy("test", free_port(), broker.port) as made:
        yield made


def test_it_passes_on(proxy: Proxy) -> None:
    client = Client(proxy.port)
    client.ask(7)
    assert client.answer() == 7


def test_dropped_packets_arrive_when_it_is_healed(proxy: Proxy, broker: Broker) -> None:
    client = Client(proxy.port)
    client.ask(1)
    assert client.answer() == 1
    proxy.drop()
    client.ask(2)
    assert hears_nothing(client)
    assert broker.got == [1]
    # The queue of connections is full: nobody answers one that is new.
    with pytest.raises(TimeoutError):
        Client(proxy.port, timeout=0.3)
    proxy.heal()
    assert client.answer() == 2
    assert broker.got == [1, 2]


def test_old_connections_may_stay_dead(proxy: Proxy, broker: Broker) -> None:
    old = Client(proxy.port)
    old.ask(1)
    assert old.answer() == 1
    proxy.drop()
    proxy.heal(old=False)
    old.ask(2)
    new = Client(proxy.port)
    new.ask(3)
    assert new.answer() == 3
    assert hears_nothing(old)
    assert broker.got == [1, 3]


def test_it_refuses(proxy: Proxy) -> None:
    client = Client(proxy.port)
    proxy.refuse()
    assert client.answer() is None
    with pytest.raises(ConnectionRefusedError):
        Client(proxy.port)
    proxy.heal()
    again = Client(proxy.port)
    again.ask(1)
    assert again.answer() == 1


def test_an_answer_is_lost_after_its_request_arrived(proxy: Proxy, broker: Broker) -> None:
    proxy.lose_answers(1)
    client = Client(proxy.port)
    client.ask(1, METADATA)
    assert client.answer() == 1
    client.ask(2, PRODUCE)
    assert client.answer() is None
    assert broker.got == [1, 2]
    eventually(lambda: proxy.lost() == 1)
    again = Client(proxy.port)
    again.ask(3, PRODUCE)
    assert again.answer() == 3


def test_it_delays(proxy: Proxy) -> None:
    client = Client(proxy.port)
    proxy.slow(seconds=1.0)
    client.ask(1)
    assert hears_nothing(client)
    assert client.answer() == 1
