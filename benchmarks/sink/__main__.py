"""`python -m benchmarks.sink <subject>`: what one worker of the sink costs and holds."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

SUBJECTS = ("throughput",)


def main() -> None:
    """Measure one subject."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--profile", type=Path, help="write a cProfile of one more round there")
    parser.add_argument("--gcs", action="store_true", help="into the GCS emulator, too")
    arguments = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from benchmarks.capture.__main__ import machine

    from .stack import stack

    print(machine(), f"load {os.getloadavg()[0]:.1f}", time.strftime("%H:%M"), flush=True)
    with stack(gcs=arguments.gcs) as servers:
        from . import throughput

        throughput.measure(
            servers,
            arguments.events,
            rounds=arguments.rounds,
            partitions=arguments.partitions,
            profile=arguments.profile,
        )


if __name__ == "__main__":
    main()
