"""`python -m benchmarks.publish`: what publishing costs, over two real clusters.

The publisher runs under its shipped server configuration, with one process on one core; the load
on the other, with the clusters. Signatures are enforced. How it fails over and what it does with
too much are `python -m benchmarks.publish.failover` and `.memory`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.capture.__main__ import machine
from benchmarks.capture.report import table

from .stack import Publisher, clusters, publisher
from .throughput import Throughput, run

SECTIONS = ("sizes", "batches", "singles")
_BATCH = 100
_LINGER = 0.02


def main() -> None:
    """Measure, print tables, and write files where they are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be given repeatedly")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args()
    wanted = arguments.only or SECTIONS
    print(machine(), flush=True)
    found: dict[str, Any] = {"machine": machine(), "when": time.strftime("%Y-%m-%d")}
    if "sizes" in wanted:
        found["sizes"] = _sizes()
    if "batches" in wanted or "singles" in wanted:
        cores = sorted(os.sched_getaffinity(0))
        ours, others = ({cores[0]}, set(cores[1:])) if len(cores) > 1 else (None, None)
        with clusters() as servers:
            regions = {
                name: server.address
                for name, server in zip(("primary", "secondary"), servers, strict=True)
            }
            with publisher(regions, cores=ours) as server:
                how = {"seconds": arguments.seconds, "cores": others}
                if "batches" in wanted:
                    found["batches"] = _batches(server, arguments.rounds, how)
                if "singles" in wanted:
                    found["singles"] = _singles(server, arguments.rounds, how)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _sizes() -> list[dict[str, Any]]:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from .sizes import measure

    found = measure()
    rows = [
        (each.what, f"{each.json:,.0f}", f"{each.avro:,.0f}", f"{each.share:.0%}") for each in found
    ]
    print("\nBytes of an event, mean\n")
    print(table(("events", "JSON", "Avro", "share"), rows), flush=True)
    return [asdict(each) | {"share": each.share} for each in found]


def _batches(server: Publisher, rounds: int, how: dict[str, Any]) -> list[dict[str, Any]]:
    seen = [run(server, batch=_BATCH, connections=8, seed=n, **how) for n in range(rounds)]
    _show(f"Batches of {_BATCH} events of 2 KB", seen)
    return [asdict(each) for each in seen]


def _singles(server: Publisher, rounds: int, how: dict[str, Any]) -> dict[str, Any]:
    full = [
        run(server, batch=0, connections=128, distinct=2000, seed=n, **how) for n in range(rounds)
    ]
    _show("Single events of 2 KB", full)
    half = statistics.median(each.events_per_second for each in full) / 2
    paced = [
        run(server, batch=0, connections=256, distinct=2000, pace=half, seed=n, **how)
        for n in range(rounds)
    ]
    rows = [
        (
            f"{each.pace:,.0f}",
            f"{1000 * (each.median or 0):.1f}",
            f"{1000 * (each.p99 or 0):.1f}",
            f"{1000 * ((each.p99 or 0) - _LINGER):+.1f}",
            f"{each.late:,}",
        )
        for each in paced
    ]
    print("\nSingle events at half of that\n")
    heads = ("requests/s", "median, ms", "p99, ms", "p99 beyond linger, ms", "not sent in time")
    print(table(heads, rows), flush=True)
    return {"full": [asdict(each) for each in full], "half": [asdict(each) for each in paced]}


def _show(title: str, seen: Sequence[Throughput]) -> None:
    rows = [
        (
            f"{each.events_per_second:,.0f}",
            f"{each.per_cpu:,.0f}",
            f"{each.cpu_share:.0%}",
            ", ".join(f"{status}: {count:,}" for status, count in each.statuses.items()),
            ", ".join(f"{word}: {count:,}" for word, count in each.outcomes.items() if count),
        )
        for each in seen
    ]
    print(f"\n{title}\n")
    heads = ("events/s", "events for a CPU second", "of a core", "answers", "events")
    print(table(heads, rows), flush=True)


if __name__ == "__main__":
    main()
