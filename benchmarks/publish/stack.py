"""Two real clusters and the publisher before them, as it is shipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.capture.cpu import cpu_seconds
from examples.demo.prepare import Places, make_keys
from tests.services.base import HOST, start_all, stop_all
from tests.services.kafka import Kafka
from tests.services.processes import free_port, knock

ROOT = Path(__file__).resolve().parents[2]
TOPIC = "api-audit-events"
CONSUMER = "benchmark"
SERVICE = "inventory-api"
PARTITIONS = 4


@dataclass
class Publisher:
    """A publisher under the shipped gunicorn configuration."""

    process: subprocess.Popen[bytes]
    port: int
    key: Path
    log: Path

    @property
    def pid(self) -> int:
        """The server's first process."""
        return self.process.pid

    def cpu_seconds(self) -> float:
        """CPU seconds that all its processes have used so far."""
        return cpu_seconds(self.pid)


@contextmanager
def clusters(*regions: str) -> Iterator[list[Kafka]]:
    """Kafka clusters of our own, with the topic; `regions` are their names."""
    servers = [Kafka(name, own=True) for name in regions or ("primary", "secondary")]
    start_all(servers)
    try:
        for server in servers:
            server.create_topics({TOPIC: PARTITIONS})
        yield servers
    finally:
        stop_all(servers)


@contextmanager
def publisher(
    regions: Mapping[str, str],
    *,
    workers: int = 1,
    env: Mapping[str, str] | None = None,
    cores: set[int] | None = None,
) -> Iterator[Publisher]:
    """The publisher's server over regions (name → bootstrap servers), with one known key.

    :param cores: the processor cores that it may use; None: all.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audit-publish-")))
        places = Places(folder)
        make_keys(places)
        port = free_port()
        environ = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("AUDIT_", "DJANGO_", "GUNICORN_"))
        }
        environ |= {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "AUDIT_DATA_DIR": str(folder / "audit"),
            "GUNICORN_BIND": f"{HOST}:{port}",
            "GUNICORN_WORKERS": str(workers),
            **{
                f"AUDIT_PUBLISHER_{name.upper()}_URL": f"kafka://{servers}"
                for name, servers in regions.items()
            },
            **(env or {}),
        }
        manage = [sys.executable, "manage.py"]
        add = ["audit_key", "add", "--consumer", CONSUMER, "--service", SERVICE, "--caller", "*"]
        for command in (["migrate", "-v0"], [*add, "--public-key", str(places.public_key)]):
            subprocess.run(
                [*manage, *command], cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL
            )
        log = folder / "publisher.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "python:audit_publisher.gunicorn"],
                cwd=ROOT,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )
        try:
            _wait(process, port, log)
            yield Publisher(process, port, places.private_key, log)
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            knock(port)
            return
        time.sleep(0.05)
    raise RuntimeError(f"The publisher did not start:\n{log.read_text()[-2000:]}")
