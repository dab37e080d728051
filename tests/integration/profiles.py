"""The two ways the system runs, as the journey test starts them: the same code, other variables."""

from __future__ import annotations

import io
import os
import signal
import socket
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from audit_logging.spool import DurableQueue
from examples.demo.prepare import ROOT, Places, make_keys
from examples.demo.processes import Program, Supervisor
from examples.demo.programs import Addresses, Programs
from examples.demo.traffic import SITES, Call

TOPIC = "api-audit-events"

_PARTITIONS = 3
_LEDGER = "SELECT coalesce(sum(rows), 0) FROM audit_sink_lakefile"

#: Bucket rows carry the object's name under this key.
OBJECT = "_object"


class Profile(ABC):
    """One way to run.

    :param root: a folder of the test's own.
    :param service: further variables of the audited service.
    """

    name: str
    #: Celery's pool.
    pool: str

    def __init__(self, root: Path, service: dict[str, str] | None = None) -> None:
        self.root = root
        self._service = service or {}

    @abstractmethod
    def prepare(self) -> None:
        """Make what an operator makes before the first start: topics, buckets, a database."""

    @abstractmethod
    def project(self) -> dict[str, str]:
        """Variables of the publisher and the sink."""

    @abstractmethod
    def service(self) -> dict[str, str]:
        """Variables of the audited service."""

    @abstractmethod
    def objects(self, country: str) -> dict[str, bytes]:
        """Everything that lies in a country's bucket, by name."""

    @abstractmethod
    def appended(self) -> int:
        """How many records the event log's primary region holds, asked of the log itself."""

    @abstractmethod
    def ledger_rows(self) -> int:
        """How many stored rows the ledger counts, asked of the database itself."""

    def rows(self, country: str) -> list[dict[str, Any]]:
        """Every row of a country's bucket, read from its Parquet files alone."""
        found = []
        for name, content in self.objects(country).items():
            if name.startswith("events/") and name.endswith(".parquet"):
                table = pq.ParquetFile(io.BytesIO(content)).read()
                found += [row | {OBJECT: name} for row in table.to_pylist()]
        return found


class Embedded(Profile):
    """SQLite, the local event log, folders as buckets, a broker in a file."""

    name = "embedded"
    pool = "threads"

    def prepare(self) -> None:
        pass

    def project(self) -> dict[str, str]:
        return {"AUDIT_SINK_BUCKET_TIMEOUT_SECONDS": "5"}

    def service(self) -> dict[str, str]:
        return self._service

    def appended(self) -> int:
        (path,) = (self.root / "audit").rglob("eventlog.sqlite3")
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(
                "SELECT count(*) FROM record WHERE stream LIKE ?", (f"{TOPIC}/%",)
            ).fetchone()[0]

    def ledger_rows(self) -> int:
        with closing(sqlite3.connect(self.root / "audit" / "audit.sqlite3")) as connection:
            return connection.execute(_LEDGER).fetchone()[0]

    def objects(self, country: str) -> dict[str, bytes]:
        bucket = self.root / "audit" / "sink" / "buckets" / country.lower()
        return {
            str(path.relative_to(bucket)): path.read_bytes()
            for path in bucket.rglob("*")
            if path.is_file()
        }


class Production(Profile):
    """PostgreSQL, Redis, Kafka in two regions, a schema registry, Google Cloud Storage."""

    name = "production"
    # Clients of Kafka, the bucket and the database must come through a fork.
    pool = "prefork"

    def __init__(self, root: Path, fixture: Any) -> None:
        super().__init__(root)
        self._regions = [fixture("kafka_primary"), fixture("kafka_secondary")]
        self._registry = fixture("schema_registry")
        self._redis = fixture("redis_server")
        self._postgres = fixture("postgres_server")
        self._gcs = fixture("gcs_server")
        self._database = ""

    def prepare(self) -> None:
        for region in self._regions:
            region.create_topics({TOPIC: _PARTITIONS, f"{TOPIC}_DLQ": 1})
        for country in ("us", "ca", "mx"):
            self._gcs.create_bucket(f"journey-{country}")
        self._database = self._postgres.create_database("journey")

    def project(self) -> dict[str, str]:
        primary, secondary = self._regions
        return {
            "AUDIT_DATABASE_URL": self._database,
            "AUDIT_BROKER_URL": self._redis.url_for(0),
            "AUDIT_PUBLISHER_PRIMARY_URL": f"kafka://{primary.address}",
            "AUDIT_PUBLISHER_SECONDARY_URL": f"kafka://{secondary.address}",
            "AUDIT_PUBLISHER_REGISTRY_URL": self._registry.url,
            "AUDIT_SINK_BUCKET_TEMPLATE": "gs://journey-{site}",
            "STORAGE_EMULATOR_HOST": self._gcs.url,
        }

    def service(self) -> dict[str, str]:
        return self._service | {"AUDIT_LOGGING_BROKER_URL": self._redis.url_for(1)}

    def appended(self) -> int:
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer({"bootstrap.servers": self._regions[0].address, "group.id": "count"})
        try:
            marks = [
                consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=10)
                for partition in range(_PARTITIONS)
            ]
        finally:
            consumer.close()
        return sum(high - low for low, high in marks)

    def ledger_rows(self) -> int:
        import psycopg

        with psycopg.connect(self._database) as connection:
            return int(connection.execute(_LEDGER).fetchone()[0])

    def objects(self, country: str) -> dict[str, bytes]:
        client = self._gcs.client()
        return {
            blob.name: blob.download_as_bytes()
            for blob in client.list_blobs(f"journey-{country.lower()}")
        }


