"""Named places where a test can make the sink fail; they do nothing unless armed.

A test in the same process uses :func:`armed`; a child process is armed by its environment, for
example ``AUDIT_TEST_FAILPOINTS=after_upload=kill``. ``kill`` ends the process at once, as
``kill -9`` would; ``raise`` raises :class:`FailpointReached`; ``kill:3`` waits for the third time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Every failpoint, in the order of the journey.
NAMES = ("after_read", "after_claim", "after_dead_letter", "after_upload", "after_ledger")

VARIABLE = "AUDIT_TEST_FAILPOINTS"


class FailpointReached(Exception):
    """An armed failpoint with the action ``raise``."""


_armed: dict[str, Callable[[], None]] = {}


def failpoint(name: str) -> None:
    """Fail here if a test has armed `name`."""
    if _armed and (action := _armed.get(name)):
        action()


@contextmanager
def armed(name: str, action: str | Callable[[], None] = "raise") -> Iterator[None]:
    """Arm `name` inside the block: ``raise``, ``kill`` or a callable."""
    _armed[name] = _action(name, action)
    try:
        yield
    finally:
        _armed.pop(name, None)


def _action(name: str, action: str | Callable[[], None]) -> Callable[[], None]:
    if name not in NAMES:
        raise ValueError(f"{name!r} is no failpoint; there are {', '.join(NAMES)}.")
    if callable(action):
        return action
    action, _, count = action.partition(":")
    if count:
        return _nth(int(count), _action(name, action))
    if action == "kill":
        return lambda: os._exit(137)
    if action == "raise":

        def fail() -> None:
            raise FailpointReached(name)

        return fail
    raise ValueError(f"{action!r} is no action of a failpoint; use kill or raise.")


def _nth(count: int, action: Callable[[], None]) -> Callable[[], None]:
    passes = itertools.count(1)

    def act() -> None:
        if next(passes) == count:
            action()

    return act


def _from_environment() -> None:
    for pair in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, action = pair.partition("=")
        _armed[name.strip()] = _action(name.strip(), action.strip())


_from_environment()
