"""Claims: who may write a range, and what makes it done.

A claim is one INSERT; the unique constraint on (lane, start_offset) lets one of all racers win. It
stands for a lease's time. When its owner shows no sign of life for that long, somebody else takes
it over: the fencing token grows, the former owner's writes to the ledger match no row any more,
and exactly the same range is done again. Files are created once and a range always gives the same
bytes, so that even two owners at work at the same time do no harm.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from django.db import IntegrityError, transaction
from django.db.models import F

from audit_publisher.producer_records import ProducerRecord

from ..conf import conf
from ..exceptions import ClaimLost
from ..models import Batch, DeadLetter, LakeFile, Lane
from .producers import record_producers


@dataclass(frozen=True)
class Counts:
    """What became of a batch's records."""

    stored: int = 0
    duplicates: int = 0
    dead_lettered: int = 0


@dataclass(frozen=True)
class Poison:
    """A record that cannot be stored: its offset, a stable reason, and a sentence."""

    offset: int
    reason: str
    message: str


def new_owner() -> str:
    """A name for one run of one worker."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"[:100]


def last_batch(lane: Lane) -> Batch | None:
    """The newest batch of `lane`: the only one that may be unfinished."""
    return (
        Batch.objects.filter(
            sink=lane.sink, region=lane.region, topic=lane.topic, partition=lane.partition
        )
        .order_by("-start_offset")
        .first()
    )


def claim(
    lane: Lane, start: int, end: int, *, owner: str, now: float, read: int, taken: int
) -> Batch | None:
    """Claim [`start`, `end`) of `lane`; None when somebody else claimed from `start` first."""
    try:
        with transaction.atomic():
            return Batch.objects.create(
                sink=lane.sink,
                region=lane.region,
                topic=lane.topic,
                partition=lane.partition,
                start_offset=start,
                end_offset=end,
                owner=owner,
                lease_expires=now + conf.LEASE_SECONDS,
                read=read,
                taken=taken,
                claimed_at=_when(now),
            )
    except IntegrityError:
        return None


def take_over(batch: Batch, *, owner: str, now: float) -> Batch | None:
    """Become the owner of an unfinished claim whose lease ran out; None when it is not free."""
    won = Batch.objects.filter(
        pk=batch.pk,
        state=Batch.State.CLAIMED,
        fence=batch.fence,
        lease_expires__lte=now,
    ).update(fence=F("fence") + 1, owner=owner, lease_expires=now + conf.LEASE_SECONDS)
    return Batch.objects.get(pk=batch.pk) if won else None


def renew(batch: Batch, *, now: float) -> None:
    """Show a sign of life.

    :raises ClaimLost: somebody else owns the claim now.
    """
    _fenced(batch, lease_expires=now + conf.LEASE_SECONDS)


def release(batch: Batch) -> None:
    """Let the next worker take the claim over at once; nothing happens if it was lost."""
    try:
        _fenced(batch, lease_expires=0)
    except ClaimLost:
        pass


def plan(batch: Batch, poison: Sequence[Poison]) -> None:
    """Record which offsets are poison, once and for all; call inside a transaction.

    Redoing the range keeps to it, though a registry or a library may have changed its mind: the
    same range must give the same bytes.

    :raises ClaimLost: somebody else owns the claim now.
    """
    _fenced(batch, planned=True)
    DeadLetter.objects.bulk_create(
        [
            DeadLetter(
                batch=batch,
                offset=item.offset,
                reason=item.reason,
                message=item.message[:500],
            )
            for item in poison
        ],
        batch_size=200,
    )
    batch.planned = True


def planned_poison(batch: Batch) -> list[Poison]:
    """What :func:`plan` recorded."""
    return [
        Poison(*row)
        for row in batch.poison.order_by("offset").values_list("offset", "reason", "message")
    ]


def finish(
    batch: Batch,
    files: Iterable[LakeFile],
    counts: Counts,
    *,
    lane: Lane,
    now: float,
    producers: Sequence[ProducerRecord] = (),
) -> None:
    """Mark `batch` done with its files, in one transaction: from here on its rows are readable.

    :param producers: what the range says of capture processes.
    :raises ClaimLost: somebody else owns the claim, or finished it.
    """
    files = list(files)
    size = sum(file.bytes for file in files)
    with transaction.atomic():
        _fenced(
            batch,
            state=Batch.State.DONE,
            stored=counts.stored,
            duplicates=counts.duplicates,
            dead_lettered=counts.dead_lettered,
            bytes=size,
            done_at=_when(now),
        )
        LakeFile.objects.bulk_create(files, batch_size=50)
        record_producers(producers)
        Lane.objects.filter(pk=lane.pk).update(next_offset=batch.end_offset)
    batch.state, batch.bytes = Batch.State.DONE, size


def _fenced(batch: Batch, **changes: object) -> None:
    changed = Batch.objects.filter(
        pk=batch.pk, fence=batch.fence, state=Batch.State.CLAIMED
    ).update(**changes)
    if not changed:
        raise ClaimLost(f"{batch}: another worker has taken this claim over.")


def _when(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)
