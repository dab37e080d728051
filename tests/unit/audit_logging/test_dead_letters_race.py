"""Several hosts' workers and one database: each letter is there once, and is sent again once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit_logging import dead_letter_file
from audit_logging.conf import LoggingSettings
from audit_logging.outcome import Refusal

REPOSITORY = Path(__file__).resolve().parents[3]

HOSTS = 4
EVENTS = 40

PROGRAM = """
import json, sys, time
import django
django.setup()
from audit_logging import dead_letter_file
from audit_logging.breaker import Breaker
from audit_logging.conf import conf
from audit_logging.dead_letters import DeadLetter, Mover
from audit_logging.dead_letter_file import DEAD_STREAM
from audit_logging.outcome import Delivered

sent = []

class Target:
    def send(self, batch):
        sent.extend(batch.lines())
        return Delivered(stored={"published": batch.count})

class Wish:
    allows = True
    def admits(self, seconds): return True
    def succeeded(self): pass
    def failed(self, retry_after=None): pass

mode = sys.argv[1]
if mode == "resend":
    print(DeadLetter.objects.update(state="resend"))
elif mode == "show":
    print(json.dumps(list(DeadLetter.objects.values_list("event", "state", "attempts"))))
else:
    file = dead_letter_file.open_file(conf)
    mover = Mover(file, Target(), Wish(), conf)
    print("ready", flush=True)
    sys.stdin.readline()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        mover.step()
        if mode == "move" and not file.stats(DEAD_STREAM).records:
            break
        if mode == "send" and not DeadLetter.objects.filter(state="resend").exists():
            break
    print(json.dumps(sent))
"""


@pytest.fixture(
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)],
)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/db.sqlite3"
    url: str = request.getfixturevalue("postgres_server").create_database("dead_letters")
    return url


@pytest.fixture
def start(tmp_path: Path, database_url: str) -> Callable[..., subprocess.Popen[str]]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(*command: str | Path, host: int = 0) -> subprocess.Popen[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("AUDIT_")} | {
            "PYTHONPATH": str(REPOSITORY),
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "AUDIT_DATABASE_URL": database_url,
            "AUDIT_DATA_DIR": str(tmp_path / "project"),
            "AUDIT_LOGGING_DATA_DIR": str(tmp_path / f"host-{host}"),
        }
        return subprocess.Popen(
            [sys.executable, *command],
            env=environ, cwd=tmp_path, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    return start


def event(n: int) -> str:
    return json.dumps({"request_id": f"id-{n}", "service_name": "shop"})


def race(start: Any, tmp_path: Path, mode: str) -> list[str]:
    """Run `mode` on every host at once; return what each sent."""
    running = [start(tmp_path / "program.py", mode, host=host) for host in range(HOSTS)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    sent: list[str] = []
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        sent += json.loads(output.splitlines()[-1])
    return sent


def ask(start: Any, tmp_path: Path, mode: str) -> Any:
    output, _ = start(tmp_path / "program.py", mode).communicate(timeout=60)
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_workers_of_several_hosts_race(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert start(REPOSITORY / "manage.py", "migrate", "-v", "0").wait(120) == 0
    for host in range(HOSTS):
        options = LoggingSettings({"AUDIT_LOGGING_DATA_DIR": str(tmp_path / f"host-{host}")})
        # Each event was refused on every host, as a broker may hand a batch out more than once.
        refused = [Refusal(event(n), "no", 422) for n in range(EVENTS)]
        dead_letter_file.bury(dead_letter_file.open_file(options), refused)
    race(start, tmp_path, "move")
    rows = ask(start, tmp_path, "show")
    assert sorted(row[0] for row in rows) == sorted(event(n) for n in range(EVENTS))
    assert {row[2] for row in rows} == {HOSTS}
    assert ask(start, tmp_path, "resend") == EVENTS
    sent = race(start, tmp_path, "send")
    assert Counter(sent) == Counter(event(n) for n in range(EVENTS))
    assert {row[1] for row in ask(start, tmp_path, "show")} == {"delivered"}
