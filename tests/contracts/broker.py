"""What every Celery broker must give deliveries; a new one inherits :class:`BrokerContract`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support import eventually

REPOSITORY = Path(__file__).resolve().parents[2]

#: A worker program with the settings that every tier's Celery app has; each task leaves a line in
#: a file when it begins and when it ends, and waits in between while a gate file is there.
PROGRAM = """
import base64, os, pathlib, time
from celery import Celery
from audit_logging.celery import configure

app = configure(Celery("contract", set_as_current=False), os.environ["CONTRACT_BROKER"])
app.conf.task_default_queue = os.environ["CONTRACT_QUEUE"]
if "CONTRACT_VISIBILITY" in os.environ:
    app.conf.broker_transport_options = app.conf.broker_transport_options | {
        "visibility_timeout": float(os.environ["CONTRACT_VISIBILITY"])
    }
folder = pathlib.Path(os.environ["CONTRACT_FOLDER"])

def note(line):
    with (folder / "log").open("a") as log:
        log.write(line + "\\n")

@app.task(name="contract.work", bind=True)
def work(self, payload, count):
    text = base64.b64decode(payload).decode()
    note(f"begin {text}")
    while (folder / "gate").exists():
        time.sleep(0.01)
    note(f"end {text}")
"""


class Workers:
    """Starts workers of one queue and reads what their tasks noted."""

    def __init__(self, folder: Path, broker_url: str, visibility: float | None) -> None:
        self.folder = folder
        self.queue = f"contract-{uuid.uuid4().hex[:8]}"
        (folder / "contract_app.py").write_text(PROGRAM)
        self.environ = os.environ | {
            "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}",
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "CONTRACT_BROKER": broker_url,
            "CONTRACT_QUEUE": self.queue,
            "CONTRACT_FOLDER": str(folder),
        }
        if visibility is not None:
            self.environ["CONTRACT_VISIBILITY"] = str(visibility)
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "contract_app", "worker", "--pool=solo",
                 "-Q", self.queue, "-l", "INFO", "--without-heartbeat", "--without-mingle",
                 "--without-gossip", "-n", f"{uuid.uuid4().hex[:6]}@%h"],
                env=self.environ, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(30)

    def until(self, condition: Callable[[], object]) -> None:
        """Keep a worker running, and the same one: nobody restarts workers for what a dead one
        left. Left alone, kombu looks for that in Redis after minutes."""
        self.start()
        eventually(condition, 60, self.worker_log)

    def noted(self) -> list[str]:
        log = self.folder / "log"
        # Whole lines alone; `splitlines` would also split where a payload holds U+2028.
        return log.read_text().split("\n")[:-1] if log.exists() else []

    def worker_log(self) -> str:
        return (self.folder / "worker.log").read_text()[-4000:]


class BrokerContract:
    """Inherited once for each broker; `url` and `dead_url` come from the subclass."""

    #: Seconds until an unfinished task is handed out again; None where the broker knows by itself.
    visibility: ClassVar[float | None] = 2.0

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """The broker's address."""
        raise NotImplementedError

    @pytest.fixture
    def dead_url(self) -> str:
        """An address of this kind of broker where none is."""
        raise NotImplementedError

    @pytest.fixture
    def workers(self, tmp_path: Path, url: str) -> Iterator[Workers]:
        made = Workers(tmp_path, url, self.visibility)
        yield made
        for process in made.running:
            if process.poll() is None:
                made.kill(process)

    @pytest.fixture
    def send(
        self, url: str, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[[str], None]]:
        """Send as the capture tier does."""
        with producer(url, workers.queue, "contract.work", monkeypatch) as send:
            yield send

    def test_what_was_sent_arrives_once_and_in_order(
        self, send: Callable[[str], None], workers: Workers
    ) -> None:
        for n in range(20):
            send(f"{n}")
        large = "Zoë \u2028 " + "x" * 200_000
        send(large)
        workers.start()
        eventually(lambda: f"end {large}" in workers.noted(), 60, workers.worker_log)
        ended = [line for line in workers.noted() if line.startswith("end")]
        assert ended == [*(f"end {n}" for n in range(20)), f"end {large}"]

    def test_a_killed_workers_task_is_run_again(
        self, send: Callable[[str], None], workers: Workers
    ) -> None:
        (workers.folder / "gate").touch()
        first = workers.start()
        send("one")
        send("two")
        eventually(lambda: "begin one" in workers.noted(), 60, workers.worker_log)
        workers.kill(first)
        (workers.folder / "gate").unlink()
        assert "end one" not in workers.noted()
        workers.until(lambda: {"end one", "end two"} <= set(workers.noted()))
        assert workers.noted().count("end one") == 1

    def test_messages_survive_a_restart_of_the_consumer(
        self, send: Callable[[str], None], workers: Workers
    ) -> None:
        first = workers.start()
        send("before")
        eventually(lambda: "end before" in workers.noted(), 60, workers.worker_log)
        workers.end(first)
        send("between")
        workers.start()
        send("after")
        eventually(lambda: "end after" in workers.noted(), 60, workers.worker_log)
        assert [line for line in workers.noted() if line.startswith("end")] == [
            "end before",
            "end between",
            "end after",
        ]

    def test_a_broker_that_is_down_costs_the_producer_a_moment(
        self, dead_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with producer(dead_url, "nowhere", "contract.work", monkeypatch) as send:
            for _ in range(2):
                started = time.monotonic()
                with pytest.raises(Exception, match=r".+"):
                    send("lost")
                # A plain Celery client takes six seconds here, and for ever by its defaults.
                assert time.monotonic() - started < 2.5


class NetworkBrokerContract(BrokerContract):
    """Also for brokers at the other end of a connection."""

    def silent(self, scheme: str, listener: socket.socket) -> str:
        return f"{scheme}://guest:guest@127.0.0.1:{listener.getsockname()[1]}//"

    scheme: ClassVar[str] = ""

    def test_a_broker_that_accepts_and_says_nothing_costs_a_bounded_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(10)
            address = self.silent(self.scheme, listener)
            with producer(address, "nowhere", "contract.work", monkeypatch) as send:
                started = time.monotonic()
                with pytest.raises(Exception, match=r".+"):
                    send("lost")
                assert time.monotonic() - started < 5

    @pytest.fixture
    def dead_url(self) -> str:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            return f"{self.scheme}://guest:guest@127.0.0.1:{closed.getsockname()[1]}//"


class producer:
    """`audit_logging.celery.send_batch` on another broker, queue and task, within the block."""

    def __init__(self, url: str, queue: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url, self.queue, self.task, self.monkeypatch = url, queue, task, monkeypatch

    def __enter__(self) -> Callable[[str], None]:
        from audit_logging import celery
        from audit_logging.conf import LoggingSettings

        options = LoggingSettings(
            {
                "AUDIT_LOGGING_BROKER_URL": self.url,
                "AUDIT_LOGGING_CELERY_QUEUE": self.queue,
                "AUDIT_LOGGING_BROKER_TIMEOUT": "1",
            }
        )
        self.monkeypatch.setattr(celery, "conf", options)
        self.monkeypatch.setattr(celery, "DELIVER", self.task)
        celery.forget_connection()
        return lambda text: celery.send_batch(text.encode(), 1)

    def __exit__(self, *exc: object) -> None:
        from audit_logging import celery

        celery.forget_connection()
        celery.forget_connection()
