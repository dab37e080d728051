"""A publisher behind its real server, as it is shipped, and raw requests to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audit_publisher.eventlog import Limits, Record
from audit_publisher.eventlog.local import LocalEventLog
from tests.unit.audit_publisher.conftest import CONSUMER, URL

ROOT = Path(__file__).resolve().parents[3]


class Server:
    """A running publisher, and raw requests to it."""

    def __init__(self, port: int, data: Path, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.data = data
        self.process = process

    def raw(self, request: bytes) -> tuple[int, dict[str, Any]]:
        """Send bytes, return (status, JSON body)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(request)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body or b"null")

    def post(
        self, headers: list[tuple[str, str]], body: bytes, url: str = URL
    ) -> tuple[int, dict[str, Any]]:
        """A POST with exactly these header lines."""
        lines = [
            f"POST {url} HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: close",
            "Content-Type: application/json",
            *(f"{name}: {value}" for name, value in headers),
        ]
        if not any(name == "Transfer-Encoding" for name, _ in headers):
            lines.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def connect(self, request: bytes) -> socket.socket:
        """A connection on which only `request` was sent; it may be the half of one."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(request)
        return connection

    def log(self) -> str:
        """What the server said so far."""
        return (self.data / "gunicorn.log").read_text()

    def records(self) -> list[Record]:
        """What the event log holds."""
        log = LocalEventLog("primary", self.data / "publisher" / "eventlog.sqlite3")
        return [
            record
            for partition in range(log.partitions("api-audit-events"))
            for record in log.read("api-audit-events", partition, 0, Limits(timeout=0))
        ]


@contextmanager
def serve(
    data: Path, public_pem: str, *, program: Sequence[str] = (), **options: str
) -> Iterator[Server]:
    (data / "public.pem").write_text(public_pem)
    # It may have served before.
    (data / "metrics").mkdir(exist_ok=True)
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")
    } | {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "AUDIT_DATA_DIR": str(data),
        "GUNICORN_WORKERS": "2",
        "GUNICORN_BIND": "127.0.0.1:0",
        "AUDIT_PUBLISHER_MAX_EVENT_BYTES": "500000",
        "PROMETHEUS_MULTIPROC_DIR": str(data / "metrics"),
        **options,
    }

    def manage(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=environ,
            check=True,
            capture_output=True,
        )

    manage("migrate", "--verbosity=0")
    rules = ["--service=*", "--caller=*"]
    key = f"--public-key={data / 'public.pem'}"
    manage("audit_key", "add", f"--consumer={CONSUMER}", key, *rules)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (data / "gunicorn.log").open("w+")
    shipped = ("gunicorn", "-c", "python:audit_publisher.gunicorn")
    process = subprocess.Popen(
        [sys.executable, "-m", *(part.format(port=port) for part in program or shipped)],
        cwd=ROOT,
        env=environ | {"GUNICORN_BIND": f"127.0.0.1:{port}"},
        stdout=log,
        stderr=log,
    )
    made = Server(port, data, process)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                status, _ = made.raw(
                    b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                )
                if status == 200:
                    break
            except OSError:
                pass
            running = process.poll() is None and time.monotonic() < deadline
            assert running, (data / "gunicorn.log").read_text()
            time.sleep(0.05)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        log.close()
