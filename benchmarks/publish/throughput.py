"""Events for a CPU second of the publisher, events a second, and how long an answer takes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from .load import Orders, Seen
from .stack import ROOT, Publisher


@dataclass(frozen=True)
class Throughput:
    """What one load was answered with.

    :ivar per_cpu: events for a CPU second of all the publisher's processes.
    :ivar median, p99: seconds from when a request was due to its answer, under a kept pace.
    :ivar late: requests that found no caller free.
    """

    batch: int
    pace: float
    events_per_second: float
    per_cpu: float
    cpu_share: float
    statuses: dict[str, int]
    outcomes: dict[str, int]
    median: float | None = None
    p99: float | None = None
    late: int = 0


def run(server: Publisher, cores: set[int] | None = None, **how: Any) -> Throughput:
    """Load `server` as :class:`~.load.Orders` say; the load runs on `cores`."""
    orders = Orders(server.port, str(server.key), **how)
    with subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(orders)) + "\n")
        process.stdin.flush()
        _expect(process, "ready")
        process.stdin.write("go\n")
        process.stdin.flush()
        _expect(process, "counting")
        before = server.cpu_seconds()
        answer = process.stdout.readline()
        used = server.cpu_seconds() - before
    if not answer:
        raise RuntimeError(f"the load ended early; the publisher's log:\n{server.log.read_text()}")
    seen = Seen(**json.loads(answer))
    latencies = sorted(seen.latencies)
    return Throughput(
        batch=orders.batch,
        pace=orders.pace,
        events_per_second=seen.events / seen.seconds,
        per_cpu=seen.events / used,
        cpu_share=used / seen.seconds,
        statuses=seen.statuses,
        outcomes=seen.outcomes,
        median=statistics.median(latencies) if latencies else None,
        p99=latencies[int(len(latencies) * 0.99)] if latencies else None,
        late=seen.late,
    )


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    if said != word:
        raise RuntimeError(f"the load said {said!r}, not {word!r}")
