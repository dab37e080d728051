"""Apache Kafka, one node in KRaft mode; two of them under different names are two regions."""

from __future__ import annotations

import base64
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.services.base import HOST, POLL_SECONDS, Service
from tests.services.errors import StartFailed
from tests.services.install import JAVA, Maven, Program
from tests.services.processes import free_port, knock

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

ARTEFACTS = Maven("kafka")
QUIET = {"log_level": 0}  # a client that waits for a server need not tell of every refusal


def _find_jars() -> Path | None:
    """A Kafka 4 distribution whose scripts are on the PATH, or the jars in the cache."""
    if script := shutil.which("kafka-server-start.sh"):
        jars = Path(script).resolve().parents[1] / "libs"
        if list(jars.glob("kafka_2.1*-4.*.jar")):
            return jars
    return ARTEFACTS.find()


JARS = Program("Apache Kafka", _find_jars, ARTEFACTS)


class Kafka(Service):
    """`Kafka("primary")` takes its address from AUDIT_TEST_KAFKA_PRIMARY if that is set.

    :param advertised: a port that a proxy listens on. The broker then has a second listener, at
        `inner`, and clients that come in there are told of no other address than the proxy's.
    """

    programs = (JAVA, JARS)

    def __init__(
        self,
        region: str = "primary",
        *,
        own: bool = False,
        advertised: int = 0,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.name = f"kafka-{region}"
        self.inner = 0
        self._advertised = advertised
        self.env_name = f"AUDIT_TEST_KAFKA_{region.upper().replace('-', '_')}"
        super().__init__(own=own, environ=environ)

    @property
    def url(self) -> str:
        return self.given or f"{HOST}:{self.port}"

    @property
    def address(self) -> str:
        """The bootstrap servers."""
        return self.url

    def prepare(self) -> None:
        assert self.root
        controller = free_port()
        settings: dict[str, Any] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
            ),
            "log.dirs": self.root / "data",
            # One node can keep one copy.
            "default.replication.factor": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "min.insync.replicas": 1,
            # Fifty partitions of each internal topic would be most of the first consumer's wait.
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.num.partitions": 1,
            "auto.create.topics.enable": "false",
            "message.max.bytes": 10485760,
            "group.initial.rebalance.delay.ms": 0,
            # Tests write records of any date; none may be deleted for its age.
            "log.retention.ms": -1,
            # After a SIGKILL the new broker is refused until the old one's session is over.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 500,
            # The cleaner would take 128 MB for a table that a test never fills.
            "log.cleaner.dedupe.buffer.size": 8388608,
        }
        if self._advertised:
            self.inner = free_port()
            settings["listeners"] += f",PROXIED://{HOST}:{self.inner}"
            settings["advertised.listeners"] += f",PROXIED://{HOST}:{self._advertised}"
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        self._settings.write_text(lines)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        tool = "kafka.tools.StorageTool"
        # No "-" first: the tool would take it for an option.
        cluster_id = cluster if cluster[0] not in "-_" else "A" + cluster[1:]
        java = self._java("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
        self.run([*java, tool, "format", "-t", cluster_id, "-c", self._settings])

    def launch(self) -> None:
        self.spawn([*self._java("-Xmx512m"), "kafka.Kafka", self._settings])

    def ask(self) -> None:
        if not self.given:
            knock(self.port)
        brokers = self.admin().list_topics(timeout=2).brokers
        if not brokers:
            raise ConnectionError("no broker has registered yet")

    def admin(self) -> AdminClient:
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.address, **QUIET})

    def create_topics(
        self, topics: Mapping[str, int], config: Mapping[str, Any] | None = None
    ) -> None:
        """Create topics (name → partitions) and wait until every partition has a leader."""
        from confluent_kafka.admin import NewTopic

        # -1: as many copies as the cluster's default says, one here, more on a given cluster.
        new = [
            NewTopic(name, partitions, replication_factor=-1, config=dict(config or {}))
            for name, partitions in topics.items()
        ]
        admin = self.admin()
        for future in admin.create_topics(new).values():
            future.result(timeout=30)
        self._wait_for_topics(admin, lambda seen: all(seen.get(t) == n for t, n in topics.items()))

    def delete_topics(self, names: Iterable[str]) -> None:
        """Delete topics and wait until the cluster no longer lists them."""
        gone = list(names)
        admin = self.admin()
        for future in admin.delete_topics(gone).values():
            future.result(timeout=30)
        self._wait_for_topics(admin, lambda seen: not seen.keys() & set(gone))

    def _wait_for_topics(self, admin: AdminClient, satisfied: Any) -> None:
        """Wait for the metadata (topic → partitions with a leader): it follows the answer."""
        deadline = time.monotonic() + 30
        while True:
            topics = admin.list_topics(timeout=5).topics.values()
            seen = {
                topic.topic: sum(part.leader >= 0 for part in topic.partitions.values())
                for topic in topics
            }
            if satisfied(seen):
                return
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.name}: topics did not settle: {seen}", self.tail_log())
            time.sleep(POLL_SECONDS)

    @property
    def _settings(self) -> Path:
        assert self.root
        return self.root / "server.properties"

    def _java(self, *options: str) -> list[str | Path]:
        return [JAVA.ensure(), *options, "-cp", f"{JARS.ensure()}/*"]
