"""A fork waits until our threads are out of libraries that take locks, but not for long."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from audit_logging import metrics
from audit_logging.forks import within
from tests.support import in_child


def test_a_fork_comes_when_nobody_is_within() -> None:
    inside, stop = [False], threading.Event()

    def work() -> None:
        while not stop.is_set():
            with within:
                inside[0] = True
                time.sleep(0.001)
                inside[0] = False

    threads = [threading.Thread(target=work) for _ in range(1)]
    for thread in threads:
        thread.start()
    try:
        assert all(in_child(lambda: not inside[0]) for _ in range(20))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_one_that_stays_within_holds_up_neither_the_fork_nor_the_child() -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with within:
            entered.set()
            leave.wait(30)

    def child() -> bool:
        with within:
            return True

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(10)
    assert in_child(child)
    leave.set()
    thread.join()
    # And afterwards all is as before.
    assert in_child(child)


def test_two_threads_that_fork_at_once_leave_no_lock_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second_waits = threading.Event()
    real = threading.Lock()

    class Lock:
        def acquire(self) -> bool:
            if threading.current_thread() is not threading.main_thread():
                second_waits.set()
            return real.acquire()

        def release(self) -> None:
            real.release()

    def fork() -> None:
        metrics._before_fork()
        metrics._after_fork_in_parent()

    monkeypatch.setattr(metrics, "_lock", Lock())
    monkeypatch.setattr(metrics, "_export_lock", export := threading.Lock())
    monkeypatch.setattr(metrics, "_FORK_WAITS", 0.001)
    metrics._before_fork()
    second = threading.Thread(target=fork)
    second.start()
    assert second_waits.wait(20)
    metrics._after_fork_in_parent()
    second.join()
    assert not export.locked()


def test_the_first_batch_imports_nothing(tmp_path: Path) -> None:
    """A child that is forked in the middle of an import waits for that module for ever."""
    program = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["audit_logging"],
    AUDIT_LOGGING={"SERVICE_NAME": "shop", "DATA_DIR": sys.argv[1]},
)
import django
django.setup()
from audit_logging.conf import conf
from audit_logging.handover import make_send
send = make_send(conf)
before = set(sys.modules)
send(b"{}", 1)
print(sorted(set(sys.modules) - before))
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
