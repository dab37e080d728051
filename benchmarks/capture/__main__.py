"""`python -m benchmarks.capture`: every figure on what capturing costs, side by side with peers.

Takes about an hour; `--quick` a few minutes, with more noise. `--only latency --only cpu`: parts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from . import contenders, report

#: Those whose figures are times on the request path.
_TIMED = ("latency", "peers", "holds", "faults")
SECTIONS = ("latency", "peers", "cpu", "holds", "throughput", "memory", "faults")


def main() -> None:
    """Measure, print tables, and write files where they are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be given repeatedly")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a figure")
    parser.add_argument("--rounds", type=int, help="rounds of latency, cpu, throughput and faults")
    parser.add_argument("--pause", type=float, default=0.002, help="seconds between paced requests")
    parser.add_argument("--requests", type=int, default=1_000_000, help="requests of `memory`")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="measure latency at real-time priority, so that other work on the machine does not "
        "fall into it; needs root",
    )
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plot", type=Path, help="write the picture of the latencies there (SVG)")
    arguments = parser.parse_args()
    wanted = set(arguments.only or SECTIONS)
    if not arguments.only:
        # `peers` is `latency` with everybody.
        wanted.discard("latency")
    found: dict[str, Any] = {"machine": machine(), "when": time.strftime("%Y-%m-%d")}
    print(found["machine"], flush=True)
    for name, measure in _sections(arguments).items():
        if name in wanted:
            began = time.monotonic()
            with _realtime() if arguments.realtime and name in _TIMED else nullcontext():
                found[name] = measure()
            report.show(name, found[name])
            print(f"({time.monotonic() - began:.0f} s)", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, default=_plain, indent=1) + "\n")
    if arguments.plot:
        from . import plot

        arguments.plot.write_text(plot.draw(found.get("peers") or found["latency"]))


def _sections(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    quick = arguments.quick
    rounds = arguments.rounds or (3 if quick else 9)
    pause = arguments.pause

    def latency(who: tuple[contenders.Contender, ...], requests: int) -> Any:
        from .latency import measure

        return [
            added
            for mode, chain in (("sync", True), ("async", True), ("async", False))
            for added in measure(
                mode=mode, chain=chain, rounds=rounds, requests=requests, pause=pause, who=who
            )
        ]

    def cpu() -> Any:
        from .cpu import measure

        return measure(rounds=rounds, requests=1000 if quick else 3000, pause=pause)

    def holds() -> Any:
        from .holds import measure

        return measure(rounds=3 if quick else 6, seconds=3 if quick else 10)

    def throughput() -> Any:
        from .throughput import measure

        return measure(rounds=rounds, seconds=3 if quick else 6)

    def memory() -> Any:
        from .memory import measure

        return measure(requests=50_000 if quick else arguments.requests)

    def faults() -> Any:
        from .faults import measure

        return measure(rounds=rounds, requests=500 if quick else 1000, pause=pause)

    return {
        "latency": lambda: latency((contenders.OURS,), 500 if quick else 750),
        "peers": lambda: latency(contenders.ALL, 250 if quick else 750),
        "cpu": cpu,
        "holds": holds,
        "throughput": throughput,
        "memory": memory,
        "faults": faults,
    }


@contextmanager
def _realtime() -> Iterator[None]:
    """Run everything that is started meanwhile before all else on the machine."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def machine() -> str:
    """What this runs on, in a line."""
    import django

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, "
        f"Python {platform.python_version()}, Django {django.__version__}, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(type(value))


if __name__ == "__main__":
    main()
