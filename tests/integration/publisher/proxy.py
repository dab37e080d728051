"""A proxy before a Kafka broker that breaks the network on demand; a process of its own.

The broker advertises the proxy's address, so that clients never find a way around it. What it
passes on it passes in whole requests and answers, and it looks at their heads alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from typing import Any

from tests.services.base import HOST, Service
from tests.services.processes import REPOSITORY, free_port, knock

_PRODUCE = 0
_HEAD = struct.Struct(">hhi")  # of a request: key, version, correlation id
_CORRELATION = struct.Struct(">i")  # of an answer
#: Connections that fill the queue of a port that takes none; the kernel allows one more than told.
_FILLERS = 4
_QUEUED = 256


class Proxy(Service):
    """The proxy as its user sees it.

    :param listening: the port it listens on.
    :param upstream: the broker's port behind it.
    """

    env_name = "AUDIT_TEST_NO_SUCH_ADDRESS"

    def __init__(self, name: str, listening: int, upstream: int) -> None:
        super().__init__(own=True)
        self.name = f"proxy-{name}"
        self._listening = listening
        self._upstream = upstream
        self._control = 0

    @property
    def url(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def address(self) -> str:
        return self.url

    def prepare(self) -> None:
        self.port = self._listening
        self._control = free_port()

    def launch(self) -> None:
        ports = [str(port) for port in (self.port, self._upstream, self._control)]
        self.spawn(
            [sys.executable, "-m", "tests.integration.publisher.proxy", *ports],
            env={"PYTHONPATH": str(REPOSITORY)},
        )

    def ask(self) -> None:
        knock(self._control)

    # What it can be told ------------------------------------------------------------------

    def drop(self) -> None:
        """From now on no packet arrives, either way; nobody is told."""
        self._tell("drop")

    def refuse(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._tell("refuse")

    def slow(self, seconds: float = 0.0, rate: float = 0.0) -> None:
        """Everything arrives later by so much, and no faster than `rate` bytes a second."""
        self._tell("slow", seconds=seconds, rate=rate)

    def lose_answers(self, times: int = -1) -> None:
        """Cut the connection when the broker has answered a produce request, before the answer
        arrives: so many times, -1: until healed."""
        self._tell("lose_answers", times=times)

    def heal(self, *, old: bool = True) -> None:
        """All is well again.

        :param old: also for connections made before; otherwise these stay dead without a word, as
            behind a firewall that forgot them.
        """
        self._tell("heal", old=old)

    def lost(self) -> int:
        """How many answers to produce requests were lost so far."""
        return int(self._tell("count")["lost"])

    def _tell(self, do: str, **how: Any) -> Any:
        with socket.create_connection((HOST, self._control), timeout=20) as connection:
            connection.sendall(json.dumps({"do": do, **how}).encode() + b"\n")
            with connection.makefile("rb") as answer:
                return json.loads(answer.readline())


class _Connection:
    """A client's connection, and ours to the broker for it."""

    def __init__(self, proxy: _Relay, client: socket.socket) -> None:
        self.open = asyncio.Event()
        self._proxy = proxy
        self._client = client
        self._losing: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def abort(self) -> None:
        """Reset both ends."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        writers = []
        try:
            here, to_client = await asyncio.open_connection(sock=self._client)
            writers.append(to_client)
            await self.open.wait()
            there, to_broker = await asyncio.open_connection(HOST, self._proxy.upstream)
            writers.append(to_broker)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass_on(here, to_broker, self._asks))
                both.create_task(self._pass_on(there, to_client, self._answers))
        except* (OSError, EOFError):
            pass
        finally:
            for writer in writers:
                with contextlib.suppress(OSError):
                    # A reset, as lingering for no time makes of a close.
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                writer.transport.abort()
            self._proxy.connections.discard(self)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Any
    ) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._receive(reader, waiting, look))
            both.create_task(self._send(waiting, writer))

    async def _receive(
        self, reader: asyncio.StreamReader, waiting: asyncio.Queue[Any], look: Any
    ) -> None:
        while True:
            length = await reader.readexactly(4)
            frame = await reader.readexactly(int.from_bytes(length, "big"))
            look(frame)
            due = asyncio.get_running_loop().time() + self._proxy.seconds
            await waiting.put((due, length + frame))

    async def _send(self, waiting: asyncio.Queue[Any], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, frame = await waiting.get()
            await asyncio.sleep(due - loop.time())
            if self._proxy.rate:
                await asyncio.sleep(len(frame) / self._proxy.rate)
            await self.open.wait()
            writer.write(frame)
            await writer.drain()

    def _asks(self, frame: bytes) -> None:
        key, _, correlation = _HEAD.unpack_from(frame)
        if key == _PRODUCE and self._proxy.to_lose:
            self._proxy.to_lose -= 1
            self._losing.add(correlation)

    def _answers(self, frame: bytes) -> None:
        if _CORRELATION.unpack_from(frame)[0] in self._losing:
            self._proxy.lost += 1
            raise EOFError


class _Relay:
    """The proxy itself."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port = port
        self.upstream = upstream
        self.seconds = self.rate = 0.0
        self.to_lose = self.lost = 0
        self.connections: set[_Connection] = set()
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._fillers: list[socket.socket] = []
        self._dropping = False

    def listen(self) -> None:
        if self._listening is None:
            self._listening = socket.create_server((HOST, self.port), backlog=128)
            self._listening.setblocking(False)
        self._listening.listen(128)
        if self._accepting is None:
            self._accepting = asyncio.create_task(self._accept(self._listening))

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listening)
            connection = _Connection(self, client)
            if not self._dropping:
                connection.open.set()
            self.connections.add(connection)
            connection.start()

    def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None

    # Commands -----------------------------------------------------------------------------

    def drop(self) -> dict[str, Any]:
        self._dropping = True
        for connection in self.connections:
            connection.open.clear()
        self._stop_accepting()
        if self._listening is not None and not self._fillers:
            # The kernel drops what asks for a connection while the queue of those is full.
            self._listening.listen(0)
            for _ in range(_FILLERS):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex((HOST, self.port))
                self._fillers.append(filler)
        return {}

    def refuse(self) -> dict[str, Any]:
        self._stop_accepting()
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for connection in list(self.connections):
            connection.abort()
        return {}

    def slow(self, seconds: float, rate: float) -> dict[str, Any]:
        self.seconds, self.rate = seconds, rate
        return {}

    def lose_answers(self, times: int) -> dict[str, Any]:
        self.to_lose = times
        return {}

    def heal(self, old: bool) -> dict[str, Any]:
        self._dropping = False
        self.seconds = self.rate = 0.0
        self.to_lose = 0
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if old:
            for connection in self.connections:
                connection.open.set()
        self.listen()
        return {}

    def count(self) -> dict[str, Any]:
        return {"lost": self.lost, "connections": len(self.connections)}

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one command."""
        line = await reader.readline()
        if line:
            order = json.loads(line)
            writer.write(json.dumps(getattr(self, order.pop("do"))(**order)).encode() + b"\n")
            await writer.drain()
        writer.close()


async def _main(port: int, upstream: int, control: int) -> None:
    relay = _Relay(port, upstream)
    relay.listen()
    async with await asyncio.start_server(relay.obey, HOST, control) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:4])))
