"""How long the background holds the interpreter: what a waking request thread waits for it.

A thread sleeps 1 ms at a time and measures how much later it came to. A busy background thread
gives the interpreter back after 5 ms (Python's switch interval) at the latest when it runs Python,
and later when it is inside one long call of C. The bare service, under the same requests, is the
measure of what the machine and the requests themselves do.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from .conductor import Process, folder, pair, quantile
from .contenders import OURS
from .service import Spec

#: Bytes of a body, and seconds between requests.
_CASES = {"2 KB bodies": (2000, 0.005), "400 KB bodies": (400_000, 0.1)}


@dataclass(frozen=True)
class Holds:
    """Nanoseconds of oversleep; each is (bare, audited)."""

    case: str
    p50: tuple[float, float]
    p99: tuple[float, float]
    p999: tuple[float, float]
    longest: tuple[float, float]


def measure(*, rounds: int, seconds: float) -> list[Holds]:
    """Measure with small and with large bodies."""
    found = []
    with ExitStack() as stack:
        root = stack.enter_context(folder())
        for number, (case, (size, pause)) in enumerate(_CASES.items()):
            spec = Spec(OURS.name, True, str(root / str(number)), body_bytes=size)
            both: tuple[Process, Process] = stack.enter_context(pair(spec))
            for process in both:
                process.tell("holds", seconds=6, pause=pause)
            over: tuple[list[float], list[float]] = ([], [])
            for turn in range(rounds):
                for which in (0, 1) if turn % 2 else (1, 0):
                    answer = both[which].tell("holds", seconds=seconds, pause=pause)
                    over[which].extend(answer["over"])
            marks = [
                (quantile(over[0], share), quantile(over[1], share))
                for share in (0.5, 0.99, 0.999, 1.0)
            ]
            found.append(Holds(case, *marks))
    return found
