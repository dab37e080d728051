"""A publisher whose main process was killed: its workers end, and the next one starts as ever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_publisher import gunicorn
from tests.support import eventually
from tests.unit.audit_publisher.served import ROOT, Server, serve

LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        # A child that nobody has asked for is none that runs.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def killed(data: Path, public_pem: str) -> Iterator[tuple[Server, list[int]]]:
    # Empty: the server makes its folder by itself.
    with serve(data, public_pem, PROMETHEUS_MULTIPROC_DIR="") as server:
        workers = children(server.process.pid)
        assert len(workers) == 2
        try:
            server.process.kill()
            server.process.wait(20)
            yield server, workers
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_workers_end_with_their_main_process_and_another_serves(
    tmp_path: Path, public_pem: str
) -> None:
    with killed(tmp_path, public_pem) as (server, workers):
        folder = metrics_folder(workers[0])
        assert folder.exists()
        said = server.log
        eventually(lambda: not any(map(runs, workers)), 30, said)
        assert "main process is gone" in server.log()
        assert "Traceback" not in server.log()
        again = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "python:audit_publisher.gunicorn"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")}
            | {
                "AUDIT_DATA_DIR": str(tmp_path),
                "GUNICORN_BIND": f"127.0.0.1:{server.port}",
                "PROMETHEUS_MULTIPROC_DIR": "",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return server.raw(LIVE)[0] == 200
            assert again.poll() is None
            return False

        try:
            eventually(answers, 60)
            assert not folder.exists()
        finally:
            again.terminate()
            again.wait(30)


def metrics_folder(worker: int) -> Path:
    """Where a process counts: it holds the lock in it."""
    for file in Path(f"/proc/{worker}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = file.readlink()
            if target.parent.name.startswith("audit-metrics-"):
                return target.parent
    raise AssertionError("it counts nowhere")


def test_only_folders_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    program = (
        "import sys; from audit_publisher import gunicorn; "
        "print(gunicorn._make_folder(sys.argv[1]), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        used = Path(user.stdout.readline().strip())
        half_made = tmp_path / "audit-metrics-half"
        half_made.mkdir()
        (tmp_path / "audit-metrics-link").symlink_to(half_made)
        gunicorn._remove_left(tmp_path)
        assert used.is_dir()
        user.stdin.close()
        user.wait(20)
    gunicorn._remove_left(tmp_path)
    assert not used.exists()
    assert half_made.is_dir()
