"""One at a time, across all workers: a row of the database says whose turn it is, and how long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DatabaseError

from ..models import Turn
from . import Clock


@contextmanager
def turn(name: str, seconds: float, clock: Clock) -> Iterator[bool]:
    """Yield True when nobody else does `name` now; the turn ends with the block.

    :param seconds: the turn of one who was killed ends after this time.
    """
    now = clock()
    until = now + seconds
    Turn.objects.get_or_create(name=name)
    # One statement, so that one of all racers wins, on every database.
    mine = bool(Turn.objects.filter(name=name, until__lte=now).update(until=until))
    try:
        yield mine
    finally:
        if mine:
            try:
                # Not somebody else's, who came because this one took too long.
                Turn.objects.filter(name=name, until=until).update(until=0)
            except DatabaseError:
                # It runs out by itself.
                pass