class System:
    """The whole system as real processes, under one profile."""

    def __init__(self, profile: Profile, supervisor: Supervisor) -> None:
        self.profile = profile
        self.supervisor = supervisor
        self.places = Places(profile.root)
        self.addresses = Addresses(service_port=free_port(), publisher_port=free_port())
        self.bare_port = free_port()
        self.programs = _ProfilePrograms(profile, self.places, self.addresses)

    def start(self) -> None:
        """Start everything and return when all of it is ready."""
        self.places.make(keep=False)
        make_keys(self.places)
        self.profile.prepare()
        programs = self.programs
        self._run(programs.database("a password for this test"), timeout=120)
        for program in (
            programs.publisher(),
            programs.service(),
            programs.delivery(),
            programs.sink(),
            programs.beat(),
            self._bare_service(),
        ):
            self.supervisor.start(program)
        self.supervisor.wait_ready(90, on_ready=lambda name: None)

    def kill(self, name: str) -> Program:
        """Kill a process and all its children with SIGKILL; return what starts it again."""
        (child,) = [each for each in self.supervisor.children if each.program.name == name]
        self.supervisor.children.remove(child)
        os.killpg(child.group, signal.SIGKILL)
        child.process.wait()
        return child.program

    def start_again(self, program: Program) -> None:
        """Start a killed process; return when it is ready."""
        self.supervisor.start(program)
        self.supervisor.wait_ready(60, on_ready=lambda name: None)

    def stored(self, batch: Sequence[Call]) -> Counter[str]:
        """How often each call of `batch` is in a bucket, whichever it is, by the call's id."""
        wanted = {call.id for call in batch}
        return Counter(
            identity
            for country in SITES
            for row in self.profile.rows(country)
            if (identity := dict(row["headers"]).get("wm-qos.correlation-id")) in wanted
        )

    def diagnosis(self) -> str:
        """Where events may be waiting, for the message of a failing test."""
        spools = []
        for path in sorted(self.places.root.rglob("*.sqlite3")):
            if path.name != "audit.sqlite3":
                queue = DurableQueue(path)
                waiting = {name: queue.stats(name).records for name in queue.streams()}
                spools.append(f"{path.relative_to(self.places.root)}: {waiting}")
        return "\n".join([*spools, self.manage("audit_status"), f"logs: {self.places.logs}"])

    def manage(self, *arguments: str, timeout: float = 60) -> str:
        """Run a command of the project; return what it prints."""
        program = Program(
            f"manage-{arguments[0]}",
            [sys.executable, "manage.py", *arguments],
            self.programs.project_environ(),
            folder=ROOT,
        )
        return self._run(program, timeout)

    def _run(self, program: Program, timeout: float) -> str:
        return self.supervisor.finish_task(self.supervisor.start_task(program), timeout)

    def _bare_service(self) -> Program:
        program = self.programs.service()
        environ = dict(program.environ) | {
            "INVENTORY_AUDIT": "off",
            "INVENTORY_BIND": f"127.0.0.1:{self.bare_port}",
        }
        return Program("bare-api", program.argv, environ, folder=program.folder)


class _ProfilePrograms(Programs):
    def __init__(self, profile: Profile, places: Places, addresses: Addresses) -> None:
        super().__init__(places, addresses)
        self._profile = profile
        self.pool = profile.pool

    def project_environ(self) -> dict[str, str]:
        return super().project_environ() | self._profile.project()

    def service_environ(self) -> dict[str, str]:
        return super().service_environ() | self._profile.service()


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(profile: Profile) -> Iterator[System]:
    """The system, started, and stopped again whatever happens."""
    with Supervisor(profile.root / "logs") as supervisor:
        system = System(profile, supervisor)
        system.start()
        yield system
