"""Upkeep of the ledger: what an admin decides, and what keeps it small."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from itertools import groupby

from django.db import transaction

from audit_publisher.eventlog import get_region

from .. import metrics
from ..conf import conf
from ..exceptions import RangeUnavailable
from ..models import Batch, DeadLetter, Lane, Producer, SeenRequest
from . import Clock
from .claims import last_batch, take_over

#: Empty batches are merged when they are this old; until then people may want to see them.
_MERGE_AFTER = timedelta(days=1)

#: Owner of a batch that no worker made.
_ADMIN = "admin"


def accept_lost(lane: Lane, *, clock: Clock = time.time) -> int:
    """Go on at the oldest record kept, though records before it were never stored.

    The ledger keeps the missing range, as a batch of its own with its number of lost offsets. A
    claimed range that was begun and is gone becomes that batch; what is left of it is read anew.

    :returns: offsets that are lost; 0 when the log still holds what comes next.
    :raises RangeUnavailable: a worker is at it, or the log was made anew.
    """
    now = clock()
    low, high = get_region(lane.region).watermarks(lane.topic, lane.partition)
    last = last_batch(lane)
    reached = last.end_offset if last is not None else lane.start_offset
    if reached > high:
        raise RangeUnavailable(
            f"{lane}: the log ends at {high}, before offset {reached}: the topic was made anew. "
            f"Route events to a topic of another name."
        )
    begun = last if last is not None and last.state != Batch.State.DONE else None
    start = begun.start_offset if begun is not None else reached
    if low <= start:
        return 0
    with transaction.atomic():
        if begun is not None:
            _give_up(begun, low, now)
        else:
            # The unique constraint keeps out a worker that claims from the same offset.
            Batch.objects.create(
                sink=lane.sink,
                region=lane.region,
                topic=lane.topic,
                partition=lane.partition,
                start_offset=start,
                end_offset=low,
                state=Batch.State.DONE,
                lost=low - start,
                owner=_ADMIN,
                claimed_at=_when(now),
                done_at=_when(now),
            )
        Lane.objects.filter(pk=lane.pk).update(next_offset=low, failures=0, due_at=0)
    metrics.LOST.labels(*lane.key).inc(low - start)
    return low - start


def _give_up(batch: Batch, low: int, now: float) -> None:
    """Turn an unfinished claim into the record of what is lost up to `low`."""
    mine = take_over(batch, owner=_ADMIN, now=now)
    if mine is None:
        raise RangeUnavailable(
            f"{batch} is claimed by a worker that may be at it. Try again when its claim has run "
            f"out, at {_when(batch.lease_expires):%H:%M:%S} UTC."
        )
    # Its ids are free again: what comes once more, or from the other region, is stored. Nothing
    # can be done for a duplicate that was left out already.
    SeenRequest.objects.filter(batch=mine).delete()
    # Nobody knows whether they were handed over; those that the log still holds are found again.
    DeadLetter.objects.filter(batch=mine).delete()
    Batch.objects.filter(pk=mine.pk).update(
        state=Batch.State.DONE,
        end_offset=low,
        read=0,
        taken=0,
        lost=low - mine.start_offset,
        done_at=_when(now),
    )


def _when(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)


def prune_producers(*, clock: Clock = time.time) -> int:
    """Forget capture processes not heard of for PRODUCER_DAYS; return how many."""
    cutoff = _when(clock()) - timedelta(days=conf.PRODUCER_DAYS)
    return Producer.objects.filter(last_at__lt=cutoff).delete()[0]


def merge_idle(*, clock: Clock = time.time) -> int:
    """Make one batch of neighbours that held no record of their sink; return how many are gone.

    A site with little traffic reads past the others' records every few seconds; a year of that
    would be millions of rows. The newest batch of a lane is left alone: a worker may build on it.
    """
    cutoff = _when(clock()) - _MERGE_AFTER
    removed = 0
    for lane in Lane.objects.all():
        newest = last_batch(lane)
        idle = (
            Batch.objects.filter(
                sink=lane.sink,
                region=lane.region,
                topic=lane.topic,
                partition=lane.partition,
                state=Batch.State.DONE,
                taken=0,
                lost=0,
                done_at__lt=cutoff,
            )
            .exclude(pk=newest.pk if newest else None)
            .order_by("start_offset")
        )
        for _, run in groupby(_numbered_runs(list(idle)), key=lambda pair: pair[0]):
            removed += _merge([batch for _, batch in run])
    return removed


def _numbered_runs(batches: list[Batch]) -> list[tuple[int, Batch]]:
    """Give batches that follow each other directly the same number."""
    numbered: list[tuple[int, Batch]] = []
    number = 0
    for index, batch in enumerate(batches):
        if index and batches[index - 1].end_offset != batch.start_offset:
            number += 1
        numbered.append((number, batch))
    return numbered


def _merge(run: list[Batch]) -> int:
    first, *others = run
    if not others:
        return 0
    with transaction.atomic():
        for start in range(0, len(others), 500):
            ids = [batch.pk for batch in others[start : start + 500]]
            Batch.objects.filter(pk__in=ids).delete()
        Batch.objects.filter(pk=first.pk).update(
            end_offset=others[-1].end_offset,
            read=sum(batch.read for batch in run),
            done_at=others[-1].done_at,
        )
    return len(others)
