"""`python -m benchmarks.sink.worker`: one worker's process; does what there is, and tells its cost.

It calls what the Celery task calls. The last line that it prints is a JSON object.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import resource
import sys
import time
from pathlib import Path

_BEGAN = time.time()


def main() -> None:
    """Bring lanes forward until none moves."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink.worker")
    parser.add_argument("--sink", action="append", help="only lanes of these")
    parser.add_argument("--profile", type=Path, help="write a cProfile there")
    parser.add_argument("--turns", action="store_true", help="lanes in turn, one task each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--tell", action="store_true", help="print a line for each finished turn")
    arguments = parser.parse_args()
    import django

    django.setup()
    # What a worker imports on its first batch belongs to its start.
    import pyarrow.parquet  # noqa: F401

    from audit_sink.ingest import decode, dedup, run, writer  # noqa: F401
    from audit_sink.ingest.schedule import lanes

    ready, before = time.time(), _cpu()
    profile = cProfile.Profile(time.process_time) if arguments.profile else None
    if profile:
        profile.enable()
    wanted = [
        lane for lane, _ in list(lanes()) if not arguments.sink or lane.sink in arguments.sink
    ]
    told: dict[str, dict[str, object]] = {}
    moving = list(wanted)
    end = ready + arguments.seconds
    first = 0.0
    while moving and time.time() < end:
        again = []
        for lane in moving:
            while True:
                once = run.ingest(lane, flush=True)
                seen = told.setdefault(str(lane), {"rows": 0, "batches": 0})
                seen["rows"] = int(str(seen["rows"])) + once.rows
                seen["batches"] = int(str(seen["batches"])) + once.batches
                seen["state"], seen["error"] = once.state, once.error
                if once.batches and not first:
                    first = time.time()
                if arguments.tell:
                    print(json.dumps({"lane": str(lane), "at": time.time(), **seen}), flush=True)
                if once.state != "time_over":
                    break
                if arguments.turns:
                    again.append(lane)
                    break
        moving = again
    if profile:
        profile.disable()
        profile.dump_stats(arguments.profile)
    found = {
        "began": _BEGAN,
        "ready": ready,
        "first": first,
        "wall": time.time() - ready,
        "cpu": _cpu() - before,
        "cpu_start": before,
        "peak": _peak(),
        "rows": sum(int(str(each["rows"])) for each in told.values()),
        "batches": sum(int(str(each["batches"])) for each in told.values()),
        "lanes": told,
    }
    print(json.dumps(found))
    sys.stdout.flush()


def _cpu() -> float:
    """CPU seconds so far, of this process and of children that have ended."""
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak() -> int:
    """The most memory that was resident at any time, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main()
