"""Iceberg's sink for Kafka Connect, as a server of ours: one worker, one connector.

Its jars come from Maven Central by :file:`pom.xml`, into the cache that tests use; no test needs
them.
"""

from __future__ import annotations

import json
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from tests.services.base import HOST, Service
from tests.services.install import JAVA, MVN, Program, announce, cache_dir, into, locked, run

POM = Path(__file__).with_name("pom.xml")
TABLE = "lake.events"
_CONNECTOR = "iceberg"


class _Jars:
    """How they are fetched."""

    cure = "apt-get install maven"

    @property
    def folder(self) -> Path:
        tree = ElementTree.parse(POM)  # noqa: S314 - our own file
        return cache_dir() / f"iceberg-connect-{tree.findtext('{*}properties/{*}iceberg.version')}"

    def find(self) -> Path | None:
        return self.folder if self.folder.is_dir() else None

    def blocker(self) -> str | None:
        return None if MVN.find() else MVN.recipe.blocker()

    def install(self, title: str) -> None:
        mvn = MVN.ensure()
        with locked("maven"), into(self.folder) as folder:
            if folder is None:
                return
            announce(f"installing {title}: Maven artefacts into {self.folder}")
            command = [str(mvn), "-B", "-q", "-f", str(POM), "dependency:copy-dependencies"]
            run(title, [*command, f"-DoutputDirectory={folder}"], self.cure)


_RECIPE = _Jars()
JARS = Program("Iceberg's Kafka Connect sink", _RECIPE.find, _RECIPE)


class IcebergSink(Service):
    """A Kafka Connect worker, standalone, with Iceberg's sink over one topic.

    :param commit: seconds between two commits of the table.
    :param tasks: tasks at most; each has some of the partitions.
    """

    name = "iceberg-connect"
    env_name = "AUDIT_BENCH_ICEBERG_CONNECT"
    programs = (JAVA, JARS)
    ready_within = 90.0

    def __init__(
        self,
        servers: str,
        registry: str,
        topic: str,
        warehouse: Path,
        *,
        commit: float = 10.0,
        tasks: int = 1,
    ) -> None:
        super().__init__(own=True)
        self._servers, self._topic = servers, topic
        # Its converter speaks Apicurio's own interface, at the same server.
        self._registry = registry.replace("/apis/ccompat/v7", "/apis/registry/v2")
        self._warehouse = warehouse
        self._commit, self._tasks = commit, tasks

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def prepare(self) -> None:
        assert self.root
        worker = {
            "bootstrap.servers": self._servers,
            "listeners": self.url,
            "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "io.apicurio.registry.utils.converter.AvroConverter",
            "value.converter.apicurio.registry.url": self._registry,
            "value.converter.apicurio.registry.as-confluent": "true",
            "value.converter.apicurio.registry.use-id": "contentId",
            "value.converter.apicurio.registry.headers.enabled": "false",
            "offset.storage.file.filename": self.root / "offsets",
            "offset.flush.interval.ms": 5000,
            "plugin.discovery": "service_load",
            "plugin.path": self.root,
        }
        connector = {
            "name": _CONNECTOR,
            "connector.class": "org.apache.iceberg.connect.IcebergSinkConnector",
            "tasks.max": self._tasks,
            "topics": self._topic,
            "iceberg.catalog.type": "hadoop",
            "iceberg.catalog.warehouse": f"file://{self._warehouse}",
            "iceberg.tables": TABLE,
            "iceberg.tables.auto-create-enabled": "true",
            "iceberg.tables.default-partition-by": "service_name,endpoint_name",
            "iceberg.control.topic": "control-iceberg",
            "iceberg.control.commit.interval-ms": int(self._commit * 1000),
            "iceberg.control.commit.timeout-ms": 30_000,
            "consumer.override.auto.offset.reset": "earliest",
            "iceberg.kafka.auto.offset.reset": "earliest",
        }
        for name, settings in (("worker", worker), ("connector", connector)):
            lines = "".join(f"{key}={value}\n" for key, value in settings.items())
            (self.root / f"{name}.properties").write_text(lines)

    def launch(self) -> None:
        assert self.root
        # As Kafka's own start script has it.
        java = [JAVA.ensure(), "-Xms256M", "-Xmx2G", "-XX:+UseG1GC", "-server"]
        java += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp", f"{JARS.ensure()}/*"]
        program = "org.apache.kafka.connect.cli.ConnectStandalone"
        files = [self.root / f"{name}.properties" for name in ("worker", "connector")]
        self.spawn([*java, program, *files])

    def ask(self) -> None:
        tasks = self.status()["tasks"]
        if not tasks or any(task["state"] != "RUNNING" for task in tasks):
            raise ConnectionError(f"tasks: {tasks}")

    def status(self) -> dict[str, Any]:
        """The connector's state, as its worker says it."""
        address = f"{self.url}/connectors/{_CONNECTOR}/status"
        with urllib.request.urlopen(address, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def snapshots(self) -> list[dict[str, Any]]:
        """The table's snapshots, oldest first; each is one commit."""
        folder = self._warehouse / TABLE.replace(".", "/") / "metadata"
        files = sorted(
            folder.glob("v*.metadata.json"), key=lambda path: int(path.name[1:].split(".")[0])
        )
        if not files:
            return []
        found: list[dict[str, Any]] = json.loads(files[-1].read_text()).get("snapshots", [])
        return found

    def rows(self) -> int:
        """Rows of the table, as its newest snapshot counts them."""
        seen = self.snapshots()
        return int(seen[-1]["summary"]["total-records"]) if seen else 0

    def files(self) -> list[Path]:
        """Its data files."""
        return sorted((self._warehouse / TABLE.replace(".", "/") / "data").rglob("*.parquet"))
