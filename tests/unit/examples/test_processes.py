"""The demo's supervisor: nothing that it started is ever left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo import guardian
from examples.demo.processes import (
    ChildDied,
    DemoError,
    NotReady,
    Program,
    Supervisor,
    clean_environ,
    log_says,
)
from tests.support import eventually

ROOT = Path(__file__).resolve().parents[3]


def python(name: str, code: str, **rules: object) -> Program:
    """A program of a few lines of Python."""
    argv = [sys.executable, "-u", "-S", "-c", textwrap.dedent(code)]
    return Program(name, argv, dict(os.environ), **rules)  # type: ignore[arg-type]


FOREVER = "import time\nprint('up', flush=True)\nwhile True: time.sleep(60)"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
PARENT = (
    "import subprocess, sys\nsubprocess.Popen([sys.executable, '-S', '-c', "
    "'import time; time.sleep(600)'])\n" + FOREVER
)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path) as supervisor:
        yield supervisor


def test_leaving_stops_all_even_what_does_not_want_to(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        for name, code in (("plain", FOREVER), ("stubborn", STUBBORN), ("parent", PARENT)):
            log = tmp_path / f"{name}.log"
            supervisor.start(python(name, code, ready=log_says(log, "up"), patience=0.3))
        supervisor.wait_ready(15, on_ready=lambda name: None)
        groups = [child.group for child in supervisor.children]
        assert all(guardian.alive(group) for group in groups)
    assert not any(guardian.alive(group) for group in groups)


def test_what_is_dead_and_not_yet_collected_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "pass"], start_new_session=True) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(process.pid, 0)
        assert not guardian.alive(process.pid)


def test_a_failure_half_way_stops_what_had_started(tmp_path: Path) -> None:
    groups: list[int] = []

    def start_all() -> None:
        with Supervisor(tmp_path) as supervisor:
            groups.append(supervisor.start(python("first", FOREVER)).group)
            supervisor.start(Program("second", ["/nonexistent/program"], {}))

    with pytest.raises(FileNotFoundError):
        start_all()
    eventually(lambda: not guardian.alive(groups[0]))


def test_ranks_are_stopped_in_their_order(own: Supervisor) -> None:
    for name, rank in (("store", 2), ("source", 0), ("way", 1), ("clock", 0)):
        own.start(python(name, FOREVER, rank=rank))
    order: list[str] = []
    own.stop(order.append)
    assert order == ["source, clock", "way", "store"]


def test_a_crash_is_noticed_with_the_end_of_its_log(own: Supervisor) -> None:
    own.start(python("fine", FOREVER))
    own.start(python("publisher", "print('no such column: seq')\nraise SystemExit(3)"))
    with pytest.raises(ChildDied, match=r"(?s)publisher ended with 3\..*no such column: seq"):
        own.until(lambda: False, 15, "never")


def test_a_killed_process_is_named_with_its_signal(own: Supervisor) -> None:
    child = own.start(python("beat", FOREVER))
    os.killpg(child.group, signal.SIGKILL)
    with pytest.raises(ChildDied, match="beat was killed by SIGKILL"):
        own.until(lambda: False, 15, "never")


def test_what_is_never_ready_is_named(own: Supervisor) -> None:
    own.start(python("worker", FOREVER, ready=lambda: False))
    with pytest.raises(NotReady, match=r"worker was not ready within 0\.2 s"):
        own.wait_ready(0.2, on_ready=lambda name: None)


def test_a_refused_question_is_a_no(own: Supervisor) -> None:
    answers = iter([ConnectionRefusedError, None])

    def ready() -> bool:
        error = next(answers)
        if error:
            raise error
        return True

    own.start(python("publisher", FOREVER, ready=ready))
    names: list[str] = []
    own.wait_ready(15, on_ready=names.append)
    assert names == ["publisher"]


def finish(supervisor: Supervisor, code: str) -> str:
    return supervisor.finish_task(supervisor.start_task(python("migrate", code)), 15)


def test_a_task_gives_its_output_and_tells_a_failure(own: Supervisor) -> None:
    assert finish(own, "print('done')") == "done\n"
    with pytest.raises(DemoError, match=r"(?s)migrate failed:.*locked"):
        finish(own, "raise SystemExit('locked')")
    assert own.children == []


def test_settings_of_the_audit_in_the_shell_do_not_reach_the_demo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUDIT_DATABASE_URL", "postgresql://production")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "elsewhere")
    environ = clean_environ({"AUDIT_DATA_DIR": "/tmp/x"})
    assert "AUDIT_DATABASE_URL" not in environ
    assert "DJANGO_SETTINGS_MODULE" not in environ
    assert environ["AUDIT_DATA_DIR"] == "/tmp/x"


#: A demo in small: starts one process, says which, then waits to be ended.
SMALL_DEMO = """
import sys, time
from pathlib import Path
from examples.demo.processes import Interrupted, Program, Supervisor
with Supervisor(Path(sys.argv[1])) as supervisor:
    supervisor.handle_signals()
    child = supervisor.start(
        Program("child", [sys.executable, "-S", "-c", "import time; time.sleep(600)"], {})
    )
    try:
        print(child.group, flush=True)
        time.sleep(600)
    except Interrupted:
        print("stopping", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_children_end_with_the_demo_however_it_ends(tmp_path: Path, number: int) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-c", SMALL_DEMO, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert demo.stdout is not None
    group = int(demo.stdout.readline())
    assert guardian.alive(group)
    demo.send_signal(number)
    rest = demo.stdout.read()
    demo.wait(15)
    assert rest == ("" if number == signal.SIGKILL else "stopping\n")
    eventually(lambda: not guardian.alive(group))
