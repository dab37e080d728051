"""Workers that are forked, stopped, recycled and killed: what was answered is recorded, once."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from audit_logging.celery import make_app
from tests.integration.servers import kinds, wire
from tests.integration.servers.kinds import Kind, Served, wait_for_exit
from tests.integration.servers.load import Load, cases
from tests.services.fixtures import serve
from tests.support import eventually

pytestmark = [pytest.mark.services, pytest.mark.slow]

RECYCLED = Kind(
    "gunicorn-recycled", "gunicorn", arguments=("-k", "sync", "--max-requests", "7", "--preload")
)
#: What servers say when they were told to stop.
STOPPING = re.compile("Handling signal: term|Shutting down")
OWN_PROCESS = {"BUILD_IN": "process"}


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """Start a server of a kind; it is stopped after the test."""
    made: list[Any] = []

    def start(kind: Kind, **how: Any) -> Served:
        context = serve(Served(kind, **how))
        made.append(context)
        return context.__enter__()

    yield start
    for context in made:
        context.__exit__(None, None, None)


def check_numbers(events: list[dict[str, Any]], missing: int = 0) -> None:
    """Each producer's numbers run from 0 without a gap, but for so many that are `missing`."""
    numbers: dict[str, list[int]] = {}
    for event in events:
        numbers.setdefault(event["producer_epoch"], []).append(event["seq"])
    assert all(len(given) == len(set(given)) for given in numbers.values())
    lacking = sum(max(given) + 1 - len(given) for given in numbers.values())
    assert lacking <= missing


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kinds.SYNC_PRELOAD, {}),
        (kinds.GTHREAD, {}),
        (kinds.GTHREAD_PRELOAD, OWN_PROCESS),
        (kinds.UVICORN_WORKER_PRELOAD, {}),
        (kinds.UWSGI, {}),
        (kinds.UWSGI, OWN_PROCESS),
        (kinds.UWSGI_LAZY, {}),
    ],
    ids=lambda value: "own-process" if value == OWN_PROCESS else str(value or "auto"),
)
def test_forks_in_the_middle_of_load_and_a_stop(
    start: Callable[..., Served], kind: Kind, options: dict[str, Any]
) -> None:
    """Two workers; their requests fork children that capture on their own; then SIGTERM."""
    served = start(kind, workers=2, options=options)
    # No view here asks the project's database: a process that forks while its own threads are in a
    # SQLite transaction has a child that waits for them, with the audit and without.
    with Load(served, "/pid") as load:
        load.reach(30)
        for n in range(3):
            answer = served.get(f"/fork?n={n}&case=fork-{n}")
            assert answer.body == b"child ended with 0", served.tail_log()
        load.reach(30)
    served.end()
    # What a process that ends takes over from its own sender may be on its way already: it is the
    # same event, by its id, and one row of the lake.
    events = list({event["request_id"]: event for event in served.records()}.values())
    expected = {f"fork-{n}" for n in range(3)} | {
        f"child-{n}-{k}" for n in range(3) for k in range(5)
    }
    assert cases(events) == Counter(load.answered | expected)
    check_numbers(events)
    assert len({event["producer_epoch"] for event in events}) >= 4


@pytest.mark.parametrize("kind", [kinds.SYNC, RECYCLED, kinds.ASGI_WORKER], ids=str)
def test_workers_that_are_recycled_under_load(start: Callable[..., Served], kind: Kind) -> None:
    served = start(kind, workers=2)
    with Load(served) as load:
        load.reach(40)
        if kind is not RECYCLED:
            served.tell(signal.SIGHUP)
        load.reach(40)
    served.end()
    found = cases(served.records())
    assert set(found.values()) == {1}
    assert set(found) >= load.answered
    # An answer that a dying worker could not send any more is recorded all the same.
    assert set(found) <= load.asked
    check_numbers(served.records())


