"""CPU of the whole capture tier for one event: the process's own, audited minus bare.

That is the request path, the background threads with parsing and redaction, and the hand-over to
a real broker until nothing is left in memory. What Redis itself uses is told beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.services.processes import descendants

from .conductor import Figure, Process, folder, pair
from .contenders import OURS
from .service import Spec

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_LOOK = 0.4
#: Share of a core that is as good as nothing: flags are looked up every other second.
_AT_REST = 0.06


@dataclass(frozen=True)
class Cost:
    """Seconds of CPU for one event: of the audited process, and of the broker's."""

    broker: str
    load: str
    process: Figure
    server: Figure | None


def measure(*, rounds: int, requests: int, pause: float) -> list[Cost]:
    """Measure over the embedded broker and, where it can be had, Redis; paced and flat out."""
    costs = []
    with ExitStack() as stack:
        root = stack.enter_context(folder())
        brokers: dict[str, tuple[dict[str, Any], int | None]] = {"embedded": ({}, None)}
        server = redis(stack)
        if server is not None:
            brokers["redis"] = ({"BROKER_URL": server.url}, server.pid)
        pairs = {
            name: stack.enter_context(
                pair(Spec(OURS.name, True, str(root / name), options=options))
            )
            for name, (options, _) in brokers.items()
        }
        loads: dict[str, dict[str, Any]] = {
            f"one each {pause * 1000:.0f} ms": {"do": "paced", "pause": pause},
            "flat out": {"do": "flat_out"},
        }
        for both in pairs.values():
            for process in both:
                process.warm_up()
        for load, how in loads.items():
            seen: dict[str, list[float]] = {name: [] for name in pairs}
            served: dict[str, list[float]] = {name: [] for name in pairs}
            for number in range(rounds):
                for name, both in pairs.items():
                    more: dict[str, Any] = {"seed": number} if how["do"] == "paced" else {}
                    pid = brokers[name][1]
                    used = [0.0, 0.0]
                    for which in (0, 1) if number % 2 else (1, 0):
                        before = cpu_seconds(pid) if pid else 0.0
                        used[which] = spent(both[which], requests, **how, **more)
                        if pid and which:
                            served[name].append((cpu_seconds(pid) - before) / requests)
                    seen[name].append((used[1] - used[0]) / requests)
            costs += [
                Cost(
                    name,
                    load,
                    Figure.of(seen[name]),
                    Figure.of(served[name]) if served[name] else None,
                )
                for name in pairs
            ]
    return costs


def spent(process: Process, requests: int, *, do: str, **how: Any) -> float:
    """CPU seconds of `process` and of those below it for so many requests, all handed over."""
    used = partial(cpu_seconds, process.pid)
    before = used()
    process.tell(do, requests=requests, **how)
    process.tell("flush")
    rest(used)
    return used() - before


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process and all below it have used."""
    # Of those that have ended the kernel tells their parent's sum.
    total = sum(map(int, _fields(pid)[11:15]))
    for child in descendants(pid):
        with suppress(OSError):
            total += sum(map(int, _fields(child)[11:15]))
    return total * _TICK


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def rest(used: Callable[[], float], limit: float = 15.0) -> None:
    """Wait until those whose CPU seconds `used` tells have nothing more to do."""
    end, before = time.monotonic() + limit, used()
    while time.monotonic() < end:
        time.sleep(_LOOK)
        now = used()
        if now - before < _LOOK * _AT_REST:
            return
        before = now


def redis(stack: ExitStack) -> Any:
    """A Redis of our own for the time of `stack`; None where it cannot be had."""
    from tests.services.errors import Unavailable
    from tests.services.redis import Redis

    server = Redis(own=True)
    try:
        return stack.enter_context(server)
    except Unavailable as error:
        print(f"without Redis: {error}")
        return None
