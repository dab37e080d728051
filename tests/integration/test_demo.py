"""The demo itself, as people run it: every request arrives once, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from examples.demo import guardian
from examples.demo.prepare import ROOT
from examples.demo.processes import clean_environ

pytestmark = pytest.mark.slow


def free_ports() -> int:
    """Return N such that N and N+1 are free."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            number = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", number + 1))
            except OSError:
                continue
            return number


class RunningDemo:
    """A demo in its own process; `output` grows while it runs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.port = free_ports()
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "examples.demo", "--data-dir", str(folder)),
                *("--port-base", str(self.port), *arguments),
            ],
            cwd=ROOT,
            env=clean_environ({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str, patience: float = 120) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.output, patience), self.output

    def groups(self) -> dict[int, str]:
        """What it has started, as its pid file says."""
        document = json.loads((self.folder / "demo.pid").read_text())
        return {int(group): name for group, (name, _) in document["groups"].items()}

    def ended(self, patience: float = 120) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(patience)

    def assert_nothing_is_left(self, groups: dict[int, str]) -> None:
        for group, name in groups.items():
            assert not guardian.alive(group), f"{name} still runs"
        for port in (self.port, self.port + 1):
            with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
                probe.connect(("127.0.0.1", port))
        assert not (self.folder / "demo.pid").exists()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., RunningDemo]]:
    started: list[RunningDemo] = []

    def start(*arguments: str) -> RunningDemo:
        started.append(RunningDemo(tmp_path / "demo", *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.wait(60)


def test_once_ends_by_itself_when_every_request_is_one_row(
    demo: Callable[..., RunningDemo],
) -> None:
    running = demo("--once", "--requests", "200")
    running.wait_for("everything is configured right")
    running.wait_for("Sending 200 requests")
    groups = running.groups()
    assert set(groups.values()) == {
        *("inventory-api", "delivery", "publisher", "sink", "beat"),
    }
    assert running.ended() == 0, running.output
    output = running.output
    assert "Each of the 200 requests is one row, in the bucket of its site" in output
    for country in ("us", "ca", "mx"):
        assert f"buckets/{country}/events/service=inventory-api/date=" in output
    assert re.search(r"fail\? From the lake:\n(.*\n)*? +answer +400", output)
    assert output.count("[REDACTED]") >= 3
    running.assert_nothing_is_left(groups)


def test_it_stays_up_until_interrupted_and_what_it_suggests_works(
    demo: Callable[..., RunningDemo],
) -> None:
    running = demo("--requests", "40")
    running.wait_for("audit_query")
    groups = running.groups()

    for address in re.findall(r"http://127\S+/(?:admin/|v1/docs)", running.output):
        assert urllib.request.urlopen(address).status == 200
    suggested = [line.strip() for line in running.lines]
    curl = shlex.split(next(line for line in suggested if line.startswith("curl")))
    headers = dict(value.split(": ") for flag, value in pairwise(curl) if flag == "-H")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(urllib.request.Request(curl[-1], headers=headers))
    query = next(line for line in suggested if "audit_query" in line)
    assert _eventually_finds(query, "There is no shipment SHP1.")

    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 0, running.output
    running.assert_nothing_is_left(groups)


def _eventually_finds(command: str, text: str) -> bool:
    for _ in range(20):
        answer = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=clean_environ({}), capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        if text in answer.stdout:
            return True
    return False


def test_a_crash_ends_it_with_the_log_of_what_crashed(demo: Callable[..., RunningDemo]) -> None:
    running = demo("--requests", "40")
    running.wait_for("Sending 40 requests")
    groups = running.groups()
    (publisher,) = (group for group, name in groups.items() if name == "publisher")
    os.killpg(publisher, signal.SIGKILL)
    assert running.ended() == 1, running.output
    assert "publisher was killed by SIGKILL. Its log, " in running.output
    running.assert_nothing_is_left(groups)
