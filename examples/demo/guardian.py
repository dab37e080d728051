"""Stops the demo's processes when the demo itself was killed and could not: run by `processes`.

It reads process groups from its standard input, ``+123`` started and ``-123`` ended. The end of
the input means that the demo is gone; what is still in the list is then stopped. The standard
library alone, and no imports of ours: it must start in no time and outlive everything.
"""

import os
import signal
import sys
import time

GRACE = 10.0


def alive(group: int) -> bool:
    """Whether any process of `group` still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It was given to somebody else: not ours any more.
        return False
    return _any_runs(group)


def _any_runs(group: int) -> bool:
    """Whether one of them is more than an entry that its parent, or init, has yet to collect."""
    if not os.path.exists("/proc/self/stat"):  # noqa: PTH110 - pathlib takes its time to import
        return True
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", errors="replace") as stat:  # noqa: PTH123
                state, _, its_group = stat.read().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def stop(groups: set[int], grace: float = GRACE) -> None:
    """End all `groups`: asked first, killed after `grace` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in list(groups):
            try:
                os.killpg(group, number)
            except (ProcessLookupError, PermissionError):
                groups.discard(group)
        deadline = time.monotonic() + grace
        while groups and time.monotonic() < deadline:
            groups -= {group for group in groups if not alive(group)}
            time.sleep(0.05)


def main() -> None:
    """Follow the list until its writer is gone."""
    groups: set[int] = set()
    for line in sys.stdin:
        change = groups.add if line[0] == "+" else groups.discard
        change(int(line[1:]))
    stop(groups)


if __name__ == "__main__":
    main()
