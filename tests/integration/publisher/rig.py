"""Two regions behind proxies, and the publisher as it is shipped, each as processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from audit_logging.spool import DurableQueue
from tests.integration.publisher.proxy import Proxy
from tests.services import processes
from tests.services.base import HOST, Service, start_all, stop_all
from tests.services.errors import StartFailed
from tests.services.kafka import Kafka
from tests.support import eventually

TOPIC = "api-audit-events"
PARTITIONS = 4

#: Quick to give a region up and to come back, so that a fault costs a test seconds; slow to drain,
#: so that it can be met in the middle of that.
QUICK = {
    "AUDIT_PUBLISHER_DRAIN_BATCH": "10",
    "AUDIT_PUBLISHER_REGION_COOLDOWN": "0.3",
    "AUDIT_PUBLISHER_REFRESH_SECONDS": "0.3",
    "AUDIT_PUBLISHER_DELIVERY_TIMEOUT": "1",
    "AUDIT_PUBLISHER_REQUEST_TIMEOUT": "1",
}


class Region:
    """A cluster and the proxy before it: all that can happen to a region."""

    def __init__(self, name: str) -> None:
        front = processes.free_port()
        self.name = name
        self.kafka = Kafka(f"behind-{name}", own=True, advertised=front)
        self._front = front
        self.proxy: Proxy

    @property
    def address(self) -> str:
        """What the publisher knows."""
        return f"{HOST}:{self._front}"

    def start(self) -> Region:
        self.kafka.start()
        self.proxy = Proxy(self.name, self._front, self.kafka.inner)
        self.proxy.start()
        # Records as large as the publisher takes.
        self.kafka.create_topics({TOPIC: PARTITIONS}, {"max.message.bytes": 10_064_000})
        return self

    def stop(self) -> None:
        self.kafka.stop(graceful=False)
        if hasattr(self, "proxy"):
            self.proxy.stop(graceful=False)

    def kill(self) -> None:
        """The broker dies, and its port with it."""
        self.kafka.kill()
        self.proxy.refuse()

    def revive(self) -> None:
        """The end of :meth:`kill`."""
        self.kafka.start()
        self.proxy.heal()

    def heal(self) -> None:
        """The end of every fault."""
        self.kafka.resume()
        self.revive()


class Publisher(Service):
    """The publisher under its shipped server configuration, in a folder that outlives it.

    :param regions: where it publishes to, first and second.
    :param options: environment variables on top of those that the rig needs.
    """

    env_name = "AUDIT_TEST_NO_SUCH_ADDRESS"

    def __init__(
        self,
        regions: tuple[Region, Region],
        *,
        name: str = "publisher",
        workers: int = 2,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(own=True)
        self.name = name
        self._regions = regions
        self._options = {"GUNICORN_WORKERS": str(workers), **(options or {})}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def folder(self) -> Path:
        assert self.root is not None
        return self.root

    def prepare(self) -> None:
        (self.folder / "metrics").mkdir()
        done = subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity=0"],
            cwd=processes.REPOSITORY,
            env=self._environ(),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise StartFailed(f"{self.name}: migrate ended with {done.returncode}", done.stdout)

    def launch(self) -> None:
        self.spawn(
            [sys.executable, "-m", "gunicorn", "-c", "python:audit_publisher.gunicorn"],
            env=self._environ(),
        )

    def ask(self) -> None:
        processes.knock(self.port)
        with urllib.request.urlopen(f"{self.url}/health/live", timeout=5):
            pass

    def _environ(self) -> dict[str, str]:
        primary, secondary = self._regions
        foreign = ("AUDIT_", "GUNICORN_", "DJANGO_")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "PYTHONPATH": str(processes.REPOSITORY),
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "AUDIT_DATA_DIR": str(self.folder),
            # Counters in files of ours, which a kill leaves behind.
            "PROMETHEUS_MULTIPROC_DIR": str(self.folder / "metrics"),
            "GUNICORN_BIND": f"{HOST}:{self.port}",
            "AUDIT_PUBLISHER_PRIMARY_URL": f"kafka://{primary.address}",
            "AUDIT_PUBLISHER_SECONDARY_URL": f"kafka://{secondary.address}",
            "AUDIT_PUBLISHER_DEFAULT_TOPIC": TOPIC,
            "AUDIT_PUBLISHER_SIGNATURE": "off",
            **self._options,
        }

    # Its processes ------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """The processes that answer requests."""
        return sorted(processes.descendants(self.pid)) if self.pid else []

    def kill_worker(self, which: int = 0) -> None:
        """SIGKILL one of them; the server starts another."""
        found = self.workers()
        if found:
            os.kill(found[which % len(found)], signal.SIGKILL)

    def kill_workers(self) -> None:
        """SIGKILL all of them."""
        for worker in self.workers():
            os.kill(worker, signal.SIGKILL)

    # Looking ------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """The JSON at a path, whatever the status."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def wait_until_up(self, timeout: float = 30.0) -> None:
        """Return when a process of it has found both regions up."""

        def both() -> bool:
            regions = self.get("/health/ready").get("regions", {})
            return len(regions) == 2 and all(region["up"] for region in regions.values())

        eventually(both, timeout, lambda: f"{self.get('/health/ready')}\n{self.tail_log()}")

    def counted(self, metric: str, **labels: str) -> float:
        """The sum of a counter over all processes there ever were, as /metrics tells it."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        total = 0.0
        for line in lines:
            name, _, value = line.rpartition(" ")
            if name.partition("{")[0] == metric and all(
                f'{label}="{wanted}"' in name for label, wanted in labels.items()
            ):
                total += float(value)
        return total

    def spooled_ids(self) -> list[str]:
        """The request_id of each record in the spool, of refused ones too."""
        return [request_id for _, request_id in self._spool()]

    def spooled(self) -> int:
        """Records that wait in the spool."""
        return sum(not stream.startswith("#") for stream, _ in self._spool())

    def _spool(self) -> Iterator[tuple[str, str]]:
        for path in (self.folder / "publisher" / "spool").glob("*.sqlite3"):
            queue = DurableQueue(path)
            for stream in queue.streams():
                for record in queue.read(stream, 0, max_records=1_000_000, max_bytes=1 << 40):
                    yield stream, (dict(record.headers)["request_id"] or b"").decode()
            queue.close()


@contextmanager
def two_regions() -> Iterator[tuple[Region, Region]]:
    """Both clusters, started side by side."""
    regions = (Region("primary"), Region("secondary"))
    # Anything with start and stop will do.
    start_all(regions)  # type: ignore[arg-type]
    try:
        yield regions
    finally:
        stop_all(regions)  # type: ignore[arg-type]


@contextmanager
def publishers(*made: Publisher) -> Iterator[tuple[Publisher, ...]]:
    """Start publishers, and wait until both regions are up for them."""
    with ExitStack() as stack:
        for each in made:
            stack.callback(each.stop, graceful=False)
        start_all(made)
        for each in made:
            each.wait_until_up()
        yield made
