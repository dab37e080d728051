"""Ports in use and stale runs: a sentence that says what to do, and nobody else's process hurt."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.processes import DemoError
from examples.demo.runfile import Port, RunFile, check_ports, identity

from .conftest import free_port

CHOOSE = "Or choose others: make demo PORT_BASE=8200."


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def stale(path: Path, *, pid: int, started: str | None, groups: dict[int, str | None]) -> RunFile:
    """A pid file as an earlier run would have left it."""
    known = {str(group): ["publisher", begun] for group, begun in groups.items()}
    path.write_text(json.dumps({"pid": pid, "started": started, "groups": known}))
    return RunFile(path)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_busy_port_is_named_with_its_owner_and_both_cures() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        with pytest.raises(DemoError) as raised:
            check_ports([Port(free_port(), "the example"), Port(number, "the publisher")], CHOOSE)
    message = str(raised.value)
    assert f"Port {number}, which the publisher needs, is in use" in message
    assert CHOOSE in message
    assert "the example" not in message
    if sys.platform == "linux":
        assert f"Stop it with `kill {os.getpid()}`" in message


def test_free_ports_are_fine() -> None:
    check_ports([Port(free_port(), "the example")], CHOOSE)


def test_processes_that_a_killed_run_left_are_stopped(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    run = stale(
        tmp_path / "demo.pid",
        pid=dead_pid(),
        started="1",
        groups={sleeper.pid: identity(sleeper.pid)},
    )
    said: list[str] = []
    run.clear_stale(said.append)
    assert sleeper.wait(5) != 0
    assert "left its publisher" in said[0]
    assert not run.path.exists()


def test_a_run_that_is_still_up_is_stopped_first(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "demo.pid"
    run = stale(path, pid=sleeper.pid, started=identity(sleeper.pid), groups={})
    said: list[str] = []
    run.clear_stale(said.append)
    assert sleeper.wait(5) != 0
    assert f"process {sleeper.pid}" in said[0]


def test_a_process_that_has_the_number_but_is_not_ours_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "demo.pid"
    run = stale(path, pid=sleeper.pid, started="1", groups={sleeper.pid: "1"})
    said: list[str] = []
    run.clear_stale(said.append)
    assert sleeper.poll() is None
    assert said == []
    assert not path.exists()


def test_a_broken_pid_file_is_told_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "demo.pid"
    path.write_text("{")
    said: list[str] = []
    RunFile(path).clear_stale(said.append)
    assert "not readable" in said[0]
    assert not path.exists()


def test_what_is_written_is_what_is_cleared(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    run = RunFile(tmp_path / "demo.pid")
    run.write({sleeper.pid: "worker"})
    document = json.loads(run.path.read_text())
    assert document["pid"] == os.getpid()
    assert document["groups"] == {str(sleeper.pid): ["worker", identity(sleeper.pid)]}
    # Its own run is no stale one, and is not stopped; its process is cleared.
    run.clear_stale(lambda sentence: None)
    assert sleeper.wait(5) != 0
