"""The servers that a sink works with, and workers of ours over them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.services.base import Service, start_all, stop_all
from tests.services.gcs import Gcs
from tests.services.kafka import Kafka
from tests.services.postgres import Postgres
from tests.services.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
TOPIC = "api-audit-events"


@dataclass
class Stack:
    """Servers of our own; `folder` is for everything else, and goes with them."""

    folder: Path
    kafka: Kafka
    registry: Registry
    postgres: Postgres
    gcs: Gcs | None = None
    _made: int = field(default=0, repr=False)

    def topic(self, partitions: int) -> None:
        """Make the topic, empty; one that is there is dropped first."""
        if TOPIC in self.kafka.admin().list_topics(timeout=5).topics:
            self.kafka.delete_topics([TOPIC])
        self.kafka.create_topics({TOPIC: partitions})

    def install(self, **options: str) -> Installation:
        """A ledger and buckets of their own, empty."""
        self._made += 1
        name = f"run{self._made}"
        folder = self.folder / name
        folder.mkdir()
        made = Installation(self, folder, self.postgres.create_database(name), options)
        made.manage("migrate", "-v0")
        return made


@dataclass
class Installation:
    """One ledger with its buckets, and the variables by which a worker finds them."""

    stack: Stack
    folder: Path
    database: str
    options: Mapping[str, str]

    @property
    def buckets(self) -> Path:
        """Where the buckets are, if they are folders."""
        return self.folder / "buckets"

    @property
    def environ(self) -> dict[str, str]:
        """Variables of a process of this installation."""
        plain = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("AUDIT_", "DJANGO_"))
        }
        self.buckets.mkdir(exist_ok=True)
        return plain | {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "PYTHONPATH": str(ROOT),
            "AUDIT_DATA_DIR": str(self.folder / "data"),
            "AUDIT_DATABASE_URL": self.database,
            "AUDIT_PUBLISHER_PRIMARY_URL": f"kafka://{self.stack.kafka.address}",
            "AUDIT_PUBLISHER_REGISTRY_URL": self.stack.registry.url,
            "AUDIT_SINK_BUCKET_TEMPLATE": f"file://{self.buckets}/{{site}}",
            **self.options,
        }

    def manage(self, *command: str) -> str:
        """Run one of the project's commands to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=ROOT,
            env=self.environ,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-500:]}{done.stderr[-2000:]}")
        return done.stdout

    def worker(self, *arguments: str) -> Worker:
        """Start one; see :mod:`.worker` for its arguments."""
        log = (self.folder / "worker.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink.worker", *arguments],
            cwd=ROOT,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.close()
        return Worker(process, Path(log.name))

    def work(self, *arguments: str) -> dict[str, Any]:
        """Let a worker do all there is; return what it says, and what the kernel says of it."""
        return self.worker(*arguments).end()

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the ledger's database itself."""
        import psycopg

        with psycopg.connect(self.database, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []


@dataclass
class Worker:
    """A process that does the sink's work."""

    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        """SIGKILL, as the kernel would when memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> dict[str, Any]:
        """Wait for its end; CPU seconds are its own and its children's, from its first moment.

        :raises RuntimeError: it failed.
        """
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            raise RuntimeError(f"the worker failed:\n{self.log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        found["cpu_all"] = usage.ru_utime + usage.ru_stime
        return found


@contextmanager
def stack(*, gcs: bool = False) -> Iterator[Stack]:
    """Kafka, registry, PostgreSQL and, where asked for, the GCS emulator."""
    with tempfile.TemporaryDirectory(prefix="audit-sink-bench-") as folder:
        made = Stack(
            Path(folder),
            Kafka("bench", own=True),
            Registry(own=True),
            Postgres(own=True),
            Gcs(own=True) if gcs else None,
        )
        servers: list[Service] = [made.kafka, made.registry, made.postgres]
        if made.gcs is not None:
            servers.append(made.gcs)
        start_all(servers)
        try:
            _register(made.registry)
            yield made
        finally:
            stop_all(servers)


def _register(registry: Registry) -> None:
    """The schema gets the id that stands in the encoded events."""
    text = (ROOT / "audit_publisher" / "schemas" / "log_event.avsc").read_text()
    compact = json.dumps(json.loads(text), separators=(",", ":"))
    answer = registry.request("POST", f"/subjects/{TOPIC}-value/versions", {"schema": compact})
    assert isinstance(answer, dict)
    if answer["id"] != 1:
        raise RuntimeError(f"the registry gave the schema the id {answer['id']}, not 1")
