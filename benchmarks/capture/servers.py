"""Real servers over the measured service, the load they get, and what they used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.services.install import Debian, Program, on_path
from tests.services.processes import descendants, end, free_port

from .conductor import ROOT, Died, Process
from .cpu import cpu_seconds, rest
from .service import PATH, VARIABLE, Spec, document

WRK = Program("wrk", on_path("wrk"), Debian(("wrk",)))
HOST = "127.0.0.1"
_START_SECONDS = 60
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Wm-Consumer.Id"] = "benchmark"
local file = io.open(os.getenv("BENCHMARK_BODY"), "rb")
wrk.body = file:read("*a")
file:close()
"""


@dataclass(frozen=True)
class Kind:
    """A kind of server: its name, its command but for the address, and "sync" or "async"."""

    name: str
    command: tuple[str, ...]
    mode: str = "sync"
    connections: int = 8


def gunicorn(*arguments: str) -> tuple[str, ...]:
    """A gunicorn over the service."""
    return ("gunicorn", f"{__package__}.wsgi:application", "--log-level", "warning", *arguments)


SYNC_1 = Kind("gunicorn, 1 sync worker", gunicorn("--workers", "1"))
SYNC_2 = Kind("gunicorn, 2 sync workers", gunicorn("--workers", "2"))
GTHREAD = Kind(
    "gunicorn, 1 gthread worker of 4 threads",
    gunicorn("--worker-class", "gthread", "--threads", "4"),
)
UVICORN = Kind(
    "uvicorn, 1 worker",
    ("uvicorn", f"{__package__}.asgi:application", "--log-level", "warning", "--no-access-log"),
    "async",
)


class Server:
    """A running server."""

    def __init__(self, kind: Kind, spec: Spec) -> None:
        self.kind = kind
        self.spec = spec
        self.port = free_port()
        folder = Path(spec.folder)
        # The tables are made once, and not by each worker.
        with Process(spec):
            pass
        self._log = folder / "server.txt"
        address = (
            ("--bind", f"{HOST}:{self.port}")
            if kind.command[0] == "gunicorn"
            else ("--host", HOST, "--port", str(self.port))
        )
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *kind.command, *address],
                cwd=ROOT,
                env={**os.environ, VARIABLE: spec.dump()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """The view's address."""
        return f"http://{HOST}:{self.port}{PATH}"

    def wait(self) -> None:
        """Wait until it answers."""
        limit = time.monotonic() + _START_SECONDS
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                urlopen(self.url, data=b"{}", timeout=5).close()
            except (URLError, OSError):
                time.sleep(0.05)
            else:
                return
        raise Died(f"{self.kind.name} does not answer:\n{self._log.read_text()[-2000:]}")

    def cpu(self) -> float:
        """CPU seconds of all its processes."""
        return cpu_seconds(self.process.pid)

    def peak_bytes(self) -> int:
        """The most memory that any one of its processes has had."""
        found = 0
        for pid in (self.process.pid, *descendants(self.process.pid)):
            match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            found = max(found, int(match[1]) * 1024 if match else 0)
        return found

    def rest(self) -> None:
        """Wait until it has nothing to do any more, in the background neither."""
        rest(self.cpu)

    def stop(self) -> None:
        """End it as a supervisor does."""
        import signal

        end(self.process, signal.SIGTERM, 30)


@contextmanager
def serving(kind: Kind, spec: Spec) -> Iterator[Server]:
    """A server for the time of a block."""
    server = Server(kind, spec)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Load:
    """What a load came to."""

    requests: int
    per_second: float
    errors: int


def load(server: Server, seconds: int, folder: Path) -> Load:
    """Load a server as fast as it takes requests, from one core."""
    script, body = folder / "post.lua", folder / "body.json"
    script.write_text(_SCRIPT)
    body.write_text(json.dumps(document(server.spec.body_bytes)))
    command: Sequence[object] = [
        WRK.ensure(),
        "--threads=1",
        f"--connections={server.kind.connections}",
        f"--duration={seconds}s",
        "--timeout=20s",
        f"--script={script}",
        server.url,
    ]
    said = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "BENCHMARK_BODY": str(body)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    requests = re.search(r"(\d+) requests in", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said
    )
    if requests is None or rate is None:
        raise Died(f"wrk said:\n{said}")
    errors = (int(refused[1]) if refused else 0) + sum(map(int, broken.groups() if broken else ()))
    return Load(int(requests[1]), float(rate[1]), errors)
