"""Small helpers of the tests."""

from __future__ import annotations

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
