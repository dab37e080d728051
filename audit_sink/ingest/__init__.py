"""Event log to files: read a range, claim it, decode, write, mark done."""

from collections.abc import Callable

#: Returns epoch seconds.
Clock = Callable[[], float]
