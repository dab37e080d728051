"""What must hold when parts of the embedded system die or change under load: real processes."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from examples.demo.sender import Answer, send, unexpected
from examples.demo.traffic import Call, calls
from tests.integration.profiles import Embedded, System, running
from tests.scenarios.admin import Admin
from tests.support import eventually

pytestmark = pytest.mark.slow

_seeds = itertools.count(9000)


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Iterator[System]:
    profile = Embedded(tmp_path_factory.mktemp("faults"), service={"INVENTORY_WORKERS": "2"})
    with running(profile) as system:
        yield system


def _send(system: System, batch: Sequence[Call]) -> list[Answer]:
    answers = send(batch, "127.0.0.1", system.addresses.service_port, threads=4)
    assert list(unexpected(answers)) == []
    return answers


def _arrive(system: System, batch: Sequence[Call], timeout: float = 90) -> None:
    """Every call of `batch` becomes one row, and stays one row."""
    found: Counter[str] = Counter()

    def all_there() -> bool:
        nonlocal found
        system.supervisor.check()
        found = system.stored(batch)
        return len(found) == len(batch)

    def missing() -> str:
        lacking = [call for call in batch if call.id not in found]
        return f"{len(lacking)} of {len(batch)} did not arrive: {lacking[:3]}\n{system.diagnosis()}"

    eventually(all_there, timeout, missing, pause=0.5)
    assert set(found.values()) == {1}


def test_publisher_down_costs_no_answer_and_no_event(system: System) -> None:
    batch = calls(60, seed=next(_seeds))
    publisher = system.kill("publisher")
    _send(system, batch)
    assert not system.stored(batch)
    system.start_again(publisher)
    _arrive(system, batch)


@pytest.mark.parametrize("name", ["delivery", "sink", "publisher", "beat"])
def test_a_process_killed_under_load_loses_and_doubles_nothing(system: System, name: str) -> None:
    batch = calls(120, seed=next(_seeds))
    sender = threading.Thread(target=send, args=(batch, "127.0.0.1", system.addresses.service_port))
    sender.start()
    eventually(lambda: system.stored(batch), timeout=60, message="nothing arrived")
    program = system.kill(name)
    system.start_again(program)
    sender.join()
    _arrive(system, batch)


def test_a_flag_changed_in_admin_acts_within_five_seconds(system: System) -> None:
    admin = Admin(system.addresses.publisher)
    admin.log_in("admin", "a password for this test")
    supply = iter(calls(4000, seed=next(_seeds)))

    def traffic(seconds: float) -> list[tuple[float, Call]]:
        """Steady traffic that reaches both workers: a time before each call, and the call."""
        sent = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            batch, began = list(itertools.islice(supply, 8)), time.monotonic()
            _send(system, batch)
            sent += [(began, call) for call in batch]
            # Paced by the clock, so that the supply lasts on any machine.
            threading.Event().wait(0.2)
        return sent

    before = [call for _, call in traffic(1)]
    admin.set_capture_flags("inventory-api", enabled=False)
    saved = time.monotonic()
    off = [call for began, call in traffic(7) if began > saved + 5]
    admin.set_capture_flags("inventory-api", enabled=True)
    saved = time.monotonic()
    on = [call for began, call in traffic(7) if began > saved + 5]

    assert off
    assert on
    _arrive(system, before)
    _arrive(system, on)
    assert not system.stored(off)
