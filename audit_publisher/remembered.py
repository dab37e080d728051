"""What was worked out for a text that comes again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: Texts that are remembered, and how long they may be: who sends ever new ones fills no memory.
_MOST, _LONGEST = 20_000, 200


class Remembered(dict[K, V], Generic[K, V]):
    """The values of a function of short texts (or None), by its argument; bounded.

    To look one up costs what a dict costs. Thread-safe as dicts are: at worst a value is worked
    out twice.

    :param work_out: the function; it has no effects, and its errors are not remembered.
    """

    def __init__(self, work_out: Callable[[K], V]) -> None:
        self._work_out = work_out

    def __missing__(self, key: K) -> V:
        value = self._work_out(key)
        if key is None or len(key) <= _LONGEST:  # type: ignore[arg-type]
            if len(self) >= _MOST:
                self.clear()
            self[key] = value
        return value
