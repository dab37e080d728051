"""What a forked process does with the regions that its parent opened: nothing at all."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from audit_publisher import eventlog
from audit_publisher.eventlog import Limits, Record, get_region
from tests.support import fork

TOPIC = "api-audit-events"

#: What a child may do first.
FIRST = [
    pytest.param(lambda: get_region("primary"), id="get"),
    pytest.param(eventlog.close_regions, id="close"),
]


def forked(work: Callable[[], bool]) -> int:
    """Exit status of a child that does `work`; 0: it returned True."""
    pid = fork()
    if pid == 0:
        status = 2
        # Ends it, should it wait for ever.
        signal.alarm(60)
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def opened(folder: Path) -> dict[int, str]:
    """Descriptors of this process on files in `folder`."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        # The one by which we look is gone already.
        with suppress(FileNotFoundError):
            path = each.readlink()
            if folder in path.parents:
                found[int(each.name)] = str(path)
    return found


@pytest.mark.parametrize("first", FIRST)
def test_a_child_destroys_no_region_of_its_parent(
    first: Callable[[], object], tmp_path: Path
) -> None:
    get_region("primary").append(TOPIC, [Record(b"1", key=b"k")])
    parents = weakref.ref(get_region("primary"))
    files = opened(tmp_path)
    assert files

    def child() -> bool:
        first()
        mine = get_region("primary")
        stored = mine.append(TOPIC, [Record(b"2", key=b"k")])[0].error is None
        gc.collect()
        kept = parents() is not None and mine is not parents()
        return stored and kept and files.items() <= opened(tmp_path).items()

    assert forked(child) == 0
    region = get_region("primary")
    assert region is parents()
    values = [
        record.value
        for partition in range(region.partitions(TOPIC))
        for record in region.read(TOPIC, partition, 0, Limits(timeout=0))
    ]
    assert values == [b"1", b"2"]


@pytest.mark.parametrize("first", FIRST)
def test_a_child_does_not_wait_for_a_lock_of_its_parent(first: Callable[[], object]) -> None:
    get_region("primary")

    def child() -> bool:
        first()
        return True

    # As if another thread opened a region when the process was forked.
    with eventlog._lock:
        assert forked(child) == 0
