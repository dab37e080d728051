"""Printing for whoever reads as much as they like: `… | head` is no error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def to_reader(out: Any) -> Iterator[None]:
    """What is written to `out` within reaches its reader, or ends without a word when that left.

    :param out: a command's standard output.
    """
    try:
        yield
        out.flush()
    except BrokenPipeError:
        # What is left goes nowhere at the end of the process.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
