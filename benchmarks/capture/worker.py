"""One measured process: does what the conductor says, one JSON line for each command.

Run as `python -m benchmarks.capture.worker SPEC`. It imports nothing but the standard library,
Django and the recorder that it measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from . import service

_HEADERS = {
    "host": "benchmark",
    "user-agent": "benchmark/1.0",
    "accept": "application/json",
    "wm_consumer.id": "benchmark",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
_LONGEST_PAUSE = 10


class Sync:
    """Calls the service as a WSGI server does."""

    def __init__(self, body: bytes) -> None:
        from django.core.handlers.wsgi import WSGIHandler

        self._body = body
        self._handler = WSGIHandler()
        self._environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": service.PATH,
            "QUERY_STRING": "",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "benchmark",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            **{f"HTTP_{name.upper().replace('-', '_')}": text for name, text in _HEADERS.items()},
        }

    def call(self) -> tuple[int, int]:
        """Make one request; return its nanoseconds, and those of CPU in this thread."""
        environ = {**self._environ, "wsgi.input": io.BytesIO(self._body)}
        cpu, started = time.thread_time_ns(), time.perf_counter_ns()
        response = self._handler(environ, _ignore)
        b"".join(response)
        response.close()
        ended, cpu_ended = time.perf_counter_ns(), time.thread_time_ns()
        assert response.status_code == 200
        return ended - started, cpu_ended - cpu

    def paced(self, pauses: list[float]) -> list[tuple[int, int]]:
        """Make a request after each of `pauses` (seconds)."""
        taken = []
        for pause in pauses:
            if pause:
                time.sleep(pause)
            taken.append(self.call())
        return taken

    def flat_out(self, seconds: float, count: int) -> int:
        """Make requests without a pause; return how many."""
        made, end = 0, time.perf_counter() + seconds
        while made < count and time.perf_counter() < end:
            self.call()
            made += 1
        return made


class Async:
    """Calls the service as an ASGI server does, in one event loop."""

    def __init__(self, body: bytes) -> None:
        from django.core.handlers.asgi import ASGIHandler

        self._body = body
        self._handler = ASGIHandler()
        self._runner = asyncio.Runner()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": service.PATH,
            "raw_path": service.PATH.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "client": ("127.0.0.1", 40000),
            "server": ("benchmark", 80),
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *(
                    (name.replace("_", "-").encode(), text.encode())
                    for name, text in _HEADERS.items()
                ),
            ],
        }

    async def _call(self) -> tuple[int, int]:
        left = [{"type": "http.request", "body": self._body, "more_body": False}]
        gone = asyncio.get_running_loop().create_future()
        statuses = []

        async def receive() -> Any:
            # After the body: nothing, until the client leaves.
            return left.pop() if left else await gone

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = dict(self._scope)
        cpu, started = time.thread_time_ns(), time.perf_counter_ns()
        await self._handler(scope, receive, send)
        ended, cpu_ended = time.perf_counter_ns(), time.thread_time_ns()
        gone.cancel()
        assert statuses == [200], statuses
        return ended - started, cpu_ended - cpu

    def call(self) -> tuple[int, int]:
        """Make one request; return its nanoseconds, and those of CPU in the loop's thread."""
        return self._runner.run(self._call())

    def paced(self, pauses: list[float]) -> list[tuple[int, int]]:
        """Make a request after each of `pauses` (seconds)."""

        async def all_of_them() -> list[tuple[int, int]]:
            taken = []
            for pause in pauses:
                if pause:
                    await asyncio.sleep(pause)
                taken.append(await self._call())
            return taken

        return self._runner.run(all_of_them())

    def flat_out(self, seconds: float, count: int) -> int:
        """Make requests without a pause, one after the other; return how many."""

        async def all_of_them() -> int:
            made, end = 0, time.perf_counter() + seconds
            while made < count and time.perf_counter() < end:
                await self._call()
                made += 1
            return made

        return self._runner.run(all_of_them())


def _ignore(status: str, headers: Any, exc_info: Any = None) -> None:
    pass


class Worker:
    """The commands."""

    def __init__(self, spec: service.Spec) -> None:
        self._spec = spec
        service.configure(spec)
        self._caller = (Async if spec.mode == "async" else Sync)(service.body())

    def paced(self, requests: int, pause: float, seed: int) -> Any:
        """Requests at random times, `pause` seconds apart on average."""
        dice = random.Random(seed)
        pauses = [min(dice.expovariate(1.0), _LONGEST_PAUSE) * pause for _ in range(requests)]
        began = time.process_time_ns()
        taken = self._caller.paced(pauses)
        return {
            "wall": [wall for wall, _ in taken],
            "cpu": [cpu for _, cpu in taken],
            "process_cpu": (time.process_time_ns() - began) / 1e9,
        }

    def flat_out(self, seconds: float = 1e9, requests: int = 1 << 60) -> Any:
        """Requests without a pause."""
        cpu, wall = time.process_time(), time.perf_counter()
        made = self._caller.flat_out(seconds, requests)
        return {
            "requests": made,
            "seconds": time.perf_counter() - wall,
            "process_cpu": time.process_time() - cpu,
        }

    def flush(self) -> Any:
        """Have the recorder hand over all that it holds; return the CPU seconds it took."""
        cpu = time.process_time()
        if self._spec.recorded and self._spec.contender == "django-api-audit":
            from audit_logging.transport import get_transport

            get_transport().flush(30)
        return {"process_cpu": time.process_time() - cpu}

    def holds(self, seconds: float, pause: float) -> Any:
        """Oversleep (nanoseconds) of a thread that sleeps 1 ms at a time, under paced requests.

        It is how long a request thread that was waiting (for a socket, a database) waits on until
        it has the interpreter again.
        """
        over: list[int] = []
        done = threading.Event()

        def sleeper() -> None:
            while not done.is_set():
                began = time.perf_counter_ns()
                time.sleep(0.001)
                over.append(time.perf_counter_ns() - began - 1_000_000)

        probe = threading.Thread(target=sleeper)
        probe.start()
        taken = self._caller.paced([pause] * max(1, int(seconds / pause)))
        done.set()
        probe.join()
        return {"over": over, "wall": [wall for wall, _ in taken]}

    def state(self) -> Any:
        """Resident memory (bytes, of this process alone), and what the recorder has counted."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        counted = {}
        if self._spec.recorded and self._spec.contender == "django-api-audit":
            from audit_logging import metrics

            for name in (
                "captured",
                "queued",
                "spooled",
                "replayed",
                "rejected",
                "internal_errors",
            ):
                metric = getattr(metrics, name, None)
                # A counter with labels is the sum of its children.
                values = getattr(metric, "_values", None)
                counted[name] = sum(values.values()) if values else 0
        return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "counted": counted, "pid": os.getpid()}


def main() -> None:
    """Serve commands from standard input until it ends."""
    # Whatever a recorder prints must not stand between the answers.
    with os.fdopen(os.dup(1), "w") as answers, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        worker = Worker(service.Spec.load(sys.argv[1]))
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            answer = getattr(worker, command.pop("do"))(**command)
            print(json.dumps(answer), file=answers, flush=True)
    # Without exit hooks: a measured process may be unable to flush, by design of the benchmark.
    os._exit(0)


if __name__ == "__main__":
    main()
