"""Small helpers of the tests."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable


def eventually(
    condition: Callable[[], object],
    timeout: float = 10.0,
    message: str | Callable[[], str] = "",
    pause: float = 0.02,
) -> None:
    """Return as soon as `condition` holds.

    :param timeout: seconds after which it is a failure.
    :param message: what the failure says; a function is called for it then.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            said = message() if callable(message) else message
            raise AssertionError(said or f"did not come about within {timeout:g} s")
        time.sleep(pause)


def fork() -> int:
    """`os.fork`, of a process whose garbage is gone.

    Clients in C that earlier tests left in cycles die in the parent: their threads are not in the
    child, whose own collector would take it down over them.
    """
    gc.collect()
    return os.fork()


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` holds in a forked child."""
    child = fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
