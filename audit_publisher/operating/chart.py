"""A small picture of the last hour: bars by minute, as numbers that a template draws."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MINUTES = 60
WIDTH, HEIGHT = 720, 120
_STEP = WIDTH / MINUTES


@dataclass(frozen=True, slots=True)
class Bar:
    """One part of one minute's bar; all in the picture's units."""

    kind: str
    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """What happened in the last hour.

    :ivar most: events in the fullest minute.
    :ivar totals: events by kind.
    """

    bars: tuple[Bar, ...]
    most: int
    totals: dict[str, int]
    width: int = WIDTH
    height: int = HEIGHT
    bar: float = round(_STEP - 2, 1)


_KINDS = ("published", "spooled", "rejected")


def chart(reports: Iterable[Sequence[Any]], now: float | None = None) -> Chart | None:
    """Add up what processes said of their minutes; None when there was nothing.

    :param reports: of each process: [minute, published, spooled, rejected, …] in epoch minutes.
    :param now: epoch seconds.
    """
    end = int((time.time() if now is None else now) // 60)
    sums: dict[int, list[int]] = {}
    for minutes in reports:
        for minute, *counts in minutes:
            if end - MINUTES < minute <= end:
                into = sums.setdefault(minute, [0] * len(_KINDS))
                for index in range(len(_KINDS)):
                    into[index] += counts[index]
    most = max((sum(counts) for counts in sums.values()), default=0)
    if not most:
        return None
    bars = []
    for minute, counts in sorted(sums.items()):
        y = float(HEIGHT)
        for kind, count in zip(_KINDS, counts, strict=True):
            if count:
                # What happened at all is seen, however little it is.
                height = max(1.0, HEIGHT * count / most)
                y = max(0.0, y - height)
                x = (MINUTES - 1 - (end - minute)) * _STEP
                bars.append(Bar(kind, round(x, 1), round(y, 1), round(height, 1)))
    totals = {
        kind: sum(counts[index] for counts in sums.values()) for index, kind in enumerate(_KINDS)
    }
    return Chart(tuple(bars), most, totals)
