"""What a fault behind the middleware does to requests: each against the healthy service.

All services run side by side and are asked in turn, round by round. "healthy again" is a second
healthy service: how far it is from the first is what this machine's noise looks like.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.services.processes import free_port

from .conductor import Figure, Process, folder, quantile
from .contenders import OURS
from .cpu import cpu_seconds, redis, rest
from .service import Spec

_HEALTHY = "healthy"
_BLOCK = 250
_TMPFS_KB = 4000


@dataclass(frozen=True)
class Fault:
    """Nanoseconds more than the healthy service, and its share of the healthy one's requests/s."""

    fault: str
    median: Figure
    p99: Figure
    throughput: Figure
    kept: str


class Case:
    """A service, and how what is behind it breaks once it runs."""

    def __init__(
        self,
        name: str,
        options: dict[str, Any] | None = None,
        database: dict[str, Any] | None = None,
        breaks: Callable[[Path], Any] | None = None,
    ) -> None:
        self.name = name
        self.options = options or {}
        self.database = database or {}
        self.breaks = breaks


def measure(*, rounds: int, requests: int, pause: float) -> list[Fault]:
    """Measure every fault that this machine lets us make."""
    with ExitStack() as stack:
        root = stack.enter_context(folder())
        hole = stack.enter_context(_black_hole())
        running: dict[str, Process] = {}
        for case in _cases(stack, root, hole):
            place = root / case.name.replace(" ", "-")
            spec = Spec(OURS.name, True, str(place), options=case.options, database=case.database)
            process = stack.enter_context(Process(spec))
            process.warm_up()
            if case.breaks is not None:
                case.breaks(place)
            # So that breakers and time-outs have seen the fault.
            process.tell("paced", requests=300, pause=pause, seed=0)
            running[case.name] = process
        rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in running}
        for number in range(rounds):
            for name, row in _round(running, requests, pause, number).items():
                rows[name].append(row)
        counted = {name: process.tell("state")["counted"] for name, process in running.items()}
    healthy = rows[_HEALTHY]
    return [
        Fault(
            name,
            Figure.of([row[0] - other[0] for row, other in zip(mine, healthy, strict=True)]),
            Figure.of([row[1] - other[1] for row, other in zip(mine, healthy, strict=True)]),
            Figure.of([row[2] / other[2] for row, other in zip(mine, healthy, strict=True)]),
            ", ".join(f"{what} {count:,.0f}" for what, count in counted[name].items() if count),
        )
        for name, mine in rows.items()
        if name != _HEALTHY
    ]


def _round(
    running: dict[str, Process], requests: int, pause: float, number: int
) -> dict[str, tuple[float, float, float]]:
    """Median, p99 (nanoseconds) and requests a second of each."""
    wall: dict[str, list[float]] = {name: [] for name in running}
    made: dict[str, tuple[float, float]] = {}
    names = list(running)
    for block in range(max(1, requests // _BLOCK)):
        # Another one begins each time.
        first = (number + block) % len(names)
        for name in names[first:] + names[:first]:
            answer = running[name].tell(
                "paced", requests=_BLOCK, pause=pause, seed=number * 1000 + block
            )
            wall[name] += answer["wall"]
    for name in names[number % len(names) :] + names[: number % len(names)]:
        answer = running[name].tell("flat_out", seconds=1.0)
        made[name] = answer["requests"], answer["seconds"]
        # The background catches up before others are asked.
        rest(partial(cpu_seconds, running[name].pid))
    return {
        name: (
            quantile(wall[name], 0.5),
            quantile(wall[name], 0.99),
            made[name][0] / made[name][1],
        )
        for name in names
    }


def _cases(stack: ExitStack, root: Path, hole: int) -> Iterator[Case]:
    """The healthy service first."""
    closed = free_port()
    yield Case(_HEALTHY)
    yield Case("healthy again")
    yield Case("broker dead", {"BROKER_URL": f"redis://127.0.0.1:{closed}/0"})
    server = redis(stack)
    if server is not None:
        # Resumed at the end, which a polite stop needs.
        stack.callback(server.resume)
        yield Case("broker stalled", {"BROKER_URL": server.url}, breaks=lambda _: server.pause())
    publisher = {"FLAGS_SOURCE": "publisher"}
    yield Case("publisher dead", {**publisher, "PUBLISHER_URL": f"http://127.0.0.1:{closed}"})
    yield Case("publisher stalled", {**publisher, "PUBLISHER_URL": f"http://127.0.0.1:{hole}"})
    postgres = {"ENGINE": "django.db.backends.postgresql", "NAME": "flags", "HOST": "127.0.0.1"}
    yield Case("database dead", database={**postgres, "PORT": closed})
    yield Case("database stalled", database={**postgres, "PORT": hole})
    small = stack.enter_context(_small_disk(root / "small-disk"))
    if small is not None:
        yield Case("disk full", {"DATA_DIR": str(small)}, breaks=lambda _: _fill(small))
    yield Case(
        "disk stalled",
        breaks=lambda place: stack.enter_context(_locked(place / "audit")),
    )


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    """A port where connections are taken and nobody answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def _small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of a few MB, which only root can make."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_KB}k,mode=700", "tmpfs", str(place)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"without a full disk: {done.stderr.strip()}")
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def _fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


_LOCK = """
import pathlib, sqlite3, sys
held = []
for path in pathlib.Path(sys.argv[1]).rglob("*.sqlite3"):
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    held.append(connection)
print(len(held), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _locked(audit: Path) -> Iterator[None]:
    """Somebody holds the write lock of every file below `audit`: no write comes to an end."""
    from audit_logging.spool import DurableQueue

    # The spool is made with its first write, which must meet the lock too.
    spool = DurableQueue(audit / "capture-spool.sqlite3")
    spool.stats("capture")
    spool.close()
    holder = subprocess.Popen(
        [sys.executable, "-c", _LOCK, str(audit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    held = int(holder.stdout.readline())
    assert held >= 2, "nothing to lock"
    try:
        yield
    finally:
        holder.communicate()
