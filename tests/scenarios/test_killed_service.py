"""An audited service is killed under load: what it lost is known afterwards, number by number."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.demo.prepare import ROOT
from examples.demo.sender import Answer, send, unexpected
from examples.demo.traffic import SITES, Call, calls
from tests.integration.profiles import Embedded, System, running
from tests.support import eventually

pytestmark = pytest.mark.slow

_seeds = itertools.count(31_000)
_THREADS = 4


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    # Long enough in memory that a kill takes some with it.
    service = {"AUDIT_LOGGING_LINGER_SECONDS": "1", "AUDIT_LOGGING_HEARTBEAT_SECONDS": "1"}
    with running(Embedded(tmp_path, service=service | {"INVENTORY_WORKERS": "2"})) as system:
        yield system


class Load:
    """Calls without a pause, until it is told to stop."""

    def __init__(self, system: System) -> None:
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._port = system.addresses.service_port
        self._supply = self._calls()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _calls(self) -> Iterator[Call]:
        for seed in _seeds:
            yield from calls(40, seed=seed)

    def _work(self) -> None:
        while not self._stop.is_set():
            batch = list(itertools.islice(self._supply, 40))
            self.answers += send(batch, "127.0.0.1", self._port, threads=_THREADS)

    def end(self) -> list[Answer]:
        """Stop, and return what came back."""
        self._stop.set()
        self._thread.join()
        return self.answers


def _verify(system: System) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of audit_verify, with no time allowed on the way."""
    done = subprocess.run(
        [sys.executable, "manage.py", "audit_verify", "--json", "--grace", "0"],
        cwd=ROOT,
        env=system.programs.project_environ(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def _rows(system: System) -> list[dict[str, Any]]:
    return [row for country in SITES for row in system.profile.rows(country)]


def _stored_ids(rows: Sequence[dict[str, Any]]) -> set[str]:
    return {dict(row["headers"])["wm-qos.correlation-id"] for row in rows}


def _numbers(rows: Sequence[dict[str, Any]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        found[row["producer_epoch"]].add(row["seq"])
    return found


def _spelled(ranges: Sequence[Sequence[int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


def _send_and_arrive(system: System, count: int) -> None:
    batch = calls(count, seed=next(_seeds))
    assert list(unexpected(send(batch, "127.0.0.1", system.addresses.service_port))) == []
    eventually(
        lambda: len(system.stored(batch)) == count, timeout=90, message=system.diagnosis, pause=0.5
    )


def _reported(system: System, lost: int) -> dict[str, Any]:
    """audit_verify's answer once so many processes are known to have been killed."""
    answer: dict[str, Any] = {}

    def known() -> bool:
        nonlocal answer
        answer = _verify(system)[1]
        return bool(answer["producers"]["states"].get("lost") == lost)

    eventually(known, timeout=90, message=lambda: f"{answer}\n{system.diagnosis()}", pause=1)
    return answer


def test_a_service_killed_under_load_has_its_lost_events_named(system: System) -> None:
    load = Load(system)
    eventually(lambda: len(_numbers(_rows(system))) == 2, timeout=90, message=system.diagnosis)
    before = len(load.answers)
    eventually(lambda: len(load.answers) > before + 40, timeout=60)
    program = system.kill("inventory-api")
    answered = [each.call.id for each in load.end() if each.status]
    killed = set(_numbers(_rows(system)))
    assert len(killed) == 2, "two workers were killed"

    # After the restart, its first requests bring what the killed ones left behind.
    system.start_again(program)
    _send_and_arrive(system, 20)
    answer = _reported(system, lost=len(killed))

    rows = _rows(system)
    stored, numbers = _stored_ids(rows), _numbers(rows)
    told = {each["producer_epoch"]: each for each in answer["producers"]["incomplete"]}
    assert told.keys() <= killed, "only killed processes have lost anything"
    for epoch, one in told.items():
        missing = _spelled(one["missing_ranges"])
        # Each number it gave is a row or named as missing, and none is both.
        assert missing | numbers[epoch] == set(range(one["given"]))
        assert not missing & numbers[epoch]
        assert one["unexplained"] == len(missing) == one["missing"]
        assert one["state"] == "lost"
    for epoch in numbers.keys() - told.keys():
        assert numbers[epoch] == set(range(len(numbers[epoch])))
    lost = [call for call in answered if call not in stored]
    assert lost, "the kill took nothing with it: nothing was tested"
    # Requests that were answered, and those that were being answered at the kill.
    named = sum(one["missing"] for one in told.values())
    assert len(lost) <= named <= len(lost) + _THREADS
    assert _verify(system)[0] == 1


def test_a_worker_killed_beside_its_siblings_is_reported_by_them(system: System) -> None:
    _send_and_arrive(system, 40)
    (child,) = [each for each in system.supervisor.children if each.program.name == "inventory-api"]
    (workers,) = [
        path.read_text().split()
        for path in Path(f"/proc/{child.process.pid}/task").glob("*/children")
    ]
    load = Load(system)
    eventually(lambda: len(load.answers) >= 80, timeout=60)
    os.kill(int(workers[0]), signal.SIGKILL)
    load.end()
    _send_and_arrive(system, 20)

    answer = _reported(system, lost=1)
    for one in answer["producers"]["incomplete"]:
        assert (one["pid"], one["state"]) == (int(workers[0]), "lost")


def test_a_service_that_is_stopped_in_good_order_has_lost_nothing(system: System) -> None:
    load = Load(system)
    eventually(lambda: len(load.answers) >= 80, timeout=60)
    (child,) = [each for each in system.supervisor.children if each.program.name == "inventory-api"]
    system.supervisor.children.remove(child)
    child.process.terminate()
    child.process.wait(30)
    answered = [each.call.id for each in load.end() if each.status]
    # What it could not hand over in time lies in its spool, which the next one replays.
    system.start_again(child.program)
    _send_and_arrive(system, 20)
    eventually(
        lambda: set(answered) <= _stored_ids(_rows(system)),
        timeout=90,
        message=system.diagnosis,
        pause=0.5,
    )

    def complete() -> bool:
        status, answer = _verify(system)
        producers = answer["producers"]
        return status == 0 and not producers["incomplete"] and producers["states"]["closed"] == 2

    eventually(complete, timeout=60, message=lambda: str(_verify(system)), pause=1)
