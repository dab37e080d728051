"""Requests a second at saturation, audited against bare: real servers under a load generator.

Both servers stand side by side and are loaded in turn; what the audited one does afterwards, in
the background, counts as its CPU. The generator needs a core of its own: on two cores a server of
one worker has the other one, and its own background thread shares the worker's interpreter; two
workers fill both cores and contend with the generator.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from . import kept
from .conductor import Died, Figure, folder
from .contenders import OURS
from .servers import GTHREAD, SYNC_1, SYNC_2, UVICORN, Kind, Server, load, serving
from .service import Spec


@dataclass(frozen=True)
class Throughput:
    """Requests a second, and the audited server's share of the bare one's, in the same round."""

    server: str
    bare: Figure
    audited: Figure
    ratio: Figure
    per_cpu: Figure
    requests: int
    queued: int
    spooled: int

    @property
    def lost(self) -> int:
        """Requests that neither the broker nor the spool has an event of."""
        return max(0, self.requests - self.queued - self.spooled)


def measure(*, rounds: int, seconds: int) -> list[Throughput]:
    """Measure each kind of server."""
    return [_one(kind, rounds, seconds) for kind in (SYNC_1, SYNC_2, GTHREAD, UVICORN)]


def _one(kind: Kind, rounds: int, seconds: int) -> Throughput:
    with folder() as root:
        spec = Spec(OURS.name, True, str(root / "audited"), kind.mode)
        rates: tuple[list[float], list[float]] = ([], [])
        costs: tuple[list[float], list[float]] = ([], [])
        made = 0
        with ExitStack() as stack:
            both = tuple(
                stack.enter_context(serving(kind, each))
                for each in (replace(spec, recorded=False, folder=str(root / "bare")), spec)
            )
            for number in range(-1, rounds):
                for which in (0, 1) if number % 2 else (1, 0):
                    rate, cost, requests = _loaded(both[which], 2 if number < 0 else seconds, root)
                    made += requests if which else 0
                    if number >= 0:  # the first warms up
                        rates[which].append(rate)
                        costs[which].append(cost)
        queued, spooled = kept.events(root / "audited" / "audit")
        return Throughput(
            kind.name,
            Figure.of(rates[0]),
            Figure.of(rates[1]),
            Figure.of([after / before for before, after in zip(*rates, strict=True)]),
            Figure.of([before / after for before, after in zip(*costs, strict=True)]),
            made,
            queued,
            spooled,
        )


def _loaded(server: Server, seconds: int, root: Path) -> tuple[float, float, int]:
    """Requests a second, CPU seconds for each request, and how many requests."""
    before = server.cpu()
    done = load(server, seconds, root)
    server.rest()
    if done.errors > done.requests // 100:
        raise Died(f"{server.kind.name}: {done.errors} of {done.requests} requests failed")
    return done.per_second, (server.cpu() - before) / done.requests, done.requests
