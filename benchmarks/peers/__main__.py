"""`python -m benchmarks.peers`: our sink, Iceberg's and a bare loop, on the same topic in one
run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sink.stack import ROOT, TOPIC, Stack

SCHEMA = ROOT / "audit_publisher" / "schemas" / "log_event.avsc"
NAMES = ("ours", "bare", "iceberg", "restart")


def main() -> None:
    """Measure each, print lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=1, help="of Iceberg's connector")
    arguments = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from benchmarks.capture.__main__ import machine
    from benchmarks.sink import load, throughput
    from benchmarks.sink.stack import stack

    print(machine(), f"load {os.getloadavg()[0]:.1f}", time.strftime("%H:%M"), flush=True)
    wanted = arguments.only or NAMES
    with stack() as servers:
        servers.topic(arguments.partitions)
        count, partitions = arguments.events, arguments.partitions
        load.fill(servers.kafka.address, TOPIC, count, partitions=partitions)
        for _ in range(arguments.rounds):
            if "ours" in wanted:
                cost = throughput.one(servers.install(), "ours", count, "--sink", "US")
                print(throughput.line(cost), flush=True)
            if "bare" in wanted:
                _say("bare loop", count, bare(servers, count, partitions))
            if "iceberg" in wanted:
                _say("Iceberg's sink", count, iceberg(servers, count, arguments.tasks))
        if "restart" in wanted:
            print(f"Iceberg's sink after kill -9: {restart(servers, count)}", flush=True)


def _say(what: str, count: int, seen: dict[str, Any]) -> None:
    each = seen["cpu"] / count * 1e6
    print(
        f"{what}: {count / seen['cpu']:,.0f} events/CPU s, {each:.1f} us each, wall "
        f"{seen['wall']:.1f} s, peak {seen['peak'] / 1e6:.0f} MB, {seen['files']} files, "
        f"{seen['bytes'] / count:.0f} B/event {seen.get('note', '')}",
        flush=True,
    )


def bare(servers: Stack, count: int, partitions: int) -> dict[str, Any]:
    """The floor."""
    folder = servers.folder / f"bare-{time.time():.0f}"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.peers.bare", servers.kafka.address, TOPIC]
    command += [str(folder), f"--events={count}", f"--partitions={partitions}"]
    done = subprocess.run(
        [*command, f"--schema={SCHEMA}"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def iceberg(servers: Stack, count: int, tasks: int) -> dict[str, Any]:
    """Iceberg's sink, from its tasks' start until its table has every event."""
    from benchmarks.capture.cpu import cpu_seconds

    server, began = _connect(servers, tasks)
    try:
        server.start()
        assert server.pid is not None
        start = cpu_seconds(server.pid)
        rows = _until(lambda: server.rows() >= count, server, 300)
        used = cpu_seconds(server.pid) - start
        files = server.files()
        return {
            "cpu": used,
            "wall": time.monotonic() - began,
            "peak": _peak(server.pid),
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
            "note": f"(start {start:.1f} CPU s; {rows:,} rows, {len(server.snapshots())} commits)",
        }
    finally:
        server.stop()
        _forget(servers)


def restart(servers: Stack, count: int) -> str:
    """Kill it amid its work; seconds from its next start to its next commit."""
    server, _ = _connect(servers, 1)
    try:
        server.start()
        _until(lambda: server.rows() > 0, server, 120)
        before = len(server.snapshots())
        at = server.rows()
        server.kill()
        began = time.monotonic()
        server.start()
        _until(lambda: len(server.snapshots()) > before, server, 180)
        took = time.monotonic() - began
        _until(lambda: server.rows() >= count, server, 300)
        time.sleep(11)
        rows = server.rows()
        return f"{took:.1f} s until it wrote again (killed at {at:,}; {rows:,} rows in the end)"
    finally:
        server.stop()
        _forget(servers)


def _connect(servers: Stack, tasks: int) -> tuple[Any, float]:
    from .iceberg import IcebergSink

    warehouse = servers.folder / f"warehouse-{time.time():.0f}"
    warehouse.mkdir()
    if "control-iceberg" not in servers.kafka.admin().list_topics(timeout=5).topics:
        servers.kafka.create_topics({"control-iceberg": 1})
    server = IcebergSink(servers.kafka.address, servers.registry.url, TOPIC, warehouse, tasks=tasks)
    return server, time.monotonic()


def _forget(servers: Stack) -> None:
    """Its progress is in groups of Kafka: the next round begins anew."""
    servers.kafka.delete_topics(["control-iceberg"])
    admin = servers.kafka.admin()
    groups = [group.group_id for group in admin.list_consumer_groups().result(10).valid]
    wanted = [group for group in groups if "connect" in group or "iceberg" in group]
    for _ in range(20):
        answers = admin.delete_consumer_groups(wanted) if wanted else {}
        failed = [group for group, answer in answers.items() if answer.exception(10) is not None]
        wanted = failed
        if not wanted:
            return
        time.sleep(3)
    raise RuntimeError(f"groups are still there: {wanted}")


def _until(true: Callable[[], bool], server: Any, seconds: float) -> int:
    end = time.monotonic() + seconds
    while not true():
        states = [task["state"] for task in server.status()["tasks"]]
        if time.monotonic() > end or "FAILED" in states:
            raise RuntimeError(f"{server.rows():,} rows; tasks {states}; {server.tail_log(30)}")
        time.sleep(0.2)
    rows: int = server.rows()
    return rows


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    main()