@pytest.mark.parametrize("kind", [kinds.SYNC, kinds.GTHREAD_PRELOAD, kinds.UVICORN], ids=str)
def test_a_stop_waits_for_what_is_under_way(start: Callable[..., Served], kind: Kind) -> None:
    served = start(kind)
    with wire.connect(served.port) as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(wire.message("GET", "/gate?name=stop&case=stop"))
        eventually(lambda: "entered stop" in served.notes(), 15)
        ended = pool.submit(served.end)
        eventually(lambda: STOPPING.search(served.tail_log(100)), 15, served.tail_log)
        served.open_gate("stop")
        assert wire.parse(wire.read_all(connection)).body == b"through"
        ended.result(30)
    assert cases(served.records()) == {"stop": 1}


@pytest.mark.parametrize("kind", [kinds.SYNC, kinds.GTHREAD_PRELOAD, kinds.UWSGI], ids=str)
def test_a_killed_worker_loses_what_was_in_its_memory_at_most(
    start: Callable[..., Served], kind: Kind
) -> None:
    served = start(kind)
    for n in range(20):
        assert served.get(f"/items/1?case=kept-{n}").status == 201
    eventually(lambda: len(served.records()) == 20, 15)
    worker = int(served.get("/pid?case=pid").body.split(b":")[1].strip(b" }"))
    for n in range(5):
        assert served.get(f"/items/1?case=perhaps-{n}").status == 201
    os.kill(worker, signal.SIGKILL)
    wait_for_exit(worker)
    for n in range(20):
        eventually(lambda n=n: _answers(served, f"/items/1?case=later-{n}"), 15)
    served.end()
    events = served.records()
    found = cases(events)
    assert set(found.values()) == {1}
    assert {f"kept-{n}" for n in range(20)} | {f"later-{n}" for n in range(20)} <= set(found)
    check_numbers(events, missing=6)


def _answers(served: Served, target: str) -> bool:
    try:
        return served.get(target).status == 201
    except OSError:
        return False


@pytest.mark.parametrize("kind", [kinds.SYNC, kinds.GTHREAD], ids=str)
def test_a_view_that_exits(start: Callable[..., Served], kind: Kind) -> None:
    """To the server it is what it is without us; and it is recorded."""
    sent = wire.message("GET", "/raises?kind=exit&case=exit")
    audited, bare = start(kind), start(kind, audited=False)
    assert wire.comparable(audited.send(sent)) == wire.comparable(bare.send(sent))
    for served in (audited, bare):
        eventually(lambda served=served: _answers(served, "/items/1?case=after"), 15)
    audited.end()
    (event,) = [event for event in audited.records() if "case=exit" in event["path"]]
    assert (event["outcome"], event["response_code"]) == ("failed", 500)
    assert event["error_reason"] == "SystemExit: 1"
    assert cases(audited.records())["after"] == 1


class Worker(Served):
    """A Celery worker of the project's own, which forks its children."""

    def __init__(self) -> None:
        super().__init__(Kind("celery-prefork", "celery"))

    @property
    def broker(self) -> str:
        return f"durable://{self.folder}/jobs.sqlite3"

    def _command(self) -> list[str]:
        app = f"{kinds.PROJECT}.jobs"
        pool = ["-P", "prefork", "-c", "2", "--max-tasks-per-child", "4"]
        return [sys.executable, "-m", "celery", "-A", app, "worker", *pool, "-l", "info"]

    def ask(self) -> None:
        assert "ready." in self.tail_log(100)


def test_requests_in_children_of_a_celery_worker() -> None:
    """Children that are replaced after a few jobs, and at last stopped."""
    with serve(Worker()) as worker:
        app = make_app()
        app.conf.update(broker_url=worker.broker)
        wanted = {f"job-{n}" for n in range(22)}
        for case in sorted(wanted):
            app.send_task("ask", args=(case,), queue="celery")
        app.close()
        eventually(lambda: worker.notes().count("finished") >= 22, 30, worker.tail_log)
        worker.end()
        assert cases(worker.records()) == Counter(wanted)
        check_numbers(worker.records())


def test_the_audits_files_belong_to_their_owner(start: Callable[..., Served]) -> None:
    served = start(kinds.GTHREAD)
    served.get("/items/1?case=x")
    eventually(served.records, 15)
    folder = Path(served.folder, "capture")
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
