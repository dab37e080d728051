"""One row per request_id: the first batch to record an id in the ledger keeps its row.

The ids of a batch are recorded in one statement, in the transaction that plans the batch. Two
batches that race for an id, of two partitions or two regions, meet in the primary key: one of them
gets it. Redoing a range finds the ids under its own name, and so keeps the same rows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from django.db import connections, router

from ..conf import conf
from ..models import Batch, SeenRequest

_INSERT = "INSERT INTO {table} (key, batch_id) VALUES (%s, %s) ON CONFLICT DO NOTHING"


def request_keys(sink: str, request_ids: Sequence[str]) -> list[bytes]:
    """What the ledger knows each request_id of `sink` by: 16 bytes."""
    # A hash, because an id may be any string, and the ledger must stay small. 128 bits of a
    # cryptographic hash do not collide.
    state = hashlib.blake2b(sink.encode() + b"\0", digest_size=16)
    keys = []
    for request_id in request_ids:
        one = state.copy()
        one.update(request_id.encode("utf-8", "surrogatepass"))
        keys.append(one.digest())
    return keys


def take_ownership(batch: Batch, keys: Sequence[bytes]) -> list[bool]:
    """Say for each key, in order, whether its row is this batch's to keep; call in a transaction.

    Of equal keys in `keys` the first is kept.
    """
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    # In one order everywhere, so that two batches with the same ids cannot deadlock.
    wanted = sorted(first)
    owned = _record(batch, wanted)
    keep = [False] * len(keys)
    for key, index in first.items():
        keep[index] = owned is None or key in owned
    return keep


def _record(batch: Batch, keys: Sequence[bytes]) -> set[bytes] | None:
    """Insert the keys that are free; return those this batch owns, or None for all of `keys`."""
    if not keys:
        return set()
    connection = connections[router.db_for_write(SeenRequest)]
    table = connection.ops.quote_name(SeenRequest._meta.db_table)
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT.format(table=table), [(key, batch.pk) for key in keys])
        if cursor.rowcount == len(keys):
            return None
    mine = SeenRequest.objects.filter(batch=batch).values_list("key", flat=True)
    return {bytes(key) for key in mine.iterator(chunk_size=5000)}


def prune(*, clock: Callable[[], float] = time.time) -> int:
    """Forget the ids of batches that were done more than DEDUP_DAYS ago; return how many."""
    cutoff = datetime.fromtimestamp(clock(), UTC) - timedelta(days=conf.DEDUP_DAYS)
    old = Batch.objects.filter(state=Batch.State.DONE, done_at__lt=cutoff)
    return SeenRequest.objects.filter(batch__in=old).delete()[0]
